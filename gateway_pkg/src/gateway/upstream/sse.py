"""Server-sent events, sans I/O: what has arrived of a stream, cut at the ends of events."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import orjson

EVENT_MAX_BYTES = 8 * 1024 * 1024
DONE = (b"data: [DONE]", b"data:[DONE]")
_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_EVENT_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_LINE_END = re.compile(rb"\r\n|\n|\r")


class EventTooLong(Exception):
    """An event that does not end within EVENT_MAX_BYTES."""


class EventCutter:
    """Passes whole events on, byte for byte, and holds back what is not yet a whole one.

    So that a stream whose backend dies inside an event can still end with a well-formed error event.
    `is_done` tells whether the terminator `data: [DONE]` has come by.
    """

    __slots__ = ("_held", "is_done")

    def __init__(self) -> None:
        self.is_done = False
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """The bytes up to the last event's end, b"" when there is none yet; raises EventTooLong."""
        if self._held:
            data = self._held + data
        if data.endswith(b"\n\n"):
            whole, self._held = data, b""
        else:
            whole, self._held = _split(data)
            if len(self._held) > EVENT_MAX_BYTES:
                raise EventTooLong
        self._look_for_done(whole)
        return whole

    def rest(self) -> bytes:
        """What is left at the clean end of the stream: an event without its blank line, as some servers end."""
        rest, self._held = self._held, b""
        self._look_for_done(rest)
        return rest

    def _look_for_done(self, data: bytes) -> None:
        # Only as a whole line: the words may stand in a model's answer too, but never after a bare line break.
        if data.find(b"[DONE]", -16) >= 0:
            lines = data[-64:].rstrip(b"\r\n")
            self.is_done = lines in DONE or lines.endswith(tuple(b"\n" + line for line in DONE))


class UsageWatch:
    """Looks at the events of a stream for the usage that they tell, and takes out the event that tells nothing else.

    `usage` is OpenAI's usage object, None until it came by.
    """

    __slots__ = ("_takes_out", "usage")

    def __init__(self, *, takes_out: bool) -> None:
        self._takes_out = takes_out
        self.usage: dict[str, Any] | None = None

    def look(self, events: bytes) -> bytes:
        """Whole events, as they are to go on: the same bytes but for that event."""
        if events.find(b'"usage"') < 0 or _USAGE.search(events) is None:
            return events
        return b"".join(event for event in split_events(events) if not self._is_taken_out(event))

    def _is_taken_out(self, event: bytes) -> bool:
        content = parse_event(event)
        usage = content.get("usage") if content is not None else None
        if content is None or not isinstance(usage, dict):
            return False
        self.usage = usage
        return self._takes_out and all(_is_empty(choice) for choice in content.get("choices") or ())


def _is_empty(choice: Any) -> bool:
    """Whether a chunk's choice says nothing: some servers put one beside the usage."""
    if not isinstance(choice, dict) or choice.get("finish_reason") is not None or choice.get("text"):
        return False
    delta = choice.get("delta") or {}
    return isinstance(delta, dict) and not any(value for key, value in delta.items() if key != "role")


def split_events(events: bytes) -> Iterator[bytes]:
    """Each of some whole events, with the blank line at its end."""
    start = 0
    for end in _EVENT_END.finditer(events):
        yield events[start : end.end()]
        start = end.end()
    if start < len(events):
        yield events[start:]


def parse_event(event: bytes) -> dict[str, Any] | None:
    """The JSON object that is an event's data; None for comments, `[DONE]` and whatever else is no object."""
    lines = _LINE_END.split(event)
    data = [line[5:].removeprefix(b" ") for line in lines if line.startswith(b"data:")]
    try:
        content = orjson.loads(b"\n".join(data))
    except orjson.JSONDecodeError:
        return None
    return content if isinstance(content, dict) else None


def _split(data: bytes) -> tuple[bytes, bytes]:
    end = 0
    for blank_line in (b"\n\n", b"\r\n\r\n", b"\r\r"):
        at = data.rfind(blank_line)
        if at >= 0:
            end = max(end, at + len(blank_line))
    return data[:end], data[end:]
