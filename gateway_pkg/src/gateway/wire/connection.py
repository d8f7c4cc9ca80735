"""One HTTP/1.1 connection to a backend, and the response that is being received on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from httptools import HttpParserError, HttpResponseParser

from gateway.wire.errors import ProtocolViolation, UpstreamClosed, UpstreamError, UpstreamTimeout

if TYPE_CHECKING:
    from gateway.wire.http1 import Pool

UNREAD_HIGH = 256 * 1024  # bytes that wait for their reader before the socket is paused
END_SEC = 1.0  # by then a server that has said all has also ended its message
OnAbort = Callable[[], object]  # told when this side ends an answer before its end
VERSION = b"HTTP/1."  # the parser takes RTSP, HTTP/2.0 and leading blank lines, too


class UnansweredOnReused(UpstreamClosed):
    """A kept-alive connection had been closed by the backend: the request may go out again, in the same slot."""


class Response:
    """One answer. Whoever has it calls `close()` in the end; while it is incomplete it owns a connection."""

    __slots__ = (
        "_conn", "_error", "_rest", "_waiter", "complete", "ends_unframed", "headers", "is_over", "on_abort",
        "status",
    )  # fmt: skip

    def __init__(self, conn: Connection, waiter: asyncio.Future[None], on_abort: OnAbort | None) -> None:
        self.status = 0  # until the head is complete
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False
        # Once it has ended: only the connection's end told the body's, and one that was cut looks like a whole one.
        self.ends_unframed = False
        # Set by its reader, who wants no more of it: what is left has END_SEC to come and so to keep the connection.
        self.is_over = False
        self.on_abort = on_abort
        self._conn: Connection | None = conn  # None once the message has ended, well or badly
        self._waiter: asyncio.Future[None] | None = waiter
        self._error: UpstreamError | None = None
        self._rest = b""  # what was unread at the end

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header; `name` in lower case."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    def read_at_once(self, limit: int) -> bytes | None:
        """The whole body where it has come; None where `read` has to wait for it, or to refuse it."""
        if not self.complete or len(self._rest) > limit:
            return None
        body, self._rest = self._rest, b""
        return body

    async def read(self, limit: int) -> bytes:
        """The whole body, and closes. ProtocolViolation when it is longer than `limit` bytes; else as `next_chunk`."""
        body = self.read_at_once(limit)
        if body is not None:
            return body
        pieces: list[bytes] = []
        size = 0
        try:
            while piece := await self.next_chunk():
                pieces.append(piece)
                size += len(piece)
                if size > limit:
                    raise ProtocolViolation(f"response body longer than {limit} bytes")
        finally:
            self.close()
        return b"".join(pieces)

    async def next_chunk(self) -> bytes:
        """All body bytes that have arrived since the last call, at least one; b"" at the clean end.

        Raises UpstreamClosed, UpstreamTimeout, ProtocolViolation, each after all bytes that came before it.
        """
        while True:
            conn = self._conn
            if conn is None:
                if self._rest:
                    body, self._rest = self._rest, b""
                    return body
                if self._error is not None:
                    raise self._error
                return b""
            if conn.body:
                return conn.take()
            if self._waiter is not None:
                raise RuntimeError("another task is reading this response")
            self._waiter = waiter = conn.pool.loop.create_future()
            try:
                await waiter
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Abort an incomplete message's connection (a complete one has given its own back). Idempotent."""
        if self._conn is not None:
            self._conn.fail(UpstreamClosed("the response was closed", sent_first_byte=self.status != 0))
            self._rest = b""
        elif self._error is not None:  # once raised, it holds the frames that hold this response
            self._error = UpstreamClosed("the response was closed", sent_first_byte=self.status != 0)


