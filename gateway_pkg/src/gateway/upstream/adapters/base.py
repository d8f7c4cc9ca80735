"""What an adapter for a chat-like protocol offers: a request there, a whole answer or a stream back."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import orjson


class AnswerError(Exception):
    """A backend's answer that is no answer: not of its protocol, cut short, or an error told with status 200."""


def json_object(body: bytes) -> dict[str, Any]:
    """A whole answer that is a JSON object; raises AnswerError."""
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise AnswerError("it sent no JSON") from None
    if not isinstance(content, dict):
        raise AnswerError("it sent JSON that is no object")
    return content


def numbers(vector: Any) -> array[float]:
    """An embedding's numbers; raises AnswerError where it is none."""
    try:
        if isinstance(vector, list):
            return array("d", vector)  # the quickest look at every number
    except (TypeError, OverflowError):
        pass
    raise AnswerError("an embedding that is no list of numbers")


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

        Raises:
            AnswerError: the backend told of an error, or sent what is none of its protocol.
        """
        ...

    def end(self) -> list[bytes]:
        """What is left at the clean end of the backend's stream.

        Raises:
            AnswerError: the stream was not complete.
        """
        ...


class Adapter(Protocol):
    """Between OpenAI's API and a backend's own. A `capability` is one of chat, completions, embeddings."""

    def request(self, capability: str, request: Mapping[str, Any], model: str) -> Outgoing:
        """The backend's request for `model`; raises ApiError 400 that names a field it has no counterpart for."""
        ...

    def answer(self, capability: str, request: Mapping[str, Any], model: str, body: bytes) -> dict[str, Any]:
        """OpenAI's answer for a whole body of status 200; raises AnswerError."""
        ...

    def stream(self, capability: str, request: Mapping[str, Any], model: str) -> StreamTranslator:
        """The translator for the answer to a request that asked for a stream."""
        ...
