"""Request bodies of the OpenAI routes, checked here and shown in the OpenAPI page, and the parts of answers' schemas.

Bodies are checked as parsed, never copied: fields that are not listed are forwarded as they came.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
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


TEXT = {"type": "string"}
COUNT = {"type": "integer", "minimum": 0}


def record(optional: Mapping[str, Any] = MappingProxyType({}), /, **required: Any) -> dict[str, Any]:
    """The JSON schema of an object with these fields."""
    return {"type": "object", "required": list(required), "properties": {**optional, **required}}


def events(words: str) -> dict[str, dict[str, Any]]:
    """A stream of server-sent events as one of a status' answers: the schema is that of one, `words` say which."""
    event = record({"event": TEXT}, data={"type": "string", "description": "JSON, but for `[DONE]`"})
    return {"text/event-stream": event | {"description": words}}