class Connection(asyncio.Protocol):
    """A transport with its parser. Its slot in the pool belongs to the response, to the pool while it is idle."""

    __slots__ = (
        "_active", "_done", "_feed", "_framed", "_framing", "_head_only", "_headers", "_keep_alive",
        "_parser", "_paused", "_reused", "_start", "_status", "_transport", "_unread",
        "body", "dead", "deadline", "head_bytes", "on_body", "pool", "response",
    )  # fmt: skip

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.response: Response | None = None
        self.dead = False
        self.deadline = float("inf")
        self.body: list[bytes] = []  # unread pieces
        self.on_body = self.body.append  # straight from the parser
        self._reused = False
        self._paused = False
        self._active = False  # bytes have come since the timer last looked
        self._unread = 0  # bytes on the wire since the last take()

    def send(
        self, data: bytes, waiter: asyncio.Future[None], head_only: bool, on_abort: OnAbort | None = None
    ) -> Response:
        """Write a whole request; `waiter` is woken when the head of the response has come, or when it never will."""
        pool = self.pool
        self.response = response = Response(self, waiter, on_abort)
        self._headers = response.headers
        self._head_only = head_only
        self._status = 0
        self.head_bytes = 0
        self._start = b""  # of the head, until it is long enough to know the version
        self._framing = 0  # bytes on the wire since the last byte of body
        self._framed = self._done = False
        self.deadline = pool.loop.time() + pool.timeouts.first_byte
        if not self._transport.is_closing():  # else connection_lost is on its way, and finds this response
            self._transport.write(data)
        return response

    def take(self) -> bytes:
        """All unread body bytes."""
        body = self.body
        data = body[0] if len(body) == 1 else b"".join(body)
        body.clear()
        self._unread = 0
        if self._paused:
            self._paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()
        return data

    # Called by the transport.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._parser = HttpResponseParser(self)
        self._feed = self._parser.feed_data
        self.pool.joined(self)

    def secured(self, transport: asyncio.Transport | None) -> None:
        """Called by the dial: from now on this is what its bytes go through."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        response = self.response
        if response is None:
            self.drop()  # bytes that nobody asked for: the end of a split response
            return
        self._active = True
        pieces = len(self.body)
        try:
            if response.status:
                self._feed(data)
            elif not self.head_bytes and len(data) <= self.pool.max_header_bytes and data.startswith(VERSION):
                self.head_bytes = len(data)
                self._feed(data)
            else:
                self._feed_head(data)
        except HttpParserError as error:
            if not self._done:
                reason = error.__context__  # what a callback raised
                self.fail(reason if isinstance(reason, ProtocolViolation) else ProtocolViolation(str(error)))
                return
            self._keep_alive = False  # something came after the message: that is not this response's fault
        except ProtocolViolation as error:
            self.fail(error)
            return
        if self._done:
            self._finish()
        elif len(self.body) > pieces:
            self._framing = 0
            self._unread += len(data)
            if self._unread > UNREAD_HIGH and not self._paused:
                self._paused = True
                self._transport.pause_reading()
            response.status = self._status
        elif response.status:
            self._framing += len(data)
            if self._framing > self.pool.max_header_bytes:
                self.fail(ProtocolViolation("chunk extensions or trailers without end"))
            return
        elif self._status:
            response.status = self._status
        else:
            return
        self._wake(response)

    def _feed_head(self, data: bytes) -> None:
        """Feed no more of a head than its limit, and nothing that is not HTTP/1.x, however it was cut on its way."""
        if self.head_bytes < len(VERSION):
            self._start = (self._start + data)[: len(VERSION)]
            if not VERSION.startswith(self._start):
                self.head_bytes += len(data)
                raise ProtocolViolation("an answer that is not HTTP/1.0 or HTTP/1.1")
        room = self.pool.max_header_bytes - self.head_bytes
        self.head_bytes += len(data)
        self._feed(data[:room])
        if len(data) > room:
            if not self._status:
                raise ProtocolViolation(f"response head longer than {self.pool.max_header_bytes} bytes")
            self._feed(data[room:])

    def eof_received(self) -> None:
        self._lost(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(exc)
        self.pool.left(self)

    def release_parser(self) -> None:
        """After the last callback: the parser and the transport each hold the connection, in a cycle."""
        del self._parser, self._feed, self._transport

    def _lost(self, exc: Exception | None) -> None:
        response = self.response
        if response is not None:
            response.on_abort = None  # it is the backend that has left
        if response is None:
            self.drop()
        elif self._status and not self._framed and exc is None:
            self._keep_alive = False  # a body that ends with its connection
            self._finish()
            self._wake(response)
        elif self._reused and not self.head_bytes:
            error = UnansweredOnReused("the backend had closed the kept-alive connection")
            self._end(error)
            self.drop()
            self._wake(response)
        else:
            why = f" ({exc})" if exc else ""
            message = f"the backend closed the connection before its answer was complete{why}"
            self.fail(UpstreamClosed(message, sent_first_byte=self.head_bytes > 0))

    # Called by the parser, inside of feed.

    def on_message_begin(self) -> None:
        if self._done:
            raise ProtocolViolation("a second response to one request")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._status:
            return  # a trailer
        name = name.lower()
        if name == b"content-length":
            self._framed = True
        elif name == b"transfer-encoding":
            if self._framed or value.lower() != b"chunked":
                raise ProtocolViolation("Transfer-Encoding is something other than one 'chunked'")
            self._framed = True
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if not 200 <= status <= 599:
            if not 100 <= status < 200 or status == 101 or self._framed:
                raise ProtocolViolation(f"status {status} is not one that this request can have")
            self._headers.clear()  # an interim response: the final one follows
            return
        self._status = status
        self._keep_alive = self._parser.should_keep_alive()
        if self._head_only:
            self._done = True
            self._keep_alive = False  # the parser would wait for the body that does not come

    def on_message_complete(self) -> None:
        if self._status:
            self._done = True

    # How a message ends.

    def _finish(self) -> None:
        """The message is complete; the connection is free again, or closed when anything about it is odd."""
        transport = self._transport
        clean = self._keep_alive and not self._paused and not transport.is_closing()
        self._end(None)
        # What is left of the request in the write buffer would run into the next one.
        if clean and not transport.get_write_buffer_size():
            self._reused = True
            self.pool.release(self)
        else:
            self.drop()
            self.pool.free_slot()

    def fail(self, error: UpstreamError) -> None:
        """Abort the connection and end its response with `error`, which must not hold the frames that hold these."""
        error.__traceback__ = None
        response = self.response
        self._end(error)
        self.drop()
        self.pool.free_slot()
        if response is not None:
            if response.on_abort is not None and not response.is_over:
                response.on_abort()
            self._wake(response)

    def _end(self, error: UpstreamError | None) -> None:
        response = self.response
        if response is None:
            return
        body = self.body
        if body and not self._head_only:
            response._rest = body[0] if len(body) == 1 else b"".join(body)
        body.clear()
        self._unread = 0
        response.status = self._status
        response.complete = error is None
        response.ends_unframed = not self._framed
        response._error = error
        response._conn = self.response = None

    def _wake(self, response: Response) -> None:
        waiter = response._waiter
        if waiter is not None:
            response._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def drop(self) -> None:
        """Abort the transport. If the connection was idle, its slot becomes free; else that is its user's to do."""
        if not self.dead:
            self.dead = True
            self._transport.abort()
            self.pool.forget(self)

    def check(self, now: float) -> None:
        """Called by the pool's timer."""
        response = self.response
        if response is not None and response.is_over:
            self.deadline = min(self.deadline, now + END_SEC)
        elif response is not None and self._status and (self._active or self._paused):
            self._active = False
            self.deadline = now + self.pool.timeouts.idle
        if now < self.deadline or self.dead:
            return
        if response is None:
            self.drop()
        elif self._status:
            message = f"no byte of the body for {self.pool.timeouts.idle:g} s"
            self.fail(UpstreamTimeout(message, "idle"))
        else:
            message = f"no response head within {self.pool.timeouts.first_byte:g} s"
            self.fail(UpstreamTimeout(message, "first_byte"))
