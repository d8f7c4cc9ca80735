"""HTTP/1.1 client of the hot routes: one pool per backend, asyncio transports, httptools' parser.

It follows no redirect, decompresses nothing, and keeps one request at a time on a connection. It trusts no backend:
ambiguous framing, oversized heads and bytes after the end of a message cost the backend its connection.
"""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache

from gateway.wire.connection import Connection, OnAbort, Response, UnansweredOnReused
from gateway.wire.dial import dial
from gateway.wire.errors import ConnectFailed, PoolExhausted, UpstreamClosed
from gateway.wire.origin import Origin

log = logging.getLogger(__name__)

CLOSE_SEC = 2.0  # an aborted socket is closed within a turn of the loop
_METHOD = re.compile(rb"[A-Z][A-Z-]*")
_TARGET = re.compile(rb"/[!\"$-~]*")  # visible ASCII without the '#' of a fragment
# No possessive quantifiers: Python before 3.11.5 matches with them what does not match (CPython's gh-106052).
_HEADER_LINES = re.compile(
    rb"(?:(?!(?i:host|content-length|transfer-encoding):)[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~\x80-\xff]*\r\n)*"
)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds. `first_byte` runs from the request to the end of the response's head, `idle` between bytes of a body.

    One timer per pool watches them: all but `connect` fire up to half of the shortest of them (at most 2 s) late.
    """

    connect: float = 5.0
    first_byte: float = 600.0
    idle: float = 600.0
    pool_wait: float = 5.0


class Pool:
    """Connections to one origin: at most `max_connections`, waiters served in order. Bound to one event loop.

    `max_header_bytes` bounds a response's head (interim ones included) and what frames a chunked body without any
    of it; a connection without a request is closed after `keepalive_idle` seconds.
    """

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
        self.loop: asyncio.AbstractEventLoop  # that of the first request
        self.tls = (ssl_context or ssl.create_default_context()) if origin.tls else None
        self._max_connections = max_connections
        self._keepalive_idle = keepalive_idle
        shortest = min(timeouts.first_byte, timeouts.idle, timeouts.pool_wait, keepalive_idle)
        self._interval = min(max(shortest / 4, 0.01), 1.0)
        self._timer: asyncio.TimerHandle | None = None
        self._slots = 0  # connections that exist or are being made
        self._idle: list[Connection] = []
        self._joined: set[Connection] = set()  # whose socket is not yet closed
        self._waiters: OrderedDict[asyncio.Future[Connection | None], float] = OrderedDict()
        self._closed = self._retired = False
        self._all_left: asyncio.Future[None] | None = None
        self._head = lru_cache(maxsize=64)(self._checked_head)  # a backend's requests look alike

    @property
    def open_connections(self) -> int:
        """Connections in use, idle, or being made."""
        return self._slots

    @property
    def waiting(self) -> int:
        """Requests in the queue for a connection."""
        return len(self._waiters)

    async def request(
        self,
        method: bytes,
        target: bytes,
        headers: bytes,
        body: bytes = b"",
        only_once: bool = False,
        on_abort: OnAbort | None = None,
    ) -> Response:
        """Send a request; returns when the head of the response is complete.

        `target` goes out as it is (an origin's prefix is the caller's to put), `headers` are whole lines. Host and
        Content-Length are added, nothing else. Raises ValueError for what must not be sent, else UpstreamError.
        A kept-alive connection that is found closed costs no error: the request goes out once more on a new one; but
        with `only_once`, which asks for a new one at once. `on_abort` is called when this side ends the answer.
        """
        head = self._head(method, target, headers)
        if body or method not in (b"GET", b"HEAD"):
            data = b"%bContent-Length: %d\r\n\r\n%b" % (head, len(body), body)
        else:
            data = head + b"\r\n"
        connection = self._idle.pop() if self._idle and not only_once else await self._acquire()
        sendings = 1
        while True:
            waiter: asyncio.Future[None] = self.loop.create_future()
            response = connection.send(data, waiter, method == b"HEAD", on_abort)
            try:
                await waiter
            except BaseException:
                if isinstance(response._error, UnansweredOnReused):
                    self.free_slot()
                response.close()
                raise
            if response.status:
                return response
            error = response._error or UpstreamClosed("the response has ended")
            error.sendings = sendings
            if only_once or not isinstance(error, UnansweredOnReused):
                break
            try:
                connection = await self._connect()
            except ConnectFailed as failed:
                failed.sendings = sendings
                raise
            sendings += 1
        if isinstance(error, UnansweredOnReused):
            self.free_slot()
        try:
            raise error
        finally:
            del connection, response, error  # its traceback holds this frame

    def take_over(self, max_connections: int, timeouts: Timeouts) -> None:
        """Follows other limits from now on, and is no longer retired; what is above the cap ends with its use."""
        self.timeouts, self._max_connections, self._retired = timeouts, max_connections, False
        while self._idle and self._slots > max_connections:
            self._idle[0].drop()
        while self._slots < max_connections and (waiter := self._next_waiter()):
            self._slots += 1
            waiter.set_result(None)

    def retire(self) -> None:
        """Keep no connection any more: those that are idle end now, those in use with their last request."""
        self._retired = True
        for connection in tuple(self._idle):
            connection.drop()

    async def close(self) -> None:
        """Abort everything; returns when all sockets are closed, or CLOSE_SEC have passed."""
        self._closed = True
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(ConnectFailed("the pool is closed"))
        self._waiters.clear()
        for connection in tuple(self._joined):
            if connection.response is not None:
                connection.fail(UpstreamClosed("the pool is closed", sent_first_byte=connection.head_bytes > 0))
            else:
                connection.drop()
        if self._joined:
            self._all_left = self.loop.create_future()
            await asyncio.wait((self._all_left,), timeout=CLOSE_SEC)
        if self._joined:
            count = len(self._joined)
            log.warning("%s: %d connections are still open %g s after their abort", self.origin, count, CLOSE_SEC)
        if self._timer is not None:
            self._timer.cancel()

    def _checked_head(self, method: bytes, target: bytes, headers: bytes) -> bytes:
        if not _METHOD.fullmatch(method):
            raise ValueError(f"not a method: {method!r}")
        if not _TARGET.fullmatch(target):
            raise ValueError(f"not a request target: {target!r}")
        if not _HEADER_LINES.fullmatch(headers):
            raise ValueError("headers must be whole lines without control characters, Host or framing")
        return b"%b %b HTTP/1.1\r\nHost: %b\r\n%b" % (method, target, self.origin.host_header, headers)

    async def _acquire(self) -> Connection:
        """A connection for the caller alone; the idle ones are used up, or not wanted."""
        if self._closed:
            raise ConnectFailed("the pool is closed")
        self.loop = asyncio.get_running_loop()
        if self._idle and self._slots >= self._max_connections:  # a new one is wanted
            self._idle[0].drop()
        if self._slots < self._max_connections:
            self._slots += 1
        else:
            connection = await self._turn()
            if connection is not None and not connection.dead:
                return connection
        return await self._connect()

    async def _turn(self) -> Connection | None:
        """Wait in the queue for a connection, or for the slot of one that is gone (None)."""
        waiter: asyncio.Future[Connection | None] = self.loop.create_future()
        self._waiters[waiter] = self.loop.time() + self.timeouts.pool_wait
        self._run_timer()
        try:
            return await waiter
        except asyncio.CancelledError:
            self._waiters.pop(waiter, None)
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                connection = waiter.result()  # served and cancelled in the same moment: it is the next one's
                if connection is None or connection.dead:
                    self.free_slot()
                else:
                    self.release(connection)
            raise

    async def _connect(self) -> Connection:
        """A new connection in a slot that the caller has; the slot is freed when this fails."""
        try:
            if self._closed:
                raise ConnectFailed("the pool is closed")
            async with asyncio.timeout(self.timeouts.connect):
                connection = await dial(self.origin, lambda: Connection(self), self.tls)
            if self._closed:
                connection.drop()
                raise ConnectFailed("the pool is closed")
            if connection.dead:  # its end has been told already, and would not be told to a request
                raise ConnectFailed(f"{self.origin}: the connection was closed as soon as it was made")
            return connection
        except BaseException as error:
            self.free_slot()
            if isinstance(error, TimeoutError):
                raise ConnectFailed(f"{self.origin}: no connection within {self.timeouts.connect:g} s") from error
            if isinstance(error, OSError | UnicodeError):  # a name too long for DNS is a UnicodeError
                raise ConnectFailed(f"{self.origin}: {error}") from error
            raise

    # Called by connections.

    def joined(self, connection: Connection) -> None:
        """A socket was opened."""
        self._joined.add(connection)
        self._run_timer()

    def left(self, connection: Connection) -> None:
        """A socket was closed."""
        if connection in self._joined:
            self._joined.remove(connection)
            connection.release_parser()
        if not self._joined and self._all_left is not None and not self._all_left.done():
            self._all_left.set_result(None)

    def abandon(self, connection: Connection) -> None:
        """Its dial has failed or was cancelled: uvloop may have closed the socket without telling the connection."""
        if connection in self._joined:
            connection.drop()
            self.loop.call_soon(self.left, connection)  # after its own `connection_lost`, where that comes

    def release(self, connection: Connection) -> None:
        """A used connection is free again: the first waiter's, else idle."""
        connection.deadline = self.loop.time() + self._keepalive_idle
        is_above = self._slots > self._max_connections
        if self._waiters and not is_above and (waiter := self._next_waiter()):
            waiter.set_result(connection)
        else:
            self._idle.append(connection)
            if is_above or self._retired:
                connection.drop()

    def forget(self, connection: Connection) -> None:
        """A connection was dropped."""
        if connection in self._idle:
            self._idle.remove(connection)
            self.free_slot()

    def free_slot(self) -> None:
        """The slot of a connection that is gone passes to the first waiter, if it is not above the cap."""
        if self._slots <= self._max_connections and (waiter := self._next_waiter()):
            waiter.set_result(None)
        else:
            self._slots -= 1

    def _next_waiter(self) -> asyncio.Future[Connection | None] | None:
        while self._waiters:
            waiter, _ = self._waiters.popitem(last=False)
            if not waiter.done():
                return waiter
        return None

    # The timer.

    def _run_timer(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self._interval, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now = self.loop.time()
        while self._waiters and next(iter(self._waiters.values())) <= now:
            waiter, _ = self._waiters.popitem(last=False)
            if not waiter.done():
                limit = f"none of {self._max_connections} connections free within {self.timeouts.pool_wait:g} s"
                waiter.set_exception(PoolExhausted(f"{self.origin}: {limit}"))
        for connection in tuple(self._joined):
            connection.check(now)
        if self._joined or self._waiters:
            self._run_timer()
