"""One request and its answer, as the gateway's own handlers see them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from gateway.http.errors import ApiError

# A request that is answered sooner than this needs nobody to watch whether its client is still there.
WATCH_AFTER_SEC = 0.005
JSON = (b"content-type", b"application/json")
# What is left of an oversized body is not read: it may never end.
HANG_UP = ((b"connection", b"close"),)

Headers = list[tuple[bytes, bytes]]


class ClientGone(Exception):
    """The client left before its answer was complete."""


class Exchange:
    """Reads the body once, sends the answer, and cancels the handler when the client leaves.

    What is recorded of the request is kept here: `status` (0 until the head is out; 499 when the client left before),
    `chunks_out`, `bytes_out`, `first_byte_at` (time.perf_counter seconds) and `facts`, further fields of the log line.
    `route_headers` go out with whatever is answered.
    """

    __slots__ = (
        "_gone",
        "_receive",
        "_send",
        "_task",
        "_watcher",
        "abort_reason",
        "bytes_out",
        "caller",
        "chunks_out",
        "client",
        "facts",
        "first_byte_at",
        "headers",
        "method",
        "path",
        "request_id",
        "route_headers",
        "started",
        "status",
        "streamed",
    )  # fmt: skip

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        self.request_id = request_id
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.client: tuple[str, int] | None = scope["client"]
        self.started = time.perf_counter()
        self.caller = ""
        self.status = 0
        self.streamed = False
        self.chunks_out = 0
        self.bytes_out = 0
        self.first_byte_at = 0.0
        self.abort_reason: str | None = None
        self.facts: dict[str, Any] = {}
        self.route_headers: Headers = []
        self._gone = False
        self._receive = receive
        self._send = send
        self._task: asyncio.Task[Any] | None = None
        self._watcher: asyncio.TimerHandle | asyncio.Task[None] | None = None

    async def body(self, limit: int, setting: str) -> bytes:
        """The whole body; raises ApiError 413 (naming `setting`) when longer than `limit` bytes, ClientGone."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        first: bytes = message.get("body", b"")
        if not message.get("more_body", False):
            if len(first) > limit:
                raise too_large(limit, setting)
            return first
        parts, size = [first], len(first)
        while message.get("more_body", False):
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > limit:
                raise too_large(limit, setting)
        return b"".join(parts)

    def cancel_when_client_leaves(self) -> None:
        """From now on the client's leaving cancels the current task; to be called once the body is read."""
        loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._watcher = loop.call_later(WATCH_AFTER_SEC, self._start_watching, loop)

    def was_left(self) -> bool:
        """Whether a CancelledError of the current task is due to the client's leaving; such a one is taken back."""
        if self._gone and self._task is not None:
            self._task.uncancel()
        return self._gone

    def finish(self) -> None:
        """Ends the watch; to be called once, when the handler is done."""
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None

    async def answer(self, status: int, body: bytes, headers: Headers) -> None:
        """Sends a whole answer with `headers` and those that every answer has."""
        headers += self.route_headers
        headers.append((b"content-length", b"%d" % len(body)))
        headers.append((b"x-request-id", self.request_id.encode()))
        self.status = status
        self.bytes_out = len(body)
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    async def fail(self, error: ApiError) -> None:
        """Sends an error: a whole answer, or one event and the end when the stream has begun."""
        if not self.status:
            await self.answer(error.status, error.body(), [JSON, *error.headers])
            return
        self.abort_reason = error.code or "error"
        await self.stream(error.event())
        await self.end_stream()

    async def start_stream(self, content_type: bytes) -> None:
        headers = [
            (b"content-type", content_type),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
            (b"x-request-id", self.request_id.encode()),
            *self.route_headers,
        ]
        self.status = 200
        self.streamed = True
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def stream(self, chunk: bytes) -> None:
        if not self.chunks_out:
            self.first_byte_at = time.perf_counter()
        self.chunks_out += 1
        self.bytes_out += len(chunk)
        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def end_stream(self) -> None:
        await self._send({"type": "http.response.body", "body": b""})

    async def send(self, message: Message) -> None:
        """ASGI `send` for the documented pages: adds the request id and keeps the status."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), (b"x-request-id", self.request_id.encode())]
        elif message["type"] == "http.response.body":
            self.bytes_out += len(message.get("body", b""))
        await self._send(message)

    def _start_watching(self, loop: asyncio.AbstractEventLoop) -> None:
        self._watcher = loop.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self._task is not None and self._watcher is not None:
            self._gone = True
            self._task.cancel()


def too_large(limit: int, setting: str) -> ApiError:
    return ApiError(
        413,
        f"The body is larger than {limit} bytes, the limit set by {setting}",
        code="request_too_large",
        headers=HANG_UP,
    )
