"""Work on a large body, a piece at a time: the event loop has its turn between two, the collector after each."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from contextlib import contextmanager

LARGE_BYTES = 64 * 1024


@contextmanager
def paused(size: int) -> Iterator[None]:
    """For work on a JSON text of `size` bytes, within one turn of the event loop.

    A megabyte may be 450,000 lists, which the collector would go over hundreds of times while they are made: six times
    the time of making them.
    """
    if size < LARGE_BYTES or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        resume()


def resume() -> None:
    """Lets the collector go on in the event loop's next turn: it goes once over all that was made meanwhile."""
    try:
        asyncio.get_running_loop().call_soon(gc.enable)
    except RuntimeError:  # no loop
        gc.enable()


async def turn(size: int) -> None:
    """Lets the event loop have its turn between two pieces of work on a text of `size` bytes, if it is large."""
    if size >= LARGE_BYTES:
        await asyncio.sleep(0)
