"""One request and its answer, as the gateway's own handlers see them."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from gateway.http.errors import ApiError
from gateway.http.protocol import EXTENSION, Protocol
from gateway.routing.registry import Route, Slots

CLIENT_GONE = 499  # nginx's number for it; never sent, only recorded
JSON = (b"content-type", b"application/json")
# What is left of an oversized body is not read: it may never end.
HANG_UP = ((b"connection", b"close"),)

Headers = list[tuple[bytes, bytes]]


class ClientGone(Exception):
    """The client left before its answer was complete."""


class Exchange:
    """Reads the body once, sends the answer, cancels the work when the client leaves, keeps what is recorded.

    `status` is 0 until the head is out; `first_byte_at` is in time.perf_counter seconds; `route` is None until the
    request has one, and its headers go out with whatever is answered.
    """

    # Slots, because the interpreter reads them several times as fast as other attributes.
    __slots__ = (
        "_connection", "_is_left", "_send", "_task", "abort_reason", "bytes_out", "caller", "chunks_out",
        "first_byte_at", "has_tools", "headers", "receive", "request_id", "route", "scope", "slots", "started",
        "status", "streamed", "upstream_ms",
    )  # fmt: skip

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        self.started = perf_counter()
        self.scope = scope
        self.receive = receive
        self.request_id = request_id
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.caller = ""
        self.status = self.chunks_out = self.bytes_out = 0
        self.first_byte_at = self.upstream_ms = 0.0
        self.streamed = self.has_tools = False
        self.abort_reason: str | None = None
        self.route: Route | None = None
        self.slots: Slots | None = None
        self._connection: Protocol
        self._is_left = False
        self._send = send
        self._task: asyncio.Task[Any] | None = None

    def cancel_when_left(self) -> None:
        """From now on the client's leaving cancels the current task; `finished` must follow."""
        self._connection = connection = self.scope["extensions"][EXTENSION]
        # With the loop given, Python 3.11 need not ask the kernel for its process id.
        self._task = asyncio.current_task(connection.loop)
        connection.on_left = self._left

    def finished(self) -> None:
        """The work is over: its client may do as it likes."""
        self._connection.on_left = None

    def was_left(self) -> bool:
        """Whether a cancellation of the current task is due to the client's leaving; such a one is taken back."""
        if self._is_left and self._task is not None:
            self._task.uncancel()
        return self._is_left

    def _left(self) -> None:
        self._is_left = True
        if self._task is not None:
            self._task.cancel()

    @property
    def first_byte_ms(self) -> float:
        """Milliseconds until a stream's first event went out."""
        return (self.first_byte_at - self.started) * 1000

    async def body(self, limit: int, setting: str) -> bytes:
        """The whole body; raises ApiError 413 (naming `setting`) when longer than `limit` bytes, ClientGone."""
        message = await self.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        first: bytes = message.get("body", b"")
        if not message.get("more_body", False):
            if len(first) > limit:
                raise too_large(limit, setting)
            return first
        parts, size = [first], len(first)
        while message.get("more_body", False):
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > limit:
                raise too_large(limit, setting)
        return b"".join(parts)

    async def relay(self, body: bytes, route: Route) -> None:
        """Sends a backend's JSON answer as it is."""
        length, request_id = str(len(body)).encode(), self.request_id.encode()
        head = (route.head, b"content-length: ", length, b"\r\nx-request-id: ", request_id, b"\r\n")
        if self._connection.write_answer(head, body):
            self.status = 200
            self.bytes_out = len(body)
        else:
            await self.answer(200, body, [JSON])

    async def answer(self, status: int, body: bytes, headers: Headers) -> None:
        """Sends a whole answer with `headers` and those that every answer has."""
        if self.route is not None:
            headers += self.route.headers
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

    def client_left(self) -> None:
        self.abort_reason = "client_disconnected"
        self.status = self.status or CLIENT_GONE

    async def start_stream(self, content_type: bytes) -> None:
        headers = [
            (b"content-type", content_type),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
            (b"x-request-id", self.request_id.encode()),
            *(self.route.headers if self.route is not None else ()),
        ]
        self.status = 200
        self.streamed = True
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def stream(self, chunk: bytes) -> None:
        if not self.chunks_out:
            self.first_byte_at = perf_counter()
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


def too_large(limit: int, setting: str) -> ApiError:
    return ApiError(
        413,
        f"The body is larger than {limit} bytes, the limit set by {setting}",
        code="request_too_large",
        headers=HANG_UP,
    )
