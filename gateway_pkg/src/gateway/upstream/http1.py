"""HTTP/1.1 client of the hot routes: one pool per backend, asyncio transports, httptools' parser.

It follows no redirect, decompresses nothing, and keeps one request on a connection at a time. It trusts no upstream:
ambiguous framing, oversized heads and bytes after the end of a message cost the upstream its connection.
"""

import asyncio
import ipaddress
import re
import socket
import ssl
from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal, Self, cast
from urllib.parse import urlsplit

from httptools import HttpParserError, HttpResponseParser

_UNREAD_HIGH = 256 * 1024  # bytes of a body waiting for their reader before the socket is paused
_FAMILY_DELAY = 0.25  # seconds before the other address family is tried too (RFC 8305 section 5)

_METHOD = re.compile(rb"[A-Z][A-Z-]*")
_TARGET = re.compile(rb"/[!\"$-~]*")  # visible ASCII without the fragment's '#'
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?")
_HEADER_LINES = re.compile(
    rb"(?:(?!(?i:host|content-length|transfer-encoding):)[!#$%&'*+.^_`|~0-9A-Za-z-]++:[\t -~\x80-\xff]*+\r\n)*+"
)


class UpstreamError(Exception):
    """A request to a backend failed. `sent_first_byte`: at least one byte of the response had arrived."""

    def __init__(self, message: str, *, sent_first_byte: bool = False) -> None:
        super().__init__(message)
        self.sent_first_byte = sent_first_byte


class ConnectFailed(UpstreamError):
    """No connection: refused, unknown host, TLS, connect timeout, or no free one within the wait."""


class UpstreamTimeout(UpstreamError):
    """The backend was silent for too long."""

    def __init__(
        self, message: str, phase: Literal["connect", "first_byte", "idle"], *, sent_first_byte: bool = False
    ) -> None:
        super().__init__(message, sent_first_byte=sent_first_byte)
        self.phase = phase


class UpstreamClosed(UpstreamError):
    """The connection ended before the message did."""


class ProtocolViolation(UpstreamError):
    """The answer is not HTTP/1.x as this client accepts it."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds. `first_byte` runs from the request to the end of the response head, `idle` between pieces of a body.

    One timer per pool watches them all: a timeout fires up to a quarter of the shortest one (at most 1 s) late.
    """

    connect: float = 5.0
    first_byte: float = 600.0
    idle: float = 600.0
    pool_wait: float = 5.0


@dataclass(frozen=True, slots=True)
class Origin:
    """scheme://host:port of a base URL, and the path below which its API lives (`prefix`, without final slash)."""

    tls: bool
    host: str
    port: int
    prefix: bytes
    host_header: bytes

    @classmethod
    def parse(cls, url: str) -> Self:
        """Raises ValueError with one line that says what is wrong."""
        if re.search(r"[^!-~]", url):
            raise ValueError(f"{url!r}: blanks, control and non-ASCII characters have no place in a URL")
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as exc:
            raise ValueError(f"{url!r}: {exc}") from None
        if parts.scheme not in ("http", "https"):
            raise ValueError(f"{url!r}: must begin with http:// or https://")
        if "@" in parts.netloc:
            raise ValueError(f"{url!r}: must not hold a user or password")
        if "?" in url or "#" in url:
            raise ValueError(f"{url!r}: must not have a query or fragment")
        if not host or not (_is_ipv6(host) or _HOST.fullmatch(host)):
            raise ValueError(f"{url!r}: has no valid host")
        if port == 0:
            raise ValueError(f"{url!r}: port 0 cannot be connected to")
        tls = parts.scheme == "https"
        default = 443 if tls else 80
        name = f"[{host}]" if ":" in host else host
        header = name if port in (None, default) else f"{name}:{port}"
        return cls(tls, host, port or default, parts.path.rstrip("/").encode(), header.encode())

    def __str__(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.host_header.decode()}"


