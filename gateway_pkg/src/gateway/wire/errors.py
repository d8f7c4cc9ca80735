"""How a request to a backend can fail."""

from __future__ import annotations

from typing import Literal


class UpstreamError(Exception):
    """A request to a backend failed.

    `sendings`: how often the request went out, where no byte of the response came or no connection could be made.
    """

    sent_first_byte = False
    sendings = 0


class ConnectFailed(UpstreamError):
    """No connection: refused, unknown host, TLS, connect timeout, or no free one within the wait."""


class PoolExhausted(ConnectFailed):
    """All connections stayed in use for the whole wait; the backend itself may be well."""


class UpstreamTimeout(UpstreamError):
    """The backend was silent for too long, in `phase`. (A connect timeout is a ConnectFailed.)"""

    def __init__(self, message: str, phase: Literal["first_byte", "idle"]) -> None:
        super().__init__(message)
        self.phase = phase


class UpstreamClosed(UpstreamError):
    """The connection ended before the message did. `sent_first_byte`: at least one byte of the response had come."""

    def __init__(self, message: str, *, sent_first_byte: bool = False) -> None:
        super().__init__(message)
        self.sent_first_byte = sent_first_byte


class ProtocolViolation(UpstreamError):
    """The answer is not HTTP/1.x as this client accepts it."""
