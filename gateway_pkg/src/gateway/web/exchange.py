"""One request and its answer, as the gateway's own handlers see them."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from time import perf_counter
from typing import Any

from starlette.requests import Request
from starlette.types import Message, Receive, Scope, Send

from gateway.access.tokens import Caller
from gateway.backends.registry import Route
from gateway.backends.slots import Slots
from gateway.backends.usage import Usage
from gateway.errors import OPENAI_ERRORS, ApiError, ClientDisconnected, ErrorShape
from gateway.web.codings import decoded
from gateway.web.media import media_bytes
from gateway.wire.protocol import EXTENSION, NAMED_HEADERS, Protocol

log = logging.getLogger(__name__)

LENGTH_DIGITS = 18
IGNORED_MAX_CHARS = 1_000
UNPRINTABLE = re.compile(r"[^\w.-]", re.ASCII)  # in names of fields
CLIENT_GONE = 499  # nginx's number for it; never sent, only recorded
JSON = (b"content-type", b"application/json")

Headers = list[tuple[bytes, bytes]]
# The id of the request that a task works for; every log line of the task has it.
request_id: ContextVar[str] = ContextVar("request_id", default="")


class Exchange:
    """Reads the body once, sends the answer, cancels the work when the client leaves, keeps what is recorded.

    `status` is 0 until the head is out; `first_byte_at` is in time.perf_counter seconds; `route` is None until the
    request has one, and its headers go out with whatever is answered. So do `own_headers`. `caller` is None on
    open paths. `limit` bounds the body without its pictures and sounds, `whole_limit` with them, in bytes, as the
    settings `limit_name` and `whole_name` say; `bytes_in` is the size of what has come.
    `usage` is what the backend told; `slots` is what the request has of a backend now.
    """

    # Slots, because the interpreter reads them several times as fast as other attributes.
    __slots__ = (
        "_connection",
        "_has_events",
        "_is_disconnected",
        "_send",
        "_task",
        "abort_reason",
        "bytes_in",
        "bytes_out",
        "caller",
        "chunks_out",
        "errors",
        "first_byte_at",
        "has_tools",
        "headers",
        "limit",
        "limit_name",
        "own_headers",
        "queued_ms",
        "receive",
        "request_id",
        "retried",
        "route",
        "scope",
        "slots",
        "started",
        "status",
        "streamed",
        "upstream_ms",
        "usage",
        "whole_limit",
        "whole_name",
    )  # fmt: skip

    def __init__(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        self.started = perf_counter()
        self.scope = scope
        self.receive = receive
        self.request_id = request_id
        self.headers: dict[bytes, bytes] = scope[NAMED_HEADERS]
        self.caller: Caller | None
        self.usage: Usage | None
        self.abort_reason: str | None
        self.route: Route | None
        self.slots: Slots | None
        self._task: asyncio.Task[Any] | None
        self.caller = self.usage = self.abort_reason = self.route = self.slots = self._task = None
        self.own_headers: tuple[tuple[bytes, bytes], ...] = ()
        self.errors: ErrorShape = OPENAI_ERRORS
        self.limit_name = self.whole_name = ""
        self.status = self.chunks_out = self.bytes_in = self.bytes_out = self.limit = self.whole_limit = 0
        self.first_byte_at = self.upstream_ms = self.queued_ms = 0.0
        self.streamed = self.has_tools = self.retried = self._has_events = self._is_disconnected = False
        self._connection: Protocol = scope["extensions"][EXTENSION]
        self._send = send

    def cancel_on_disconnect(self) -> None:
        """Cancels the current task when the client disconnects, or has disconnected, until `finished` is called."""
        connection = self._connection
        self._task = connection.task
        if connection.transport.is_closing():
            self._disconnected()
        else:
            connection.on_disconnect = self._disconnected

    def finished(self) -> None:
        """The work is over: its client may do as it likes."""
        self._connection.on_disconnect = None

    def has_disconnected(self) -> bool:
        """Whether a cancellation of the current task is due to the client's leaving; such a one is taken back."""
        if self._is_disconnected and self._task is not None:
            self._task.uncancel()
        return self._is_disconnected

    @contextmanager
    def until_disconnect(self) -> Iterator[None]:
        """Cancels the block when the client disconnects, which ends it with ClientDisconnected."""
        self.cancel_on_disconnect()
        try:
            yield
        except asyncio.CancelledError:
            if self.has_disconnected():
                raise ClientDisconnected from None
            raise
        finally:
            self.finished()

    def _disconnected(self) -> None:
        self._is_disconnected = True
        if self._task is not None:
            self._task.cancel()

    @property
    def first_byte_ms(self) -> float:
        """Milliseconds until a stream's first event went out."""
        return (self.first_byte_at - self.started) * 1000

    @property
    def owner(self) -> str:
        """The caller's key, under which its data is kept; "" on open paths."""
        return self.caller.key if self.caller is not None else ""

    def ignore(self, names: Collection[str]) -> None:
        """Says in the answer, and in the log, what of the request is left out."""
        if names:
            shown = ", ".join(UNPRINTABLE.sub("?", name) for name in sorted(names))[:IGNORED_MAX_CHARS]
            log.info("left out of the request: %s", shown)
            self.own_headers += ((b"x-gateway-ignored", shown.encode()),)

    @property
    def base_url(self) -> str:
        """The gateway's address as the client wrote it; "" where it named no host."""
        host = self.headers.get(b"host", b"").decode("latin-1")
        return f"{self.scope['scheme']}://{host}" if host else ""

    def body_at_once(self) -> bytes | None:
        """The whole body where it has come plain; None where `body` has to wait for it or to decode it.

        Raises ApiError 413.
        """
        if b"content-encoding" in self.headers:
            return None
        whole = self._connection.take_body()
        if whole is not None:
            self.bytes_in = len(whole)
            if self.bytes_in > self.limit:
                self._check_size(whole)
        return whole

    async def body(self) -> bytes:
        """The whole body, decoded; raises ApiError 413 beyond the limits, 408 when it is too slow, 400 and 415 for a
        coding; ClientDisconnected.
        """
        body = self.body_at_once()
        if body is None:
            body = await self._receive()
            if b"content-encoding" in self.headers:
                body = await self._decoded(body)
            self._check_size(body)
        return body

    async def _decoded(self, body: bytes) -> bytes:
        plain = await asyncio.to_thread(decoded, body, self.headers[b"content-encoding"], self.whole_limit)
        if plain is None:
            raise too_large(self.whole_limit, self.whole_name)
        return plain

    def _check_size(self, body: bytes) -> None:
        if len(body) > self.whole_limit:
            raise too_large(self.whole_limit, self.whole_name)
        if len(body) > self.limit and len(body) - media_bytes(body) > self.limit:
            raise too_large(self.limit, self.limit_name)

    async def _receive(self) -> bytes:
        """All of the body that comes in pieces."""
        length = self.headers.get(b"content-length", b"0")
        if len(length) > LENGTH_DIGITS or int(length) > self.whole_limit:
            raise too_large(self.whole_limit, self.whole_name)
        parts, has_more = [], True
        longest = self._connection.body_timeout
        while has_more:
            try:
                async with asyncio.timeout(self.started + longest - perf_counter()):
                    message = await self.receive()
            except TimeoutError:
                words = f"The body did not come within {longest:g} s, the limit set by REQUEST_BODY_TIMEOUT_SEC"
                raise ApiError(408, words, code="request_timeout") from None
            if message["type"] == "http.disconnect":
                raise ClientDisconnected
            parts.append(message.get("body", b""))
            self.bytes_in += len(parts[-1])
            if self.bytes_in > self.whole_limit:
                raise too_large(self.whole_limit, self.whole_name)
            has_more = message.get("more_body", False)
        return b"".join(parts)

    def answer_at_once(self, head: bytes, body: bytes) -> bool:
        """Sends a backend's JSON answer as it is, with `Route.head`; False, and nothing sent, where `answer` has to."""
        lines = b"content-length: %d\r\nx-request-id: %b\r\n" % (len(body), self.request_id.encode())
        is_sent = not self.own_headers and self._connection.write_answer(head, lines, body)
        if is_sent:
            self.status = 200
            self.bytes_out = len(body)
        return is_sent

    async def answer(self, status: int, body: bytes, headers: Headers) -> None:
        """Sends a whole answer with `headers` and those that every answer has."""
        if self.route is not None:
            headers += self.route.headers
        headers += self.own_headers
        headers.append((b"content-length", b"%d" % len(body)))
        headers.append((b"x-request-id", self.request_id.encode()))
        self.status = status
        self.bytes_out = len(body)
        self._connection.answer_begins()
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    async def fail(self, error: ApiError) -> None:
        """Sends an error: a whole answer, or one event and the end when the stream has begun.

        A stream of other data, such as audio, breaks off, so that nobody takes it for whole.
        """
        if not self.status:
            headers = [JSON, *error.headers]
            if self.errors.id_header:
                headers.append((self.errors.id_header, self.request_id.encode()))
            await self.answer(error.status, self.errors.body(error, self.request_id), headers)
            return
        self.abort_reason = error.code or "error"
        if not self._has_events:
            await self.break_off()
            return
        await self.stream(self.errors.event(error, self.request_id))
        await self.end_stream()

    async def break_off(self) -> None:
        """Cuts the client's connection."""
        self._connection.transport.abort()
        while (await self.receive())["type"] != "http.disconnect":
            pass

    def client_disconnected(self) -> None:
        self.abort_reason = "client_disconnected"
        self.status = self.status or CLIENT_GONE

    async def start_stream(self, content_type: bytes, headers: Headers | None = None) -> None:
        headers = [
            *(headers or ()),
            (b"content-type", content_type),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
            (b"x-request-id", self.request_id.encode()),
            *(self.route.headers if self.route is not None else ()),
            *self.own_headers,
        ]
        self.status = 200
        self.streamed = True
        self._has_events = content_type.startswith(b"text/event-stream")
        self._connection.answer_begins()
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
            self._connection.answer_begins()
            message["headers"] = [
                *message.get("headers", ()),
                *self.own_headers,
                (b"x-request-id", self.request_id.encode()),
            ]
        elif message["type"] == "http.response.body":
            self.bytes_out += len(message.get("body", b""))
        await self._send(message)


def exchange_of(request: Request) -> Exchange:
    """The exchange of a request to the documented pages."""
    exchange: Exchange = request.scope["gateway.exchange"]
    return exchange


def caller_of(request: Request) -> Caller:
    """Who asks; not for open paths."""
    caller: Caller = request.scope["gateway.exchange"].caller
    return caller


def too_large(limit: int, setting: str) -> ApiError:
    return ApiError(413, f"The body is larger than {limit} bytes, the limit set by {setting}", code="request_too_large")
