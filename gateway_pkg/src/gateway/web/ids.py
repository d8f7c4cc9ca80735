"""The id of the request that a task works for; every log line of the task has it."""

from contextvars import ContextVar

request_id: ContextVar[str] = ContextVar("request_id", default="")
