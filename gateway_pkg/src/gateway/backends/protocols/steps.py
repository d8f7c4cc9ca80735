"""Talks of several requests with one backend, as steps without I/O: submit, poll, fetch.

What is said is a generator, so that a test reads it byte by byte: it yields an Ask and is sent the Reply, or yields
another Step and is sent an empty one. `converse` does the talking.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, NamedTuple, TypeVar

from gateway.backends.protocols.base import ErrorStatus, json_and_texts, json_object
from gateway.wire.stepwise import LongTexts

T = TypeVar("T")


class Ask(NamedTuple):
    """One request. `path` is below the backend's base_url; one that begins with /v1 loses it where that has a path."""

    method: str
    path: str
    body: bytes = b""
    content_type: str = "application/json"


class Pause(NamedTuple):
    seconds: float


class Reply(NamedTuple):
    """An answer of any status, as it came."""

    status: int
    body: bytes
    retry_after: bytes | None = None

    def content(self) -> bytes:
        """The body of a 2xx; raises ErrorStatus for another status."""
        if not 200 <= self.status < 300:
            raise ErrorStatus(self.status, self.body, self.retry_after)
        return self.body

    def json(self) -> dict[str, Any]:
        """The JSON object of a 2xx; raises ErrorStatus for another status, else as `base.json_object`."""
        return json_object(self.content())

    def json_and_texts(self) -> tuple[dict[str, Any], LongTexts]:
        """The same with names instead of its long texts, and these by their names; raises as `json`."""
        return json_and_texts(self.content())


class Abandoned(Exception):
    """Thrown into the steps when nobody waits for their end any more; they may ask once more, to stop their job."""


Step = Ask | Pause | None  # None as `wire.stepwise` yields it: the event loop has its turn
Steps = Generator[Step, Reply, T]
NOTHING = Reply(0, b"")
