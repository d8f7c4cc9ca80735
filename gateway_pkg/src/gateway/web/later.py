"""An ASGI app that is made when somebody asks for it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from typing import Generic, TypeVar

from starlette.types import ASGIApp, Receive, Scope, Send

A = TypeVar("A", bound=ASGIApp)


class Later(Generic[A]):
    """A thread makes the app, so that the event loop goes on meanwhile; then the app is kept."""

    def __init__(self, make: Callable[[], A]) -> None:
        self._make = make
        self._made: A | None = None
        self._making = asyncio.Lock()

    def made(self) -> A:
        """The app; made now, in this thread, at the first request for it."""
        if self._made is None:
            self._made = self._make()
        return self._made

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._made is None:
            async with self._making:
                app = await asyncio.to_thread(self.made)
                gc.freeze()  # it lives as long as the process: the collector need not look at it again
        else:
            app = self._made
        await app(scope, receive, send)
