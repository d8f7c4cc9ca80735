"""Waiting for what others do: another thread or process, or what runs on the same event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
PATIENCE_SEC = 30.0  # after which what a test waits for will not come: many times what the slowest machine needs


def until(get: Callable[[], T | None], problem: str = "not true", seconds: float = PATIENCE_SEC) -> T:
    """What `get` gives, as soon as that is true; fails with `problem` after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (found := get()):
        assert time.monotonic() < deadline, f"{problem} within {seconds:g} s"
        time.sleep(0.01)
    return found


async def until_async(condition: Callable[[], object]) -> None:
    """The same on an event loop, for what has no event to wait for."""
    async with asyncio.timeout(PATIENCE_SEC):
        while not condition():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.002)
