"""Server-sent events, sans I/O: what has arrived of a stream, cut at the ends of events."""

from __future__ import annotations

EVENT_MAX_BYTES = 8 * 1024 * 1024
DONE = (b"data: [DONE]", b"data:[DONE]")


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


def _split(data: bytes) -> tuple[bytes, bytes]:
    end = 0
    for blank_line in (b"\n\n", b"\r\n\r\n", b"\r\r"):
        at = data.rfind(blank_line)
        if at >= 0:
            end = max(end, at + len(blank_line))
    return data[:end], data[end:]
