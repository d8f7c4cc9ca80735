"""The process log: JSON lines on stderr."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import queue
from contextvars import ContextVar
from logging.handlers import QueueHandler, QueueListener

import orjson

STDERR = 2
PENDING_MAX_LINES = 10_000
LAST_LINES_SEC = 2.0  # what the end of the process waits for them
# Set once a request; each has a task, and so a context, of its own.
request_id: ContextVar[str] = ContextVar("request_id", default="")


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
        return orjson.dumps(entry, default=str).decode()


class _Handler(QueueHandler):
    """Formats a line where it is logged, and leaves it to be written elsewhere; where too many wait, it is lost."""

    def enqueue(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(queue.Full):
            self.queue.put_nowait(record)


class _Writer(QueueListener):
    """Writes to stderr in a thread of its own: a pipe that nobody reads must not stop the event loop."""

    def handle(self, record: logging.LogRecord) -> None:
        # Past Python's own streams, whose locks a write that hangs would keep beyond the end of the process.
        line = f"{record.getMessage()}\n".encode(errors="backslashreplace")
        with contextlib.suppress(OSError):
            while line:
                line = line[os.write(STDERR, line) :]

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
    # A line for each probe, and each of the two servers' beginning and end: the gateway has lines of its own.
    for name in ("httpx", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.WARNING)
