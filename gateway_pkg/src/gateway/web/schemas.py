"""Request bodies of the OpenAI routes: what is checked here, and shown in the OpenAPI page.

Bodies are checked as parsed, never copied: fields that are not listed are forwarded as they came.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Required

from pydantic import AfterValidator, Field, with_config
from typing_extensions import TypedDict

from gateway.routing.policy import MODEL_MAX_CHARS
from gateway.web.fields import OPEN, Array

Model = Annotated[
    str,
    Field(
        max_length=MODEL_MAX_CHARS,
        description="An alias, a served model, `<class>:<model>`, or `auto`.",
        examples=["default", "auto"],
    ),
]


def _is_false(value: bool) -> bool:
    if value:
        raise ValueError("this answer comes whole")
    return value


# Not Literal[False], to which Pydantic would make 0, though the body goes on as it came.
Whole = Annotated[
    bool, AfterValidator(_is_false), Field(description="The answer comes whole.", json_schema_extra={"const": False})
]


# A text, several, or either as token ids.
Texts = str | Array[str] | Array[int] | Array[Array[int]]


class Message(TypedDict, total=False):
    role: Required[str]
    content: str | Array[dict[str, Any]] | None


class StreamOptions(TypedDict, total=False):
    include_usage: bool | None


@with_config(OPEN)
class _Sampling(TypedDict, total=False):
    model: Model | None
    stream: bool | None
    stream_options: StreamOptions | None
    temperature: float | None
    top_p: float | None
    n: int | None
    max_tokens: int | None
    stop: str | Array[str] | None
    seed: int | None
    presence_penalty: float | None
    frequency_penalty: float | None
    user: str | None


class ChatRequest(_Sampling, total=False):
    """OpenAI's `POST /v1/chat/completions`."""

    messages: Required[Annotated[Array[Message], Field(min_length=1)]]
    max_completion_tokens: int | None
    tools: Array[dict[str, Any]] | None
    tool_choice: str | dict[str, Any] | None
    parallel_tool_calls: bool | None
    response_format: dict[str, Any] | None
    logprobs: bool | None
    top_logprobs: int | None


class CompletionRequest(_Sampling, total=False):
    """OpenAI's `POST /v1/completions`."""

    prompt: Required[Texts]
    echo: bool | None
    logprobs: int | None
    suffix: str | None


@with_config(OPEN)
class EmbeddingRequest(TypedDict, total=False):
    """OpenAI's `POST /v1/embeddings`."""

    input: Required[Texts]
    model: Model | None
    encoding_format: Literal["float", "base64"] | None
    dimensions: int | None
    user: str | None
    stream: Whole | None


# What the gateway vouches for of an answer: backends fill in the rest.
_USAGE: dict[str, Any] = {
    "type": "object",
    "properties": {
        "prompt_tokens": {"type": "integer", "minimum": 0},
        "completion_tokens": {"type": "integer", "minimum": 0},
        "total_tokens": {"type": "integer", "minimum": 0},
    },
}


def _answer(kind: str, **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": list(properties),
        "properties": {"object": {"type": "string", "examples": [kind]}, "usage": _USAGE, **properties},
    }


_LIST = {"type": "array", "items": {"type": "object"}}
CHAT_ANSWER = _answer("chat.completion", choices=_LIST)
COMPLETION_ANSWER = _answer("text_completion", choices=_LIST)
EMBEDDING_ANSWER = _answer("list", data=_LIST)


def events(words: str) -> dict[str, dict[str, Any]]:
    """A stream of server-sent events as one of a status' answers: the schema is that of one, `words` say which."""
    fields = {"event": {"type": "string"}, "data": {"type": "string", "description": "JSON, but for `[DONE]`"}}
    return {"text/event-stream": {"type": "object", "description": words, "required": ["data"], "properties": fields}}
