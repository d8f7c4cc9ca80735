"""How late the event loop is: what delays its sampler delays every stream."""

from __future__ import annotations

import asyncio
from time import perf_counter

from gateway.observe.metrics import Histogram

# Often enough to meet a stall of its length; four timers a second cost nothing.
PERIOD_SEC = 0.25


class LagSampler:
    """From `start` to `stop`, notes in `histogram` by how many milliseconds each of its timers was late."""

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        due = perf_counter() + PERIOD_SEC
        self._timer = asyncio.get_running_loop().call_later(PERIOD_SEC, self._wake, due)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _wake(self, due: float) -> None:
        self._histogram.observe(max(0.0, perf_counter() - due) * 1000)
        self.start()
