"""The process log: JSON lines on stderr."""

from __future__ import annotations

import logging
import sys
from contextvars import ContextVar

import orjson

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


def configure(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # One line a probe says nothing that the gateway's own line on a change does not.
    logging.getLogger("httpx").setLevel(logging.WARNING)
