"""What the road to a backend needs of a request."""

from __future__ import annotations

from collections.abc import MutableMapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

from gateway.access.tokens import Caller
from gateway.backends.registry import Route
from gateway.backends.slots import Slots
from gateway.backends.usage import Usage


class Request(Protocol):
    """A request as the dialects hand it over; what the road finds out is recorded in it.

    `slots` is what the request has of a backend now, or had last; times are in milliseconds.
    """

    scope: MutableMapping[str, Any]
    headers: dict[bytes, bytes]
    caller: Caller | None
    route: Route | None
    slots: Slots | None
    usage: Usage | None
    queued_ms: float
    upstream_ms: float
    retried: bool
    has_tools: bool

    def until_disconnect(self) -> AbstractContextManager[None]:
        """Cancels the block when the client disconnects, which ends it with ClientDisconnected."""
