"""What an adapter for a chat-like protocol has: the backend's request, and OpenAI's answer, whole or streamed."""

from __future__ import annotations

import struct
from array import array
from base64 import b64encode
from collections.abc import Generator, Mapping
from typing import Any, NamedTuple, Protocol

import orjson

from gateway.wire.stepwise import LIST_STEP, LongTexts, TooMuchJson, loads, numbers_in, parsed, without_numbers

FLOATS_AT_ONCE = 1 << 16
QUOTED_BYTES = 500  # of a malformed answer


# Names of a model's thoughts: llama.cpp's and LiteLLM's, vLLM's and OpenRouter's, Ollama's and the earlier gateway's.
THOUGHTS = ("reasoning_content", "reasoning", "thinking")


class AnswerError(Exception):
    """A backend's answer is malformed, or is an error."""


class ErrorStatus(AnswerError):
    """The backend answered with an error status; `body` and `retry_after`, the header, are the answer's."""

    def __init__(self, status: int, body: bytes, retry_after: bytes | None = None) -> None:
        super().__init__(f"status {status}")
        self.status = status
        self.body = body
        self.retry_after = retry_after


class ErrorInside(AnswerError):
    """An answer of status 200, or an event of a stream, that holds an error; `content` is the JSON object."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        super().__init__(quoted(content.get("error"), 300))
        self.content = content


def check_inside(content: Any) -> None:
    """Raises ErrorInside when an answer of status 200, or an event of a stream, holds an error."""
    if isinstance(content, dict) and content.get("error"):
        raise ErrorInside(content)


def json_value(body: bytes) -> Any:
    """A whole answer that is JSON, and can be written again; raises AnswerError, ErrorInside where it is an error."""
    try:
        content = loads(body)
    except orjson.JSONDecodeError as error:
        raise _no_json(error, body) from None
    check_inside(content)
    written(content)
    return content


def json_object(body: bytes) -> dict[str, Any]:
    """As `json_value`, for an answer that must be an object; raises AnswerError for other JSON."""
    return _object(json_value(body))


def json_and_texts(body: bytes) -> tuple[dict[str, Any], LongTexts]:
    """As `json_object`, with names in place of its long texts, and the texts by their names."""
    try:
        content, texts = parsed(body)
    except orjson.JSONDecodeError as error:
        raise _no_json(error, body) from None
    check_inside(content)
    written(content)
    return _object(content), texts


def json_object_in_steps(body: bytes) -> Generator[None, None, tuple[dict[str, Any], LongTexts]]:
    """As `json_object`, of any size, with names in place of long lists of numbers, and the lists by their names."""
    try:
        content, lists = yield from without_numbers(body)
    except orjson.JSONDecodeError as error:
        raise _no_json(error, body) from None
    check_inside(content)
    return _object(content), lists


def _no_json(error: orjson.JSONDecodeError, body: bytes) -> AnswerError:
    beginning = body[:QUOTED_BYTES].decode("utf-8", "replace")
    return AnswerError(error.msg if isinstance(error, TooMuchJson) else f"no JSON: {beginning}")


def _object(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise AnswerError("JSON other than an object")
    return content


def written(content: Any) -> bytes:
    """A translated answer as JSON; raises AnswerError where the answer is nested too deeply to be written."""
    try:
        return orjson.dumps(content)
    except TypeError:
        raise AnswerError("JSON that is nested too deeply") from None


def event(content: Any) -> bytes:
    """A translated answer as one server-sent event; raises as `written`."""
    return b"data: " + written(content) + b"\n\n"


def quoted(content: Any, chars: int) -> str:
    """The beginning of what a backend says, as text."""
    if isinstance(content, str):
        return content[:chars]
    try:
        return orjson.dumps(content)[:chars].decode("utf-8", "ignore")
    except TypeError:
        return "(nested too deeply to be told)"


def vector_in(embedding: Any, lists: LongTexts) -> Generator[None, None, array[float]]:
    """The numbers of an embedding that `json_object_in_steps` read, which may be a name; raises AnswerError."""
    text = lists.get(embedding) if isinstance(embedding, str) else None
    try:
        if text is not None:
            return (yield from numbers_in(text))
        if isinstance(embedding, list):
            return array("d", embedding)  # the quickest look at every number
    except (ValueError, TypeError, OverflowError):
        pass
    raise AnswerError("an embedding other than a list of numbers")


def embeddings_written(
    answer: dict[str, Any], lists: LongTexts, encoding_format: str | None
) -> Generator[None, None, bytes]:
    """OpenAI's answer of `Adapter.embeddings` as JSON, its numbers as they came, or in base64; raises AnswerError."""
    seen = 0
    for item in answer["data"]:
        name = item["embedding"]
        vector = yield from vector_in(name, lists)
        if encoding_format == "base64":
            item["embedding"] = yield from _base64(vector)
        elif isinstance(name, str):
            item["embedding"] = orjson.Fragment(bytes(lists[name]))
        seen += len(vector) * 8
        if seen >= LIST_STEP:
            seen = 0
            yield
    return written(answer)


def _base64(vector: array[float]) -> Generator[None, None, str]:
    """OpenAI's other form: float32, little-endian."""
    packed = bytearray()
    try:
        for start in range(0, len(vector), FLOATS_AT_ONCE):
            if start:
                yield
            floats = vector[start : start + FLOATS_AT_ONCE]
            packed += struct.pack(f"<{len(floats)}f", *floats)
    except OverflowError:
        raise AnswerError("an embedding beyond float32") from None
    return b64encode(packed).decode()


class Outgoing(NamedTuple):
    """A request for a backend: `path` below the origin of its base_url, and the JSON body."""

    path: bytes
    body: bytes


class StreamTranslator(Protocol):
    """One stream, fed as it arrives.

    `is_done` tells whether `data: [DONE]` has been given out; `usage` is OpenAI's usage object once it is known.
    """

    is_done: bool
    usage: dict[str, Any] | None

    def feed(self, data: bytes) -> list[bytes]:
        """Whole server-sent events of OpenAI's API for what has arrived, `data: [DONE]` after the last one.

        Raises AnswerError for an error of the backend, and for data that its protocol does not have.
        """

    def end(self) -> list[bytes]:
        """The last events at the clean end of the backend's stream; raises AnswerError for an incomplete stream."""


class Adapter:
    """Between OpenAI's API and a backend's own; it has what the protocol's capabilities ask for.

    A `capability` is one of chat, completions, embeddings.
    """

    def request(self, capability: str, request: Mapping[str, Any], model: str) -> Outgoing:
        """The backend's request for `model`; raises ApiError 400 that names a field without a counterpart."""
        raise NotImplementedError

    def answer(self, capability: str, request: Mapping[str, Any], model: str, body: bytes) -> dict[str, Any]:
        """OpenAI's answer to a chat or a completion for a whole body of status 200; raises AnswerError."""
        raise NotImplementedError

    def embeddings(
        self, request: Mapping[str, Any], model: str, body: bytes
    ) -> Generator[None, None, tuple[dict[str, Any], LongTexts]]:
        """OpenAI's answer to embeddings, as `json_object_in_steps` has it; raises AnswerError."""
        raise NotImplementedError

    def stream(self, capability: str, request: Mapping[str, Any], model: str) -> StreamTranslator:
        """The translator for the answer to a request that asked for a stream."""
        raise NotImplementedError
