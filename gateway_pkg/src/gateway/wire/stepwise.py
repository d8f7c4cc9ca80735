"""Large parts of an answer, a step at a time: streams, base64, lists of numbers, and the JSON around them.

Codec and parser hold the interpreter's lock for as long as they work, so that a thread would not free the event loop.
"""

from __future__ import annotations

import asyncio
import base64
from array import array
from collections.abc import Generator
from typing import Any, TypeVar

import orjson

STEP_BYTES = 1 << 20  # base64 for about 2 ms
STEP_ITEMS = 5_000  # of a conversation for about 20 ms
LONG_BYTES = 1 << 16  # of JSON without a quote: half of what is surely cut out
_STEP_CHARS = STEP_BYTES // 3 * 4
_PREFIX_CHARS = 200  # in which a `data:` URL's comma is looked for
_AFTER_STRING = b",:]} \t\r\n"
TURN_BYTES = 1 << 15  # of a stream, between two turns of the event loop: 10,000 comments, 700 deltas, about 40 ms
# What is parsed at once. A list or an object costs 200 to 500 ns, four times as much as a number or a text.
PARSED_MAX_BYTES = 1 << 24
VALUES_MAX = 1_000_000
_UNCOUNTED_BYTES = 1 << 18
LIST_BYTES = 1 << 10  # from which a list of numbers is cut out
LIST_STEP = 1 << 18  # of lists of numbers: 3 to 10 ms

T = TypeVar("T")
LongTexts = dict[str, memoryview]


class TooMuchJson(orjson.JSONDecodeError):
    """JSON that would hold the event loop, or fill the memory, while it is parsed."""


def loads(body: bytes, most_bytes: int = PARSED_MAX_BYTES) -> Any:
    """A JSON text's value, within 100 ms and 100 MB; raises TooMuchJson beyond, orjson.JSONDecodeError."""
    if len(body) > _UNCOUNTED_BYTES:
        if len(body) > most_bytes:
            raise TooMuchJson(f"JSON of more than {most_bytes} bytes", "", 0)
        if is_heavy(body):
            raise TooMuchJson("JSON of too many values", "", 0)
    return orjson.loads(body)


def is_heavy(text: bytes | str, most: int = VALUES_MAX) -> bool:
    """Whether a JSON text has more values than that, a list or an object counted as four."""
    comma, *brackets = (b",", b"[", b"{") if isinstance(text, bytes) else (",", "[", "{")
    return text.count(comma) + 4 * sum(map(text.count, brackets)) > most  # type: ignore[arg-type]  # of one kind


def parsed(body: bytes, long: int = LONG_BYTES) -> tuple[Any, LongTexts]:
    """A JSON text, with names instead of its long strings; and these by their names, as they stand in `body`.

    What has an escape in it stays in its place. Raises as `loads`, but for the length.
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
    return loads(b"".join((*rest, body[done:])) if rest else body, len(body)), texts


def without_numbers(body: bytes, long: int = LIST_BYTES) -> Generator[None, None, tuple[Any, LongTexts]]:
    """A JSON text, with names instead of its long lists of numbers; and these by their names, as they stand in `body`.

    Raises as `loads`, of which the limits are for what is left.
    """
    if len(body) <= _UNCOUNTED_BYTES:
        return orjson.loads(body), {}
    if 4 * body.count(b"[") > VALUES_MAX:
        raise TooMuchJson("JSON of too many values", "", 0)
    view, lists, rest = memoryview(body), LongTexts(), []
    done = at = seen = 0
    while (end := body.find(b"]", at)) >= 0:
        start = body.rfind(b"[", at, end)
        # Were it within a string, the name's quotes would end that: then the rest is no JSON.
        if end - start >= long and start >= 0 and body.find(b'"', start, end) < 0 and body.find(b"{", start, end) < 0:
            name = f"list at {start}"
            lists[name] = view[start : end + 1]
            rest += [body[done:start], b'"%b"' % name.encode()]
            done = end + 1
        at = end + 1
        if at - seen >= LIST_STEP:
            seen = at
            yield
    return loads(b"".join((*rest, body[done:]))), lists


def numbers_in(text: memoryview) -> Generator[None, None, array[float]]:
    """The numbers of a list with its brackets; raises ValueError, TypeError for another content."""
    numbers, at, end = array("d"), 1, len(text) - 1
    while True:
        piece = bytes(text[at : min(at + LIST_STEP, end)])
        is_last = at + LIST_STEP >= end
        if not is_last:
            piece = piece[: max(piece.rfind(b","), 0)]
        if not piece.strip() and end > 1:
            raise ValueError("nothing between two commas")
        numbers.extend(array("d", orjson.loads(b"[%b]" % piece)))
        if is_last:
            return numbers
        at += len(piece) + 1
        yield


def decoded(text: str | memoryview) -> Generator[None, None, bytes]:
    """The bytes of a base64 text, without its `data:` prefix; raises ValueError for another text."""
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
