"""Base64 of megabytes, a step at a time: the codec holds the interpreter's lock, so that a thread would not help."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Generator
from typing import TypeVar

STEP_BYTES = 1 << 20  # base64 for about 2 ms
_STEP_CHARS = STEP_BYTES // 3 * 4

T = TypeVar("T")


def decoded(text: str) -> Generator[None, None, bytes]:
    """The bytes of a base64 text; a `data:` prefix is not part of it. Raises ValueError when it is no base64."""
    start = text.find(",") + 1 if text.startswith("data:") else 0
    parts = []
    try:
        for at in range(start, len(text), _STEP_CHARS):
            if at > start:
                yield
            parts.append(base64.b64decode(text[at : at + _STEP_CHARS], validate=True))
    except ValueError:  # binascii.Error is one
        raise ValueError("no base64") from None
    return b"".join(parts)


def encoded(data: bytes) -> Generator[None, None, str]:
    """The base64 text of bytes."""
    parts = []
    step = STEP_BYTES // 3 * 3
    for at in range(0, len(data), step):
        if at:
            yield
        parts.append(base64.b64encode(data[at : at + step]).decode("ascii"))
    return "".join(parts)


async def run(steps: Generator[None, None, T]) -> T:
    """What the steps return; the event loop has its turn between them."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        await asyncio.sleep(0)
