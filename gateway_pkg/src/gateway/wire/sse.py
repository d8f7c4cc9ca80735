"""Server-sent events, sans I/O: the data of a stream, cut at the ends of events."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import orjson

from gateway.wire.stepwise import loads

EVENT_MAX_BYTES = 8 * 1024 * 1024
LINES_MAX = 100_000  # of an event: what has more is passed on as it is, but tells nothing
_DONE = re.compile(rb"data: ?\[DONE\][ \t]*(?:[\r\n]|\Z)")  # it begins with a literal: the quickest search
_TOLD = re.compile(rb'"usage"\s*:\s*\{|"error"\s*:')
# An empty line after any of the three line ends; those of one stream are all alike, so not after a mixture of them.
_EVENT_END = re.compile(rb"\n\r?\n|\r\r")
_BLANK_LINES = re.compile(rb"(?:\n\r?\n|\r\r)[\r\n]*")
_FIELDS = (b":", b"data:", b"event:", b"id:", b"retry:")
_OVERLAP = 2  # bytes of an event's end that may have come before the last of it


class EventTooLong(Exception):
    """An event that does not end within EVENT_MAX_BYTES."""


class UnsoundEvent(Exception):
    """An event other than a JSON object, the terminator or a comment."""


class EventCutter:
    """Passes whole events on, byte for byte, and holds back what is not yet a whole one.

    So that a stream whose backend dies inside an event can still end with a well-formed error event.
    `is_done` tells whether the terminator `data: [DONE]` has come by; `last` are the events that came last.
    """

    __slots__ = ("_held", "is_done", "last")

    def __init__(self) -> None:
        self.is_done = False
        self.last = b""
        self._held = bytearray()

    def feed(self, data: bytes) -> bytes:
        """The bytes up to the end of the last whole event, else b""; raises EventTooLong."""
        if not data.endswith(b"\n\n"):
            tail = bytes(self._held[-_OVERLAP:])  # what is held is looked at once only, however long it grows
            end = _last_end(tail + data) - len(tail)
            if end <= 0:
                self._held += data
                if len(self._held) > EVENT_MAX_BYTES:
                    raise EventTooLong
                return b""
            data, rest = data[:end], data[end:]
        else:
            rest = b""
        if self._held:
            self._held += data
            data = bytes(self._held)
            self._held.clear()
        if rest:
            self._held += rest
        self._look_for_done(data)
        return data

    def rest(self) -> bytes:
        """What is left at the clean end of the stream: an event without its blank line, as some servers end."""
        rest = bytes(self._held)
        self._held.clear()
        if rest:
            self._look_for_done(rest)
        return rest

    def _look_for_done(self, data: bytes) -> None:
        self.last = data
        # Only as a whole line: the words may stand in a model's answer too, but never after a bare line break.
        if data.find(b"[DONE]") >= 0:
            starts = (found.start() for found in _DONE.finditer(data))
            self.is_done |= any(not start or data[start - 1] in b"\r\n" for start in starts)


class EventWatch:
    """Looks for the usage and for an error in the events of a stream.

    It takes out the event that tells nothing but the usage. `usage` is OpenAI's usage object, None until it came by;
    `failure` is the event that holds an error, else None.
    """

    __slots__ = ("_began", "_takes_out", "failure", "usage")

    def __init__(self, *, takes_out: bool) -> None:
        self._began = False
        self._takes_out = takes_out
        self.failure: dict[str, Any] | None = None
        self.usage: dict[str, Any] | None = None

    def look(self, events: bytes) -> bytes:
        """Whole events, as they are to go on: the same bytes but for that event, and up to an error."""
        # Within a string both words' quotes would be escaped.
        if (events.find(b'"usage"') < 0 and events.find(b'"error"') < 0) or _TOLD.search(events) is None:
            self._began |= bool(events)
            return events
        passed = []
        for event in split_events(events):
            told = event.find(b'"usage"') >= 0 or event.find(b'"error"') >= 0  # of many, few have anything to parse
            content = (parse_event(event) if told else None) or {}
            if content.get("error"):
                self.failure = content
                break
            if not self._is_taken_out(content):
                passed.append(event)
            self._began = True
        return b"".join(passed)

    def _is_taken_out(self, content: dict[str, Any]) -> bool:
        usage = content.get("usage")
        if not isinstance(usage, dict):
            return False
        self.usage = usage
        choices = content.get("choices") or ()
        if not choices:
            return self._takes_out
        # Servers that tell the usage all along do so beside the first, empty choice too.
        return self._takes_out and self._began and isinstance(choices, list) and all(map(_is_empty, choices))


def _is_empty(choice: Any) -> bool:
    """Whether a chunk's choice is empty: some servers put one beside the usage."""
    if not isinstance(choice, dict) or choice.get("finish_reason") is not None or choice.get("text"):
        return False
    delta = choice.get("delta") or {}
    return isinstance(delta, dict) and not any(value for key, value in delta.items() if key != "role")


def split_events(events: bytes) -> Iterator[bytes]:
    """The single events of the data, each with the blank line at its end."""
    start = 0
    for end in _EVENT_END.finditer(events):
        yield events[start : end.end()]
        start = end.end()
    if start < len(events):
        yield events[start:]


def read_events(events: bytes) -> Iterator[dict[str, Any]]:
    """The JSON objects in whole events; blank lines, comments and `[DONE]` are skipped.

    Raises UnsoundEvent for an event that is not OpenAI's.
    """
    for event in _BLANK_LINES.split(events):
        if not event:
            continue
        content = parse_event(event)
        if content is not None:
            yield content
        elif not _is_bare(event):
            raise UnsoundEvent


def parse_event(event: bytes) -> dict[str, Any] | None:
    """The JSON object in an event's data; None for comments, `[DONE]` and other data."""
    data = _data(event) if event.find(b"data:") >= 0 else b""
    if not data:
        return None
    try:
        content = loads(data)
    except orjson.JSONDecodeError:
        return None
    return content if isinstance(content, dict) else None


def is_sound(event: bytes) -> bool:
    """Whether the event is one of OpenAI's: a JSON object, the terminator, or one without data such as a comment."""
    return parse_event(event) is not None or _is_bare(event)


def _is_bare(event: bytes) -> bool:
    """Whether it is the terminator, or has no data."""
    lines = [line for line in _lines(event) if line]
    return all(line.startswith(_FIELDS) for line in lines) and _data(event).strip() in (b"", b"[DONE]")


def _data(event: bytes) -> bytes:
    return b"\n".join([line[5:].removeprefix(b" ") for line in _lines(event) if line.startswith(b"data:")])


def _lines(event: bytes) -> list[bytes]:
    if len(event) > LINES_MAX and event.count(b"\n") + event.count(b"\r") > LINES_MAX:
        return [b"too many"]  # which is no field
    return event.splitlines()


def _last_end(data: bytes) -> int:
    """The end of the last whole event in the data, else 0."""
    end = 0
    for blank_line in (b"\n\n", b"\n\r\n", b"\r\r"):
        at = data.rfind(blank_line)
        if at >= 0:
            end = max(end, at + len(blank_line))
    return end