class Response:
    """One answer. Whoever has it calls `close()` in the end; until then an incomplete one owns a connection."""

    __slots__ = ("_conn", "_error", "_rest", "_stale", "_unread", "_waiter", "complete", "headers", "status")

    def __init__(self, conn: "_Connection", waiter: "asyncio.Future[None]") -> None:
        self.status = 0  # until the head has arrived
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False
        self._conn: _Connection | None = conn  # None once the message has ended, well or badly
        self._waiter: asyncio.Future[None] | None = waiter
        self._error: UpstreamError | None = None
        self._rest = b""  # what was unread at the end
        self._unread = 0  # bytes on the wire since the last read
        self._stale = False  # a reused connection died unanswered; its slot in the pool is still ours

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header; `name` in lower case."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    async def read(self, limit: int) -> bytes:
        """The whole body. ProtocolViolation when it is longer than `limit` bytes; else raises as `next_chunk`."""
        if self.complete and len(self._rest) <= limit:
            body, self._rest = self._rest, b""
            return body
        pieces: list[bytes] = []
        size = 0
        while piece := await self.next_chunk():
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                self.close()
                raise ProtocolViolation(f"response body longer than {limit} bytes", sent_first_byte=True)
        return b"".join(pieces)

    async def next_chunk(self) -> bytes:
        """Body bytes that have arrived since the last call, at least one; b"" at the clean end.

        Raises UpstreamClosed, UpstreamTimeout, ProtocolViolation, each after all bytes that came before.
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
                return conn.take(self)
            if self._waiter is not None:
                raise RuntimeError("the response is being read already")
            self._waiter = waiter = conn.pool.loop.create_future()
            try:
                await waiter
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Give the connection back, or abort it when the message is incomplete. Idempotent."""
        if self._conn is not None:
            self._conn.fail(self, UpstreamClosed("the response was closed", sent_first_byte=self.status != 0))
            self._rest = b""


