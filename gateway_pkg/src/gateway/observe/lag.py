"""How late the event loop is: what delays its sampler delays every stream."""

from __future__ import annotations

import asyncio
from time import perf_counter

from gateway import background
from gateway.observe.metrics import Histogram

# Often enough to meet a stall of its length; four timers a second cost nothing.
PERIOD_SEC = 0.25


class LagSampler(background.Worker):
    """Notes in `histogram` by how many milliseconds each of its timers was late."""

    task = "event_loop_lag"

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram

    async def _work(self) -> None:
        while True:
            due = perf_counter() + PERIOD_SEC
            await asyncio.sleep(PERIOD_SEC)
            self._histogram.observe(max(0.0, perf_counter() - due) * 1000)
