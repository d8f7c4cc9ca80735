"""OpenAI's Responses API, sans I/O: the fields of a request; a field that a chat lacks is refused by name.

The reference is the `openai` SDK's own types. Fields that the API does not define go to the backend unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, with_config
from typing_extensions import TypedDict

from gateway.errors import invalid_value, unsupported_parameter
from gateway.features.conversations.stored import INCLUDABLE
from gateway.web.fields import CLOSED, OPEN, Array, Object, closed
from gateway.web.schemas import Model

# Fields of the API without a counterpart, each with advice what to do instead.
REFUSED = {
    "access_programs": "leave it out: there are no such programs here",
    "background_options": "leave it out, with `background`",
    "background": "leave it out, and wait for the answer or stream it",
    "context_management": "leave it out, and shorten the conversation yourself",
    "conversation": "chain responses by `previous_response_id`",
    "image": "leave it out: images go to the model unchanged",
    "moderation": "leave it out: nothing is moderated here",
    "n": "ask again: a response is one answer",
    "prompt": "send the text itself as `instructions` and `input`",
}
Summary = Literal["auto", "concise", "detailed"] | None


class Reasoning(TypedDict, total=False):
    effort: Annotated[str | None, Field(description="Becomes the chat's `reasoning_effort`.")]
    summary: Annotated[
        Summary, Field(description="The answer has the model's whole reasoning as `summary` instead of `content`.")
    ]
    generate_summary: Annotated[Summary, Field(description="The former name of `summary`.")]


class Text(TypedDict, total=False):
    format: Annotated[dict[str, Any] | None, Field(description="`text`, `json_object`, `json_schema`.")]
    verbosity: str | None


@with_config(CLOSED)
class ResponsesStreamOptions(TypedDict, total=False):
    include_obfuscation: Annotated[bool | None, Field(description="Pads deltas, so lengths tell less; off by default.")]
    include_usage: Annotated[bool | None, Field(description="Usage always comes with the last event.")]


@with_config(OPEN)
class _OfChat(TypedDict, total=False):
    """The fields that a chat has alike."""

    model: Model | None
    stream: bool | None
    max_tokens: Annotated[int | None, Field(ge=1, description="Another name of `max_output_tokens`.")]
    temperature: float | None
    top_p: float | None
    user: str | None
    safety_identifier: str | None
    prompt_cache_key: str | None
    prompt_cache_options: dict[str, Any] | None
    prompt_cache_retention: str | None
    service_tier: str | None


class ResponsesRequest(_OfChat, total=False):
    """OpenAI's `POST /v1/responses`."""

    input: Annotated[
        str | Array[dict[str, Any]] | None,
        Field(
            description="A text, or items: messages, `function_call`, `function_call_output`, `reasoning`, "
            "`item_reference`. Required without `previous_response_id`.",
            examples=["Say hello."],
        ),
    ]
    messages: Annotated[Array[dict[str, Any]] | None, Field(description="A chat's messages, instead of `input`.")]
    instructions: Annotated[str | None, Field(description="A system message of this response only; not carried over.")]
    previous_response_id: Annotated[str | None, Field(description="The stored response that this request continues.")]
    store: Annotated[bool | None, Field(description="Whether the response is stored; true by default.")]
    stream_options: Annotated[ResponsesStreamOptions, closed(ResponsesStreamOptions)] | None
    tools: Annotated[
        Array[dict[str, Any]] | None,
        Field(description="Functions, custom tools, namespaces of both; hosted tools are left out."),
    ]
    tool_choice: str | dict[str, Any] | None
    parallel_tool_calls: bool | None
    max_tool_calls: Annotated[int | None, Field(ge=1, description="Without effect: it bounds only built-in tools.")]
    max_output_tokens: Annotated[int | None, Field(ge=1)]
    top_logprobs: Annotated[int | None, Field(ge=0, le=20)]
    include: Annotated[
        Array[str] | None,
        Field(description=f"Any of {', '.join(INCLUDABLE)}. Others are ignored."),
    ]
    text: Text | None
    reasoning: Reasoning | None
    metadata: Annotated[
        Object[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None,
        Field(max_length=16, description="Kept with the response."),
    ]
    truncation: Annotated[
        str | None,
        Field(description="`auto` leaves out the oldest messages of a conversation that is too long for the model."),
    ]


TRANSLATED = REFUSED.keys() | ResponsesRequest.__annotations__.keys() - _OfChat.__annotations__.keys()


def check(request: Mapping[str, Any], ignored: set[str]) -> None:
    """Raises ApiError 400 for an unsupported field; values of `include` that belong to hosted tools are ignored."""
    for name, advice in REFUSED.items():
        if request.get(name) and not (name == "n" and request[name] == 1):
            raise unsupported_parameter(name, advice)
    if request.get("truncation") not in (None, "disabled", "auto"):
        raise invalid_value("truncation", "must be auto or disabled")
    ignored.update(f"include.{name}" for name in request.get("include") or () if name not in INCLUDABLE)
    for name in ("context", "mode"):
        if (request.get("reasoning") or {}).get(name) not in (None, "auto", "standard"):
            raise unsupported_parameter(f"reasoning.{name}", "leave it out: the model decides")
    if request.get("stream_options") and not request.get("stream"):
        raise invalid_value("stream_options", "is only for streams; set `stream` to true, or leave it out")
    if request.get("input") is not None and request.get("messages") is not None:
        raise invalid_value("messages", "excludes `input`; send one of them")