class _Connection(asyncio.Protocol):
    """A transport, its parser, and the response that is being received."""

    __slots__ = (
        "active", "body", "dead", "deadline", "done", "extra", "feed", "framed", "framing", "head_bytes", "head_only",
        "headers", "keep_alive", "on_body", "parser", "paused", "pool", "response", "reused", "start_bytes", "transport",
    )  # fmt: skip

    def __init__(self, pool: "Pool") -> None:
        self.pool = pool
        self.response: Response | None = None
        self.dead = False
        self.reused = False
        self.paused = False
        self.active = False  # bytes have come since the timer last looked
        self.deadline = float("inf")
        self.body: list[bytes] = []
        self.on_body = self.body.append
        self.parser = HttpResponseParser(self)
        self.feed = self.parser.feed_data

    def send(self, data: bytes, head_only: bool) -> Response:
        pool = self.pool
        response = self.response = Response(self, pool.loop.create_future())
        self.headers = response.headers
        self.head_only = head_only
        self.head_bytes = 0
        self.start_bytes = b""
        self.framing = 0  # bytes since the last byte of body
        self.framed = self.done = self.extra = False
        self.deadline = pool.loop.time() + pool.timeouts.first_byte
        self.transport.write(data)
        return response

    def take(self, response: Response) -> bytes:
        """All unread body bytes, at once."""
        body = self.body
        data = body[0] if len(body) == 1 else b"".join(body)
        body.clear()
        response._unread = 0
        if self.paused:
            self.paused = False
            self.transport.resume_reading()
        return data

    # -- what the transport calls --

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.pool.joined(self)

    def data_received(self, data: bytes) -> None:
        response = self.response
        if response is None:
            self.drop()  # bytes that nobody asked for: a split response
            return
        self.active = True
        head_was_complete = response.status
        pieces = len(self.body)
        try:
            if head_was_complete:
                self.feed(data)
            else:
                self._feed_head(response, data)
        except HttpParserError as exc:
            cause = exc.__context__
            self.fail(response, cause if isinstance(cause, ProtocolViolation) else _violation(str(exc)))
            return
        except ProtocolViolation as exc:
            self.fail(response, exc)
            return
        if not response.status:
            return
        if self.done:
            self._finish(response)
        elif len(self.body) > pieces:
            self.framing = 0
            response._unread += len(data)
            if response._unread > _UNREAD_HIGH and not self.paused:
                self.paused = True
                self.transport.pause_reading()
        elif head_was_complete:
            self.framing += len(data)
            if self.framing > self.pool.max_header_bytes:
                self.fail(response, _violation("chunk extensions or trailers without end"))
            return
        _wake(response)

    def _feed_head(self, response: Response, data: bytes) -> None:
        """Feed no more of a head than the limit allows, however it was cut on its way."""
        if self.head_bytes < 5:
            self.start_bytes = (self.start_bytes + data[:5])[:5]
            if not b"HTTP/".startswith(self.start_bytes):  # the parser takes RTSP and leading blank lines too
                raise _violation("not an HTTP response")
        room = self.pool.max_header_bytes - self.head_bytes
        self.head_bytes += len(data)
        if len(data) <= room:
            self.feed(data)
            return
        self.feed(data[:room])
        if not response.status:
            raise _violation(f"response head longer than {self.pool.max_header_bytes} bytes")
        self.feed(data[room:])

    def eof_received(self) -> None:
        self._lost(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost(exc)
        self.pool.left(self)

    def _lost(self, exc: Exception | None) -> None:
        response = self.response
        if response is None:
            self.drop()
        elif response.status and not self.framed and exc is None:
            self.keep_alive = False
            self._finish(response)  # a body that ends with the connection
            _wake(response)
        elif self.reused and not self.head_bytes:
            response._stale = True
            self._detach(response)
            _wake(response)
        else:
            reason = f": {exc}" if exc else ""
            self.fail(response, UpstreamClosed(
                f"the backend closed the connection before the response was complete{reason}",
                sent_first_byte=self.head_bytes > 0,
            ))  # fmt: skip

    # -- what the parser calls --

    def on_message_begin(self) -> None:
        if self.done:
            self.extra = True

    def on_header(self, name: bytes, value: bytes) -> None:
        response = self.response
        if response is None or response.status:
            return  # a trailer
        name = name.lower()
        if name == b"content-length":
            self.framed = True
        elif name == b"transfer-encoding":
            if self.framed or value.lower() != b"chunked":
                raise _violation("Transfer-Encoding other than a single 'chunked'")
            self.framed = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        parser = self.parser
        if self.done:
            raise _violation("a second response")
        status = parser.get_status_code()
        if parser.get_http_version() not in ("1.1", "1.0"):
            raise _violation(f"HTTP version {parser.get_http_version()}")
        if not 100 <= status <= 599 or status == 101:
            raise _violation(f"status {status} was not to be expected")
        if status < 200:
            if self.framed:
                raise _violation(f"an interim response (status {status}) with a body")
            self.headers.clear()
            return
        if self.response is not None:
            self.response.status = status
        self.keep_alive = parser.should_keep_alive()
        if self.head_only:
            self.done = True
            self.keep_alive = False  # the parser would wait for the body that does not come

    def on_message_complete(self) -> None:
        if self.response is not None and self.response.status:
            self.done = True

    # -- how it ends --

    def _detach(self, response: Response) -> None:
        response._rest = b"" if self.head_only else b"".join(self.body)
        response._conn = None
        self.body.clear()
        self.response = None

    def _finish(self, response: Response) -> None:
        response.complete = True
        self._detach(response)
        clean = self.keep_alive and not self.extra and not self.paused
        # A request that is not yet written out would be followed by the next one.
        if clean and not self.transport.is_closing() and not self.transport.get_write_buffer_size():
            self.reused = True
            self.pool.release(self)
        else:
            self.drop()
            self.pool.free_slot()

    def fail(self, response: Response, error: UpstreamError) -> None:
        response._error = error
        self._detach(response)
        self.drop()
        self.pool.free_slot()
        _wake(response)

    def drop(self) -> None:
        """Abort the transport. The slot of an idle connection becomes free, that of a used one is its user's."""
        if not self.dead:
            self.dead = True
            self.transport.abort()
            self.pool.forget(self)

    def check(self, now: float) -> None:
        """Called by the pool's timer."""
        response = self.response
        if response is not None and response.status and (self.active or self.paused):
            self.active = False
            self.deadline = now + self.pool.timeouts.idle
        elif now < self.deadline or self.dead:
            return
        elif response is None:
            self.drop()
        elif response.status:
            limit = self.pool.timeouts.idle
            self.fail(response, UpstreamTimeout(f"no byte of the body for {limit:g} s", "idle", sent_first_byte=True))
        else:
            self.fail(response, UpstreamTimeout(
                f"no response head within {self.pool.timeouts.first_byte:g} s", "first_byte",
                sent_first_byte=self.head_bytes > 0,
            ))  # fmt: skip


class Pool:
    """Connections to one origin: at most `max_connections`, waiters served in order. Bound to one event loop."""

    def __init__(
        self,
        origin: Origin,
        *,
        max_connections: int = 256,
        timeouts: Timeouts = Timeouts(),
        ssl_context: ssl.SSLContext | None = None,
        max_header_bytes: int = 65536,
        keepalive_idle: float = 30.0,
    ) -> None:
        self.origin = origin
        self.timeouts = timeouts
        self.max_header_bytes = max_header_bytes
        self.loop: asyncio.AbstractEventLoop
        self._ssl = (ssl_context or ssl.create_default_context()) if origin.tls else None
        self._after_target = b" HTTP/1.1\r\nHost: " + origin.host_header + b"\r\n"
        self._max = max_connections
        self._keepalive_idle = keepalive_idle
        shortest = min(timeouts.first_byte, timeouts.idle, timeouts.pool_wait, keepalive_idle)
        self._interval = min(max(shortest / 4, 0.01), 1.0)
        self._timer: asyncio.TimerHandle | None = None
        self._slots = 0  # connections that exist or are being made
        self._idle: list[_Connection] = []
        self._joined: set[_Connection] = set()
        self._waiters: OrderedDict[asyncio.Future[_Connection | None], float] = OrderedDict()
        self._closed = False
        self._all_left: asyncio.Future[None] | None = None

    @property
    def open_connections(self) -> int:
        return self._slots

    @property
    def waiting(self) -> int:
        return len(self._waiters)

    async def request(self, method: bytes, target: bytes, headers: bytes, body: bytes = b"") -> Response:
        """Send a request; returns when the head of the response is complete.

        `target` is sent as it is (the origin's prefix is the caller's to put), `headers` are whole lines. Host and
        Content-Length are added, nothing else. Raises ValueError for what must not be sent, else UpstreamError.
        """
        if not _METHOD.fullmatch(method):
            raise ValueError(f"not a method: {method!r}")
        if not _TARGET.fullmatch(target):
            raise ValueError(f"not a request target: {target!r}")
        if not _HEADER_LINES.fullmatch(headers):
            raise ValueError("headers must be whole lines, without control characters, Host, or framing headers")
        length = b"Content-Length: %d\r\n\r\n" % len(body) if body or method not in (b"GET", b"HEAD") else b"\r\n"
        data = b"".join((method, b" ", target, self._after_target, headers, length, body))
        conn = self._idle.pop() if self._idle else await self._acquire()
        while True:
            response = conn.send(data, method == b"HEAD")
            try:
                await cast("asyncio.Future[None]", response._waiter)
            except BaseException:
                response.close()
                if response._stale:
                    self.free_slot()
                raise
            if response.status:
                return response
            if response._error is not None:
                raise response._error
            conn = await self._connect()  # stale: once more, on a fresh connection, in the same slot

    async def close(self) -> None:
        """Abort everything; returns when all sockets are closed."""
        self._closed = True
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(ConnectFailed("the pool is closed"))
        self._waiters.clear()
        if self._timer is not None:
            self._timer.cancel()
        for conn in tuple(self._joined):
            if conn.response is not None:
                conn.fail(conn.response, UpstreamClosed("the pool is closed", sent_first_byte=conn.head_bytes > 0))
            else:
                conn.drop()
        if self._joined:
            self._all_left = self.loop.create_future()
            await self._all_left

    async def _acquire(self) -> _Connection:
        """A connection for the caller alone."""
        if self._closed:
            raise ConnectFailed("the pool is closed")
        self.loop = asyncio.get_running_loop()
        if self._slots < self._max:
            self._slots += 1
        else:
            conn = await self._turn()
            if conn is not None and not conn.dead:
                return conn
        return await self._connect()

    async def _turn(self) -> _Connection | None:
        """Wait in the queue for a connection, or for the slot of one that is gone (None)."""
        waiter: asyncio.Future[_Connection | None] = self.loop.create_future()
        self._waiters[waiter] = self.loop.time() + self.timeouts.pool_wait
        self._run_timer()
        try:
            return await waiter
        except asyncio.CancelledError:
            queued = self._waiters.pop(waiter, None)
            if queued is None and not waiter.cancelled() and waiter.exception() is None:
                conn = waiter.result()  # served and cancelled in the same moment: the next one's
                if conn is None or conn.dead:
                    self.free_slot()
                else:
                    self.release(conn)
            raise

    async def _connect(self) -> _Connection:
        """A new connection in a slot that the caller holds; the slot is freed when this fails."""
        try:
            async with asyncio.timeout(self.timeouts.connect):
                conn = await self._dial()
            if self._closed:
                conn.drop()
                raise ConnectFailed("the pool is closed")
            return conn
        except TimeoutError as exc:
            self.free_slot()
            raise ConnectFailed(f"{self.origin}: no connection within {self.timeouts.connect:g} s") from exc
        except (OSError, UnicodeError) as exc:
            self.free_slot()
            raise ConnectFailed(f"{self.origin}: {exc}") from exc
        except BaseException:
            self.free_slot()
            raise

    async def _dial(self) -> _Connection:
        """Connect, racing the address families of a name that has both (uvloop has no happy eyeballs)."""
        host, port = self.origin.host, self.origin.port
        if _is_ip(host):
            return await self._dial_family(socket.AF_UNSPEC)
        found = await self.loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        families = list(dict.fromkeys(info[0] for info in found))
        if len(families) == 1:
            return await self._dial_family(families[0])
        attempts: list[asyncio.Task[_Connection]] = []
        winner: asyncio.Task[_Connection] | None = None
        try:
            for family in families:
                attempts.append(self.loop.create_task(self._dial_family(family)))
                await asyncio.wait(attempts, timeout=_FAMILY_DELAY, return_when=asyncio.FIRST_COMPLETED)
                winner = next((t for t in attempts if t.done() and not t.exception()), None)
                if winner is not None:
                    return winner.result()
            while pending := [t for t in attempts if not t.done()]:
                await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                winner = next((t for t in attempts if t.done() and not t.exception()), None)
                if winner is not None:
                    return winner.result()
            return attempts[0].result()  # raises the first family's error
        finally:
            for task in attempts:
                if not task.done():
                    task.cancel()
                elif task is not winner and not task.exception():
                    task.result().drop()

    async def _dial_family(self, family: int) -> _Connection:
        _, conn = await self.loop.create_connection(
            lambda: _Connection(self),
            self.origin.host,
            self.origin.port,
            ssl=self._ssl,
            server_hostname=self.origin.host if self._ssl else None,
            family=family,
        )
        return conn

    # -- what connections call --

    def joined(self, conn: _Connection) -> None:
        self._joined.add(conn)
        self._run_timer()

    def left(self, conn: _Connection) -> None:
        self._joined.discard(conn)
        if not self._joined and self._all_left is not None and not self._all_left.done():
            self._all_left.set_result(None)

    def release(self, conn: _Connection) -> None:
        """A used connection is free again: the first waiter's, else idle."""
        conn.deadline = self.loop.time() + self._keepalive_idle
        waiter = self._next_waiter()
        if waiter is not None:
            waiter.set_result(conn)
        else:
            self._idle.append(conn)

    def forget(self, conn: _Connection) -> None:
        if conn in self._idle:
            self._idle.remove(conn)
            self.free_slot()

    def free_slot(self) -> None:
        """The slot of a connection that is gone passes to the first waiter."""
        waiter = self._next_waiter()
        if waiter is not None:
            waiter.set_result(None)
        else:
            self._slots -= 1

    def _next_waiter(self) -> "asyncio.Future[_Connection | None] | None":
        while self._waiters:
            waiter, _ = self._waiters.popitem(last=False)
            if not waiter.done():
                return waiter
        return None

    # -- the timer --

    def _run_timer(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self._interval, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = self.loop.time()
        while self._waiters and next(iter(self._waiters.values())) <= now:
            waiter, _ = self._waiters.popitem(last=False)
            if not waiter.done():
                waiter.set_exception(ConnectFailed(
                    f"{self.origin}: none of {self._max} connections became free within {self.timeouts.pool_wait:g} s"
                ))  # fmt: skip
        for conn in tuple(self._joined):
            conn.check(now)
        if self._joined or self._waiters:
            self._run_timer()


def _violation(message: str) -> ProtocolViolation:
    return ProtocolViolation(message, sent_first_byte=True)


def _wake(response: Response) -> None:
    waiter = response._waiter
    if waiter is not None:
        response._waiter = None
        if not waiter.done():
            waiter.set_result(None)


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_ipv6(host: str) -> bool:
    return ":" in host and _is_ip(host)
