"""Megabytes of base64 and the JSON around them, a step at a time.

Codec and parser hold the interpreter's lock for as long as they work, so that a thread would not free the event loop.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Generator
from typing import Any, TypeVar

import orjson

STEP_BYTES = 1 << 20  # base64 for about 2 ms
LONG_BYTES = 1 << 16  # of JSON without a quote: half of what is surely cut out
_STEP_CHARS = STEP_BYTES // 3 * 4
_PREFIX_CHARS = 200  # in which a `data:` URL's comma is looked for
_AFTER_STRING = b",:]} \t\r\n"

T = TypeVar("T")
LongTexts = dict[str, memoryview]


def parsed(body: bytes, long: int = LONG_BYTES) -> tuple[Any, LongTexts]:
    """A JSON text, with names instead of its long strings; and these by their names, as they stand in `body`.

    What has an escape in it stays in its place. Raises orjson.JSONDecodeError.
    """
    view, texts, rest = memoryview(body), LongTexts(), []
    done = probe = 0  # a string of twice the length has no quote for `long` bytes from one of these places on
    while (end := body.find(b'"', probe)) >= 0:
        start = body.rfind(b'"', done, probe) + 1
        is_string = start > 0 and body[start] not in _AFTER_STRING and body[start - 2 : start - 1] != b"\\"
        if end - probe >= long and is_string and body.find(b"\\", start, end) < 0:
            name = f"text at {start}"
            texts[name] = view[start:end]
            rest += [body[done:start], name.encode()]
            done = end
        probe = max(probe + long, end)
    return orjson.loads(b"".join((*rest, body[done:])) if rest else body), texts


def decoded(text: str | memoryview) -> Generator[None, None, bytes]:
    """The bytes of a base64 text; a `data:` prefix is not part of it. Raises ValueError when it is no base64."""
    head = text[:_PREFIX_CHARS]
    head = head if isinstance(head, str) else bytes(head).decode("latin-1")
    start = head.find(",") + 1 if head.startswith("data:") else 0
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
