"""Starts the parts of the gateway in order, and stops them in the opposite order, each within its time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

log = logging.getLogger(__name__)

# A step of the stop that takes longer is left: more than what is still said to backends has (FAREWELL_SEC).
STOP_STEP_SEC = 6.0
CUT_STEP_SEC = 0.5  # the same after a second signal


class Steps(AsyncExitStack):
    """Closing it ends all that was started; what does not end in its time is left."""

    is_cut = False  # whether a stop waits for its steps no longer than CUT_STEP_SEC each

    async def run(self, start: Callable[[], Awaitable[None]], stop: Callable[[], Awaitable[None]]) -> None:
        await start()
        self.at_stop(stop)

    def at_stop(self, stop: Callable[[], Awaitable[None]]) -> None:
        self.push_async_callback(self._ended, stop)

    async def _ended(self, stop: Callable[[], Awaitable[None]]) -> None:
        step = asyncio.ensure_future(stop())
        loop = asyncio.get_running_loop()
        began = loop.time()
        while not step.done() and loop.time() - began < (CUT_STEP_SEC if self.is_cut else STOP_STEP_SEC):
            await asyncio.wait({step}, timeout=0.1)
        if step.done():
            step.result()
        else:
            step.cancel()
            name = getattr(stop, "__qualname__", stop)
            log.error("%s did not end within %.1f s and was abandoned", name, loop.time() - began)
