"""Work beside the requests that must not end: what makes it fail is logged, counted, and tried again after a pause."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import ClassVar

log = logging.getLogger(__name__)

RESTART_SEC = 1.0  # so that what fails at once does not keep the loop busy
failures: Counter[str] = Counter()  # by task, since the process began


def failed(task: str) -> None:
    """To be called where an unexpected exception of a background task is handled: logs its traceback, counts it."""
    failures[task] += 1
    log.exception("background task '%s' failed, and is tried again", task)


async def run_forever(task: str, work: Callable[[], Awaitable[None]]) -> None:
    """Awaits `work()`, and again after each failure, until it returns or this is cancelled."""
    while True:
        try:
            await work()
            return
        except asyncio.CancelledError:
            own = asyncio.current_task()
            if own is None or own.cancelling():
                raise
            failed(task)  # something that it waited for was cancelled, and not the task
        except Exception:
            failed(task)
        await asyncio.sleep(RESTART_SEC)


def start(task: str, work: Callable[[], Awaitable[None]], name: str = "") -> asyncio.Task[None]:
    """A task that runs forever; who starts it keeps it, and ends it by `end`. `task` is what metrics call it."""
    return asyncio.create_task(run_forever(task, work), name=name or task)


async def end(running: asyncio.Task[None] | None) -> None:
    """Cancels a task; returns when it has ended."""
    if running is not None:
        running.cancel()
        await asyncio.wait((running,))


class Worker:
    """What works beside the requests from `start` to `stop`; `task` is what metrics call it."""

    task: ClassVar[str]
    _running: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._running = start(self.task, self._work)

    async def stop(self) -> None:
        await end(self._running)

    async def _work(self) -> None:
        raise NotImplementedError
