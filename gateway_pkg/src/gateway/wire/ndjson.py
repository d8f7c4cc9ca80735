"""Newline-delimited JSON, sans I/O: what has arrived of a stream, cut into lines."""

from __future__ import annotations

LINE_MAX_BYTES = 8 * 1024 * 1024


class LineTooLong(Exception):
    """A line that does not end within LINE_MAX_BYTES."""


class LineCutter:
    """Gives out whole lines, without their ends and without empty ones, and holds back what is not yet a whole one."""

    __slots__ = ("_held", "_held_bytes")

    def __init__(self) -> None:
        self._held: list[bytes] = []  # joined once the line is whole, so that many small pieces cost no more than one
        self._held_bytes = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that have ended; raises LineTooLong once what it holds is beyond the limit."""
        if self._held_bytes > LINE_MAX_BYTES:
            raise LineTooLong
        *ended, rest = data.split(b"\n")
        lines: list[bytes] = []
        if ended:
            self._hold(ended[0])
            lines = [line for line in (self.rest(), *ended[1:]) if line and not line.isspace()]
        self._hold(rest)
        return lines

    def rest(self) -> bytes:
        """What is left at the clean end of the stream: a line without its end, as some servers finish."""
        rest = b"".join(self._held)
        self._held.clear()
        self._held_bytes = 0
        return rest

    def _hold(self, piece: bytes) -> None:
        if piece:
            self._held.append(piece)
            self._held_bytes += len(piece)
