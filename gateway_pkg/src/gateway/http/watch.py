"""Cancels the work for clients that left.

Only `receive()` tells of a client's leaving, and waiting on it takes a task of its own. Most requests are answered
before that would be worth it, so a task is made only for those that one tick finds old enough.
"""

from __future__ import annotations

import asyncio
from typing import cast

from starlette.types import Receive

TICK_SEC = 0.004


class Watched:
    """One request's work. `is_gone` once its client has left."""

    __slots__ = ("_receive", "_task", "_watcher", "is_done", "is_gone")

    def __init__(self, receive: Receive, task: asyncio.Task[object]) -> None:
        self._receive = receive
        self._task = task
        self._watcher: asyncio.Task[None] | None = None
        self.is_done = False
        self.is_gone = False

    def done(self) -> None:
        """The work is over: its client may do as it likes."""
        self.is_done = True
        if self._watcher is not None:
            self._watcher.cancel()

    def take_back_cancel(self) -> None:
        """The cancellation was for the work, not for the server's task around it."""
        self._task.uncancel()

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._watcher = loop.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self.is_done:
            self.is_gone = True
            self._task.cancel()


class Watch:
    """Begins to watch a client between one and two ticks after its request's work has begun."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._young: list[Watched] = []
        self._older: list[Watched] = []
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, receive: Receive) -> Watched:
        """Watches for the current task, which is cancelled when its client leaves; `done` must follow."""
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        # With the loop given, Python 3.11 need not ask the kernel for its process id.
        task = cast("asyncio.Task[object]", asyncio.current_task(self._loop))
        watched = Watched(receive, task)
        self._young.append(watched)
        if self._timer is None:
            self._timer = self._loop.call_later(TICK_SEC, self._tick, self._loop)
        return watched

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        for watched in self._older:
            if not watched.is_done:
                watched.start(loop)
        self._older = [watched for watched in self._young if not watched.is_done]
        self._young = []
        self._timer = loop.call_later(TICK_SEC, self._tick, loop) if self._older else None
