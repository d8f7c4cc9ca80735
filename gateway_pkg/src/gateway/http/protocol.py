"""uvicorn's HTTP protocol with what a hot request saves by going past ASGI, and with a bound on a request's head.

An answer's head and body go out in one write, since each is a system call that wakes the client; a whole answer goes
out as the bytes that it is. And whoever works for a client is told at once when it leaves; by ASGI's `receive()` that
would take a task of its own for each request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

EXTENSION = "gateway.connection"
HEAD = b"HTTP/1.1 "
# A head is held in memory before anything can be known of its sender. Twice what other servers take at the most.
REQUEST_HEAD_MAX_BYTES = 64 * 1024
# From the connection, or its last answer's end, to the end of a head; who takes longer only holds the connection.
REQUEST_HEAD_MAX_SEC = 30.0
TOO_LATE = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class _ServerLines:
    """uvicorn's own headers as lines; it makes the list anew each second, for the date."""

    def __init__(self) -> None:
        self._headers: list[tuple[bytes, bytes]] = []
        self._lines = b""

    def __call__(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        if headers is not self._headers:
            self._headers = headers
            self._lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        return self._lines


_server_lines = _ServerLines()


class _JoiningTransport:
    """Holds a head back until its body follows, at most until the event loop's next turn."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held = b""
        # Bound here once: what `__getattr__` finds costs an AttributeError each time.
        self.is_closing = transport.is_closing
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading

    def write(self, data: bytes) -> None:
        if self._held:
            data, self._held = self._held + data, b""
        elif data.startswith(HEAD):
            self._held = data
            self._loop.call_soon(self._flush)
            return
        self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _flush(self) -> None:
        if self._held:
            data, self._held = self._held, b""
            self._transport.write(data)


class Protocol(HttpToolsProtocol):
    """What `uvicorn.Config(http=…)` takes; in a request's scope it is the extension `gateway.connection`."""

    # Called once, when the client leaves; None while nobody works for it. One request at a time is under way here.
    on_left: Callable[[], object] | None = None
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None  # runs while a head is waited for

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(cast(asyncio.Transport, _JoiningTransport(transport, self.loop)))
        self._wait_for_head()

    def write_answer(self, head: tuple[bytes, ...], body: bytes) -> bool:
        """Sends a whole answer; False, and nothing sent, where that has to go through ASGI's `send`.

        `head` is, in pieces, the status line and whole header lines, without the empty line at its end. The request
        under way must be a POST, its answer one that may have a body.
        """
        cycle = self.cycle
        if (
            self.pipeline
            or cycle.response_started
            or cycle.disconnected
            or self.flow.write_paused
            or not cycle.keep_alive
        ):
            return False
        cycle.response_started = cycle.response_complete = True
        cycle.message_event.set()
        self.transport.write(b"".join((*head, _server_lines(cycle.default_headers), b"\r\n", body)))
        cycle.on_response()
        return True

    def take_body(self) -> bytes | None:
        """The body of the request under way, where all of it has come and nobody took it; else None.

        As ASGI's `receive()` gives it, without the turn through its event.
        """
        cycle = self.cycle
        if self.pipeline or cycle.more_body or cycle.disconnected or cycle.waiting_for_100_continue:
            return None
        body = bytes(cycle.body)
        cycle.body = bytearray()
        self.flow.resume_reading()
        return body

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {EXTENSION: cast(Any, self)}
        self._head_bytes = 0

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.scope is None or "method" in self.scope:  # set at the head's end
            return
        # What came ends in a head without its end yet. (One that ends within a single read is bounded by that.)
        self._head_bytes += len(data)
        if self._head_bytes > REQUEST_HEAD_MAX_BYTES and not self.transport.is_closing():
            self.transport.write(TOO_LARGE)
            self.transport.close()
        elif self._head_timer is None:
            self._wait_for_head()

    def _wait_for_head(self) -> None:
        self._head_timer = self.loop.call_later(REQUEST_HEAD_MAX_SEC, self._head_is_late)

    def _head_is_late(self) -> None:
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self._wait_for_head()  # the answer before it has all the time that it needs
            return
        if self._head_bytes:
            self.transport.write(TOO_LATE)
        self.transport.close()

    def shutdown(self) -> None:
        """uvicorn's, at a stop; but an idle TLS client is not waited for to agree to the end."""
        is_idle = self.cycle is None or self.cycle.response_complete
        is_tls = self.transport.get_extra_info("sslcontext") is not None
        if is_idle and is_tls and not self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._head_timer is not None:
            self._head_timer.cancel()
        if self.on_left is not None:
            self.on_left()
            self.on_left = None
