"""A file of lines that is written beside the event loop and rotated by size."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gateway import background

log = logging.getLogger(__name__)

# Batches cost the event loop little: each makes it give the interpreter away for a moment. Long ones cost memory.
FLUSH_SEC = 0.2
FLUSH_LINES = 500
PENDING_MAX_LINES = 20_000


class LineLog:
    """Lines go out in batches, by one thread. A line is whole in the file or absent, and then `dropped` counts it: a
    full disk loses lines, never a request.
    """

    def __init__(self, path: Path, max_bytes: int, keep: int) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._keep = keep
        self._pending: list[bytes] = []
        self._writing: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="line-log")
        self._file: io.FileIO | None = None
        self._size = 0
        self._failing = False
        self.dropped = 0

    def write(self, line: bytes) -> None:
        """Takes one line, its line break included; returns at once."""
        if len(self._pending) >= PENDING_MAX_LINES:
            self.dropped += 1
            return
        self._pending.append(line)
        if self._writing is not None:
            return
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_SEC, self._flush)
        elif len(self._pending) >= FLUSH_LINES:
            self._timer.cancel()
            self._flush()

    async def close(self) -> None:
        """Writes what is pending."""
        if self._timer is not None:
            self._timer.cancel()
        while self._writing is not None or self._pending:
            if self._writing is None:
                self._flush()
            await asyncio.sleep(0.005)
        self._thread.submit(self._close_file)
        self._thread.shutdown()

    def _flush(self) -> None:
        self._timer = None
        lines, self._pending = self._pending, []
        self._writing = asyncio.get_running_loop().run_in_executor(self._thread, self._write_out, lines)
        self._writing.add_done_callback(self._flushed)

    def _flushed(self, _: asyncio.Future[None]) -> None:
        self._writing = None
        if self._pending and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_SEC, self._flush)

    def _write_out(self, lines: list[bytes]) -> None:
        try:
            self._append(lines)
        except Exception:
            background.failed("request_log")
            self.dropped += len(lines)
            self._close_file()

    def _append(self, lines: list[bytes]) -> None:
        data, written = b"".join(lines), 0
        try:
            file = self._file if self._file is not None else self._open()
            while written < len(data):  # a full disk takes what fits, and fails the rest
                written += file.write(data[written:])
            self._size += written
            if self._size >= self._max_bytes:
                self._close_file()
                self._rotate()
        except OSError as error:
            whole = data.rfind(b"\n", 0, written) + 1
            self.dropped += len(lines) - data.count(b"\n", 0, whole)
            if self._file is not None and whole < written:
                with contextlib.suppress(OSError):  # an append-only file; `_open` ends its last line then
                    self._file.truncate(self._file.tell() - (written - whole))
            if not self._failing:
                log.warning("request log %s cannot be written: %s", self._path, error.strerror)
            self._failing = True
            self._close_file()
        else:
            self._failing = False

    def _open(self) -> io.FileIO:
        file = self._file = open(self._path, "a+b", buffering=0, opener=_private)  # noqa: SIM115  # kept open; Path has no opener
        self._size = file.seek(0, os.SEEK_END)
        if self._size:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # torn, by a process that was killed
                self._size += file.write(b"\n")
        return file

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _rotate(self) -> None:
        """`requests.jsonl` becomes `.1`, `.1` becomes `.2`, … and the one beyond `keep` is gone."""
        for number in range(self._keep, 1, -1):
            older = self._numbered(number - 1)
            if older.exists():
                older.replace(self._numbered(number))
        self._path.replace(self._numbered(1))

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")


def _private(path: str, flags: int) -> int:
    # Lines tell who asked for what.
    return os.open(path, flags, 0o640)
