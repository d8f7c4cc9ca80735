"""uvicorn's HTTP protocol with what a hot request saves by going past ASGI, and with bounds on who is slow.

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
NEVER = float("inf")
# A head is held in memory before anything can be known of its sender. Twice what other servers take at the most.
REQUEST_HEAD_MAX_BYTES = 64 * 1024
# From the connection, or a head's first byte, to the head's end; and from the first byte that comes of a body after
# its request was answered to the next head. Who takes longer only holds the connection.
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
    """Holds a head back until its body follows, at most until the event loop's next turn.

    `on_unsent` is called when it is closed before all is sent, for which the event loop has all the time in the world.
    """

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, on_unsent: Callable[[], object]
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._on_unsent = on_unsent
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
        if self._transport.get_write_buffer_size():
            self._on_unsent()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _flush(self) -> None:
        if self._held:
            data, self._held = self._held, b""
            self._transport.write(data)


class Protocol(HttpToolsProtocol):
    """What `uvicorn.Config(http=…)` takes; in a request's scope it is the extension `gateway.connection`.

    A request has `body_timeout` seconds for its body; a client that takes nothing for `send_timeout` is cut.
    """

    body_timeout = 600.0
    send_timeout = 300.0
    # Called once, when the client leaves; None while nobody works for it. One request at a time is under way here.
    on_left: Callable[[], object] | None = None
    _head_bytes = 0
    _head_due = NEVER  # seconds of the loop's clock; what REQUEST_HEAD_MAX_SEC bounds is waited for until then
    _head_timer: asyncio.TimerHandle | None = None  # it may outlast its head: a timer a connection, not a request
    _send_timer: asyncio.TimerHandle | None = None  # runs while more waits to be sent than the buffers should hold

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        joining = _JoiningTransport(transport, self.loop, self._watch_sending)
        super().connection_made(cast(asyncio.Transport, joining))
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
        self._head_due = NEVER

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.scope is None:
            return
        if "method" in self.scope:  # set at the head's end
            if self.cycle.response_complete and self._head_due == NEVER:
                self._wait_for_head()  # a body that nobody reads is not to come for ever
            return
        # What came ends in a head without its end yet. (One that ends within a single read is bounded by that.)
        self._head_bytes += len(data)
        if self._head_bytes > REQUEST_HEAD_MAX_BYTES and not self.transport.is_closing():
            self.transport.write(TOO_LARGE)
            self.transport.close()
        elif self._head_due == NEVER:
            self._wait_for_head()

    def _wait_for_head(self) -> None:
        self._head_due = self.loop.time() + REQUEST_HEAD_MAX_SEC
        if self._head_timer is None:
            self._head_timer = self.loop.call_at(self._head_due, self._check_head)

    def _check_head(self) -> None:
        self._head_timer = None
        if self.transport.is_closing() or self._head_due == NEVER:
            return
        if self._head_due > self.loop.time():
            self._head_timer = self.loop.call_at(self._head_due, self._check_head)
        elif self.cycle is not None and not self.cycle.response_complete:
            self._wait_for_head()  # the answer before it has all the time that it needs
        else:
            if self._head_bytes:
                self.transport.write(TOO_LATE)
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_sending()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._send_timer is not None:
            self._send_timer.cancel()
        if self.transport.is_closing():
            self._watch_sending()

    def _watch_sending(self) -> None:
        """Until writing is resumed, or all is sent at the end: nothing is added meanwhile."""
        if self._send_timer is not None:
            self._send_timer.cancel()
        unsent = self.transport.get_write_buffer_size()
        self._send_timer = self.loop.call_later(self.send_timeout, self._check_sending, unsent)

    def _check_sending(self, before: int) -> None:
        if self.transport.get_write_buffer_size() < before:
            self._watch_sending()
        else:
            self.transport.abort()

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
        for timer in (self._head_timer, self._send_timer):
            if timer is not None:
                timer.cancel()
        if self.on_left is not None:
            self.on_left()
            self.on_left = None
