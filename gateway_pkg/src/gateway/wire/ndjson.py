"""Newline-delimited JSON, sans I/O: the data of a stream, cut into lines."""

from __future__ import annotations

LINE_MAX_BYTES = 8 * 1024 * 1024


class LineTooLong(Exception):
    """A line that does not end within LINE_MAX_BYTES."""


class LineCutter:
    """Gives out whole lines without their ends, skips empty ones, and holds back an incomplete one."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that have ended; raises LineTooLong once what it holds is beyond the limit."""
        if len(self._held) > LINE_MAX_BYTES:
            raise LineTooLong
        *ended, rest = data.split(b"\n")
        if ended and self._held:
            ended[0] = bytes(self._held) + ended[0]
            self._held.clear()
        self._held += rest
        return [line for line in ended if line and not line.isspace()]
