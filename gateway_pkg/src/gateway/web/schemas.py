"""Request bodies of the OpenAI routes: what is checked here, and shown in the OpenAPI page.

Bodies are checked as parsed, never copied: fields that are not listed are forwarded as they came.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, ConfigDict, Field, with_config
from typing_extensions import TypedDict

from gateway.routing.policy import MODEL_MAX_CHARS
from gateway.web.fields import Array

_OPEN = ConfigDict(extra="allow", strict=True)
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


@with_config(_OPEN)
class Message(TypedDict):
    role: str
    content: NotRequired[str | Array[dict[str, Any]] | None]


@with_config(_OPEN)
class StreamOptions(TypedDict):
    include_usage: NotRequired[bool | None]


@with_config(_OPEN)
class _Sampling(TypedDict):
    model: NotRequired[Model | None]
    stream: NotRequired[bool | None]
    stream_options: NotRequired[StreamOptions | None]
    temperature: NotRequired[float | None]
    top_p: NotRequired[float | None]
    n: NotRequired[int | None]
    max_tokens: NotRequired[int | None]
    stop: NotRequired[str | Array[str] | None]
    seed: NotRequired[int | None]
    presence_penalty: NotRequired[float | None]
    frequency_penalty: NotRequired[float | None]
    user: NotRequired[str | None]


@with_config(_OPEN)
class ChatRequest(_Sampling):
    """OpenAI's `POST /v1/chat/completions`."""

    messages: Annotated[Array[Message], Field(min_length=1)]
    max_completion_tokens: NotRequired[int | None]
    tools: NotRequired[Array[dict[str, Any]] | None]
    tool_choice: NotRequired[str | dict[str, Any] | None]
    parallel_tool_calls: NotRequired[bool | None]
    response_format: NotRequired[dict[str, Any] | None]
    logprobs: NotRequired[bool | None]
    top_logprobs: NotRequired[int | None]


@with_config(_OPEN)
class CompletionRequest(_Sampling):
    """OpenAI's `POST /v1/completions`."""

    prompt: Texts
    echo: NotRequired[bool | None]
    logprobs: NotRequired[int | None]
    suffix: NotRequired[str | None]


@with_config(_OPEN)
class EmbeddingRequest(TypedDict):
    """OpenAI's `POST /v1/embeddings`."""

    input: Texts
    model: NotRequired[Model | None]
    encoding_format: NotRequired[Literal["float", "base64"] | None]
    dimensions: NotRequired[int | None]
    user: NotRequired[str | None]
    stream: NotRequired[Whole | None]


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
