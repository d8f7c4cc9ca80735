"""OpenAI's Responses API, sans I/O: the fields of a request; a field that a chat lacks is refused by name.

The reference is the `openai` SDK's own types. Fields that the API does not define go to the backend unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from gateway.errors import invalid_value, unsupported_parameter
from gateway.features.conversations.stored import INCLUDABLE, check_include
from gateway.routing.policy import MODEL_MAX_CHARS
from gateway.web.fields import CLOSED, Array, Object, closed

_OPEN = ConfigDict(extra="allow", strict=True)

# Fields of the API without a counterpart, each with advice what to do instead.
REFUSED = {
    "access_programs": "leave it out: there are no such programs here",
    "background": "leave it out, and wait for the answer or stream it",
    "context_management": "leave it out, and shorten the conversation yourself",
    "conversation": "chain responses by `previous_response_id`",
    "image": "leave it out: images go to the model unchanged",
    "moderation": "leave it out: nothing is moderated here",
    "n": "ask again: a response is one answer",
    "prompt": "send the text itself as `instructions` and `input`",
}


@with_config(_OPEN)
class Reasoning(TypedDict):
    effort: NotRequired[Annotated[str | None, Field(description="Becomes the chat's `reasoning_effort`.")]]
    summary: NotRequired[
        Annotated[
            Literal["auto", "concise", "detailed"] | None,
            Field(description="The answer has the model's whole reasoning as `summary` instead of `content`."),
        ]
    ]
    generate_summary: NotRequired[
        Annotated[Literal["auto", "concise", "detailed"] | None, Field(description="The former name of `summary`.")]
    ]


@with_config(_OPEN)
class Text(TypedDict):
    format: NotRequired[Annotated[dict[str, Any] | None, Field(description="`text`, `json_object`, `json_schema`.")]]
    verbosity: NotRequired[str | None]


@with_config(CLOSED)
class ResponsesStreamOptions(TypedDict):
    include_obfuscation: NotRequired[
        Annotated[bool | None, Field(description="Pads deltas, so that their lengths tell less; off by default.")]
    ]
    include_usage: NotRequired[Annotated[bool | None, Field(description="Usage always comes with the last event.")]]


@with_config(_OPEN)
class ResponsesRequest(TypedDict):
    """OpenAI's `POST /v1/responses`."""

    model: NotRequired[
        Annotated[
            str | None,
            Field(max_length=MODEL_MAX_CHARS, description="An alias, a served model, `<class>:<model>`, or `auto`."),
        ]
    ]
    input: NotRequired[
        Annotated[
            str | Array[dict[str, Any]] | None,
            Field(
                description="A text, or items: messages, `function_call`, `function_call_output`, `reasoning`, "
                "`item_reference`. Required without `previous_response_id`.",
                examples=["Say hello."],
            ),
        ]
    ]
    messages: NotRequired[
        Annotated[Array[dict[str, Any]] | None, Field(description="A chat's messages, instead of `input`.")]
    ]
    instructions: NotRequired[
        Annotated[str | None, Field(description="The system message of this response only; not carried over.")]
    ]
    previous_response_id: NotRequired[
        Annotated[str | None, Field(description="The stored response whose conversation this request continues.")]
    ]
    store: NotRequired[Annotated[bool | None, Field(description="Whether the response is stored; true by default.")]]
    stream: NotRequired[bool | None]
    stream_options: NotRequired[Annotated[ResponsesStreamOptions, closed(ResponsesStreamOptions)] | None]
    tools: NotRequired[
        Annotated[Array[dict[str, Any]] | None, Field(description="Function tools; others are refused by name.")]
    ]
    tool_choice: NotRequired[str | dict[str, Any] | None]
    parallel_tool_calls: NotRequired[bool | None]
    max_tool_calls: NotRequired[
        Annotated[int | None, Field(ge=1, description="Accepted without effect: it bounds only built-in tools.")]
    ]
    max_output_tokens: NotRequired[Annotated[int | None, Field(ge=1)]]
    max_tokens: NotRequired[Annotated[int | None, Field(ge=1, description="Another name of `max_output_tokens`.")]]
    temperature: NotRequired[float | None]
    top_p: NotRequired[float | None]
    top_logprobs: NotRequired[Annotated[int | None, Field(ge=0, le=20)]]
    include: NotRequired[
        Annotated[
            Array[str] | None,
            Field(description=f"Any of {', '.join(INCLUDABLE)}. Reasoning is plain text in its item, not encrypted."),
        ]
    ]
    text: NotRequired[Text | None]
    reasoning: NotRequired[Reasoning | None]
    metadata: NotRequired[
        Annotated[
            Object[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None,
            Field(max_length=16, description="Kept with the response."),
        ]
    ]
    truncation: NotRequired[
        Annotated[str | None, Field(description="`disabled`: the backend refuses a conversation that is too long.")]
    ]
    user: NotRequired[str | None]
    safety_identifier: NotRequired[str | None]
    prompt_cache_key: NotRequired[str | None]
    prompt_cache_options: NotRequired[dict[str, Any] | None]
    prompt_cache_retention: NotRequired[str | None]
    service_tier: NotRequired[str | None]


def check(request: Mapping[str, Any]) -> None:
    """Raises ApiError 400 for an unsupported field."""
    for name, advice in REFUSED.items():
        if request.get(name) and not (name == "n" and request[name] == 1):
            raise unsupported_parameter(name, advice)
    if request.get("truncation") not in (None, "disabled"):
        raise unsupported_parameter("truncation", "leave it out: the gateway does not shorten conversations")
    for index, name in enumerate(request.get("include") or ()):
        check_include(f"include.{index}", name)
    for name in ("context", "mode"):
        if (request.get("reasoning") or {}).get(name) not in (None, "auto", "standard"):
            raise unsupported_parameter(f"reasoning.{name}", "leave it out: the model decides")
    if request.get("stream_options") and not request.get("stream"):
        raise invalid_value("stream_options", "is only for streams; set `stream` to true, or leave it out")
    if request.get("input") is not None and request.get("messages") is not None:
        raise invalid_value("messages", "excludes `input`; send one of them")
