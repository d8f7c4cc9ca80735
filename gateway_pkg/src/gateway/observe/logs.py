"""The process log: JSON lines on stderr."""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import queue
from logging.handlers import QueueHandler, QueueListener

import orjson

from gateway import background
from gateway.web.exchange import request_id

STDERR = 2
PENDING_MAX_LINES = 10_000
LAST_LINES_SEC = 2.0  # what the end of the process waits for them


class Dropped:
    """The number of lines that were dropped, since the process began."""

    lines = 0


class JsonFormatter(logging.Formatter):
    """One object a line: ts (Unix seconds), level, logger, message, request_id within a request, a traceback if any."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "ts": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if identifier := request_id.get():
            entry["request_id"] = identifier
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        try:
            return orjson.dumps(entry, default=str).decode()
        except TypeError:  # bytes of a file's name that are not UTF-8
            return json.dumps(entry, default=str)


class _Handler(QueueHandler):
    """Formats a line where it is logged, and leaves it to be written elsewhere; where too many wait, it is lost."""

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self.queue.put_nowait(record)
        except queue.Full:
            Dropped.lines += 1


class _Writer(QueueListener):
    """Writes to stderr in a thread of its own: a pipe that nobody reads must not stop the event loop."""

    _is_torn = False

    def handle(self, record: logging.LogRecord) -> None:
        # Past Python's own streams, whose locks a write that hangs would keep beyond the end of the process.
        try:
            line = b"\n" * self._is_torn + f"{record.getMessage()}\n".encode(errors="backslashreplace")
            while line:
                written = os.write(STDERR, line)
                self._is_torn = line[written - 1 : written] != b"\n"
                line = line[written:]
        except OSError:
            Dropped.lines += 1
        except Exception:  # the thread goes on; what it is for cannot be used to tell
            background.failures["process_log"] += 1

    def stop(self) -> None:
        with contextlib.suppress(queue.Full):
            self.enqueue_sentinel()
        if self._thread is not None:
            self._thread.join(LAST_LINES_SEC)


def configure(level: str) -> None:
    lines: queue.Queue[logging.LogRecord] = queue.Queue(PENDING_MAX_LINES)
    handler = _Handler(lines)
    handler.setFormatter(JsonFormatter())
    writer = _Writer(lines)
    writer.start()
    atexit.register(writer.stop)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Each of the two servers' beginning and end: the gateway has lines of its own.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
