"""uvicorn's HTTP protocol with what a hot request saves by going past ASGI, and with bounds on what a client may send.

An answer's head and body go out in one write, since each is a system call that wakes the client; a whole answer goes
out as the bytes that it is. And whoever works for a client is told at once when it leaves; by ASGI's `receive()` that
would take a task of its own for each request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import unquote

from httptools import (
    HttpParserError,
    HttpParserInvalidMethodError,
    HttpParserInvalidURLError,
    HttpParserUpgrade,
    HttpRequestParser,
    parse_url,
)
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from gateway.errors import ApiError
from gateway.wire.ending import LINGER_MAX_BYTES, Ending
from gateway.wire.head import check_head

EXTENSION = "gateway.connection"
NAMED_HEADERS = "gateway.headers"  # in a request's scope: its headers by name, of several of one name the last
HEAD = b"HTTP/1.1 "
NEVER = float("inf")
ASGI = {"version": "3.0", "spec_version": "2.3"}
# A head is held in memory before anything can be known of its sender. Twice what other servers take at the most.
# As much may come within a request without moving it on: chunk extensions, trailers, blank lines.
REQUEST_HEAD_MAX_BYTES = 64 * 1024
# Requests on one connection that wait for the answer before theirs. With more than the first number nothing more is
# read, so that who leaves is no longer noticed; after as many as the second the connection ends.
PIPELINED_READING = 4
PIPELINED_MAX = 100
# From the connection, or a head's first byte, to the head's end. Who takes longer only holds the connection.
REQUEST_HEAD_MAX_SEC = 30.0


class _Enough(Exception):
    """What comes now is not looked at any more."""


# The request of a connection that is gone, for who still asks. The true one would keep the connection in a circle.
_GONE: Any = SimpleNamespace(
    disconnected=True,
    keep_alive=False,
    more_body=True,
    response_complete=True,
    response_started=True,
    waiting_for_100_continue=False,
)


_OTHER_VERSION = ("Invalid HTTP version", "Pause on PRI")  # llhttp's words; the latter begins HTTP/2
# The event of a request that nobody waits for, since most requests come whole.
_UNHEARD: Any = SimpleNamespace(set=bool, clear=bool)


class _Cycle(RequestResponseCycle):
    """uvicorn's, with an event no sooner than `receive` is called."""

    async def receive(self) -> Any:
        if self.message_event is _UNHEARD:
            self.message_event = asyncio.Event()
            if self.body or not self.more_body or self.disconnected or self.response_complete:
                self.message_event.set()
        return await super().receive()


def _head_too_large(place: str) -> ApiError:
    return ApiError(431, f"{place} is larger than {REQUEST_HEAD_MAX_BYTES} bytes", code="head_too_large")


class _ServerLines:
    """uvicorn's own headers as lines; it makes the list anew each second, for the date."""

    def __init__(self) -> None:
        self._headers: list[tuple[bytes, bytes]] = []
        self._lines = b""

    def of(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        if headers is not self._headers:
            self._headers = headers
            self._lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        return self._lines


_server_lines = _ServerLines().of


class _JoiningTransport:
    """Holds a head back until its body follows, at most until the event loop's next turn; asks how to close."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, owner: Protocol) -> None:
        self._transport = transport
        self._loop = loop
        self._owner: Protocol | None = owner
        self._held = b""
        # The rest of what uvicorn and this protocol call. A `__getattr__` would slow every attribute down.
        self.abort = transport.abort
        self.get_extra_info = transport.get_extra_info
        self.get_write_buffer_size = transport.get_write_buffer_size
        self.is_closing = transport.is_closing
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading
        self.write_whole = transport.write  # all but a head that waits for its body

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
        if self._owner is not None and not self.is_closing():
            self._owner.close(self._transport)
            self.is_closing = lambda: True

    def lost(self) -> None:
        """The connection is: its owner is let go, which else would keep itself by way of this."""
        self._owner = None
        self._held = b""

    def _flush(self) -> None:
        if self._held:
            data, self._held = self._held, b""
            self._transport.write(data)


class _BodyOnly:
    """A parser's protocol for the rest of one request, which asked for an upgrade that it does not get."""

    def __init__(self, owner: Protocol) -> None:
        self._owner = owner
        self.on_body = owner.on_body
        self.on_message_complete = owner.on_message_complete

    def on_message_begin(self) -> None:
        if not self._owner.cycle.more_body:
            raise _Enough


class Protocol(HttpToolsProtocol):
    """What `uvicorn.Config(http=…)` takes; in a request's scope it is the extension `gateway.connection`.

    A request has `body_timeout` seconds for its body; a client that takes nothing for `send_timeout` is cut.
    """

    body_timeout = 600.0
    send_timeout = 300.0
    # Called once, when the client leaves; None while nobody works for it. One request at a time is under way here.
    on_disconnect: Callable[[], object] | None = None
    task: asyncio.Task[None] | None = None  # of the request under way, or of the last one
    _answering: RequestResponseCycle | None = None  # whose handler runs, or ran last; `cycle` is the newest
    _is_in_head = False  # of a request has come, but not its end
    _is_long_head = False  # it came in more than one piece
    _has_moved = False  # a request has begun, its head has ended, or some of its body has come
    _loose_bytes = 0  # that came since then
    _is_deaf = False  # what comes is thrown away
    _unheard = 0  # bytes of it
    _ending: Ending | None = None
    _head_due = NEVER  # seconds of the loop's clock; what REQUEST_HEAD_MAX_SEC bounds is waited for until then
    _head_timer: asyncio.TimerHandle | None = None  # it may outlast its head: a timer a connection, not a request
    _idle_due = NEVER  # when a connection without a request is closed; uvicorn has a timer for each answer
    _idle_timer: asyncio.TimerHandle | None = None
    _send_timer: asyncio.TimerHandle | None = None  # runs while more waits to be sent than the buffers should hold

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._named: dict[bytes, bytes] = {}  # `headers` by name
        # It would keep this protocol in a circle where the connection ends before it is made: within TLS's handshake.
        self.parser = None  # type: ignore[assignment]  # as uvicorn has it at the end

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        joining = _JoiningTransport(transport, self.loop, self)
        super().connection_made(cast(asyncio.Transport, joining))
        self.parser = HttpRequestParser(self)
        self._wait_for_head()

    def write_answer(self, head: bytes, lines: bytes, body: bytes) -> bool:
        """Sends a whole answer; False, and nothing sent, where that has to go through ASGI's `send`.

        `head` begins with the status line; both are whole header lines, without the empty line at their end. The
        request under way must be a POST, its answer one that may have a body.
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
        joining = cast(_JoiningTransport, self.transport)
        joining.write_whole(b"".join((head, lines, _server_lines(cycle.default_headers), b"\r\n", body)))
        self.on_response_complete()
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

    def answer_begins(self) -> None:
        """To be called before a head is sent by ASGI's `send`: an early answer, to a request that is not whole, is
        the connection's last."""
        cycle = cast(RequestResponseCycle, self._answering)
        if cycle.more_body:
            cycle.keep_alive = False

    # What comes. The parser calls `on_…` inside of `feed_data`.

    def on_message_begin(self) -> None:
        before = self.cycle
        if before is not None and not before.keep_alive:
            raise _Enough
        self.url = b""
        self.headers = []
        self._named = {}
        self._is_in_head = self._has_moved = True
        self._head_due = NEVER

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        self.headers.append((name, value))
        self._named[name] = value

    def on_headers_complete(self) -> None:
        """Makes the request's cycle; its handler begins, or waits for those before it."""
        self._has_moved = True
        self._is_in_head = False
        parser, headers, named = self.parser, self.headers, self._named
        if self._is_long_head:
            self._is_long_head = False
            if len(self.url) + sum(len(name) + len(value) + 4 for name, value in headers) > REQUEST_HEAD_MAX_BYTES:
                raise _head_too_large("The request's head")
        version = parser.get_http_version()
        expects = named.get(b"expect")
        if (
            version != "1.1"
            or expects is not None
            or len(named) != len(headers)
            or b"host" not in named
            or b"transfer-encoding" in named
        ):
            check_head(version, headers)
        raw_path, query = self.url, b""
        if raw_path[:1] != b"/" or raw_path.find(b"?") >= 0 or raw_path.find(b"#") >= 0:
            parsed = parse_url(raw_path)
            raw_path, query = parsed.path, parsed.query or b""
        path = raw_path.decode("ascii")
        scope: Any = {
            "type": "http",
            "asgi": ASGI,
            "http_version": version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "root_path": "",
            "headers": headers,
            "extensions": {EXTENSION: self},
            NAMED_HEADERS: named,
            "method": parser.get_method().decode("ascii"),
            "path": unquote(path) if "%" in path else path,
            "raw_path": raw_path,
            "query_string": query,
        }
        self.headers, self._named = [], {}  # trailers are no headers (RFC 9110, 6.5.1), and nothing here reads them
        before = self.cycle
        self.cycle = cycle = _Cycle(
            scope,
            self.transport,
            self.flow,
            self.logger,
            self.access_logger,
            self.access_log,
            self.server_state.default_headers,
            _UNHEARD,
            expects is not None and version == "1.1",
            version != "1.0" and parser.should_keep_alive(),
            self.on_response_complete,
        )
        if before is None or before.response_complete:
            self._start_asgi_task(cycle, self.app)
            return
        self.flow.pause_reading()
        self.pipeline.appendleft((cycle, self.app))
        if len(self.pipeline) <= PIPELINED_READING:
            self.flow.resume_reading()
        elif len(self.pipeline) >= PIPELINED_MAX:
            cycle.keep_alive = False

    def on_message_complete(self) -> None:
        cycle = self.cycle
        if not cycle.response_complete:
            cycle.more_body = False
            cycle.message_event.set()

    def on_response_complete(self) -> None:
        """Called by a cycle: answers the next request, or lets the connection wait for one."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self._idle_due = self.loop.time() + self.timeout_keep_alive
        if self._idle_timer is None:
            self._idle_timer = self.loop.call_at(self._idle_due, self._check_idle)

    def _check_idle(self) -> None:
        self._idle_timer = None
        if self.cycle.response_complete and not self._is_in_head and not self.transport.is_closing():
            if self._idle_due > self.loop.time():
                self._idle_timer = self.loop.call_at(self._idle_due, self._check_idle)
            else:
                self.transport.close()

    def on_body(self, body: bytes) -> None:
        self._has_moved = True
        cycle = self.cycle
        if cycle.response_complete:
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        self.task = task = self.loop.create_task(cycle.run_asgi(app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)
        if len(self.pipeline) > PIPELINED_READING:
            self.flow.pause_reading()

    def data_received(self, data: bytes) -> None:
        if self._is_deaf or len(data) > REQUEST_HEAD_MAX_BYTES:
            self._receive_in_pieces(data)
            return
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade as pause:
            self._decline_upgrade(data[pause.args[0] :])
            return
        except HttpParserError as error:
            self._receive_no_more(error)
            return
        if self._has_moved:
            self._has_moved = False
            self._loose_bytes = 0
        else:
            self._loose_bytes += len(data)
            if self._loose_bytes > REQUEST_HEAD_MAX_BYTES:
                self._refuse(_head_too_large("The head, or what stands between the body's chunks or behind them,"))
                return
        self._is_long_head = self._is_in_head
        if self._head_due == NEVER and (self._is_in_head or self.cycle.response_complete):
            self._wait_for_head()

    def _receive_in_pieces(self, data: bytes) -> None:
        """So that what is looked at between two pieces bounds also what comes in one large read."""
        for start in range(0, len(data), REQUEST_HEAD_MAX_BYTES):
            if self._is_deaf:
                self._unheard += len(data) - start
                if self._unheard > LINGER_MAX_BYTES:
                    self.flow.pause_reading()
                return
            self.data_received(data[start : start + REQUEST_HEAD_MAX_BYTES])

    def _decline_upgrade(self, rest: bytes) -> None:
        """Goes on with HTTP/1.1, as a server may: Java's client asks for HTTP/2 with each request in clear.

        The parser has ended the request with its head. Its body is read by another one.
        """
        cycle = self.cycle
        framing = [field for field in cycle.scope["headers"] if field[0] in (b"content-length", b"transfer-encoding")]
        if framing:
            cycle.more_body = True
            cycle.message_event.clear()
            cycle.keep_alive = False
            self.parser = HttpRequestParser(_BodyOnly(self))
            rest = b"POST / HTTP/1.1\r\n%b: %b\r\n\r\n" % framing[0] + rest
        self.data_received(rest)

    def _receive_no_more(self, error: HttpParserError) -> None:
        reason = error.__context__  # what a callback raised
        if isinstance(reason, _Enough):
            self._is_deaf = True
        elif isinstance(reason, ApiError):
            self._refuse(reason)
        elif isinstance(reason, HttpParserInvalidURLError | AttributeError | UnicodeError):  # of uvicorn's reading it
            problem = "The request's target has no path; send one as /v1/models"
            self._refuse(ApiError(400, problem, code="invalid_target"))
        elif reason is not None:
            raise error
        elif isinstance(error, HttpParserInvalidMethodError):
            self._refuse(
                ApiError(501, "The request's method is unknown; names are in upper case", code="unknown_method")
            )
        elif str(error).startswith(_OTHER_VERSION):
            self._refuse(ApiError(505, "This version of HTTP is not served here; send HTTP/1.1", code="http_version"))
        else:
            self._refuse(ApiError(400, f"This is not a valid HTTP/1.1 request: {error}", code="invalid_request"))

    def _refuse(self, error: ApiError) -> None:
        """Ends what the client may send by an error, which is sent where no answer before it is outstanding."""
        self._is_deaf = True
        broken = self.cycle
        if broken is not None and not self._is_in_head and broken.more_body:
            broken.disconnected = True  # its body has no end: whoever reads it learns that
            broken.message_event.set()
            if broken is not self._answering:
                self.pipeline.popleft()
            elif broken.response_started:
                self.transport.abort()
            else:
                self._answer_last(error)
                return
        last = self.pipeline[0][0] if self.pipeline else self._answering
        if last is None or last.response_complete:
            self._answer_last(error)
        else:
            last.keep_alive = False

    def _answer_last(self, error: ApiError) -> None:
        body = error.body()
        lines = (b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body),)
        head = (STATUS_LINE[error.status], _server_lines(self.server_state.default_headers), *lines)
        self._is_deaf = True
        self.transport.write(b"".join((*head, body)))
        self.transport.close()

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
        elif not self._is_in_head:  # nothing of it has come
            self.transport.close()
        else:
            problem = f"The head did not come within {REQUEST_HEAD_MAX_SEC:g} s"
            self._answer_last(ApiError(408, problem, code="request_timeout"))

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

    # How it ends.

    def close(self, transport: asyncio.Transport) -> None:
        """By `transport.close()`: at once where the client has sent all, else when it has had its answer."""
        if self._is_deaf or (self.cycle is not None and self.cycle.more_body):
            self._is_deaf = True
            self.flow.resume_reading()
            self._ending = Ending(self, transport, self.loop)
            transport.set_protocol(self._ending)
        else:
            transport.close()
        if transport.get_write_buffer_size():
            self._watch_sending()  # the event loop has all the time in the world

    def shutdown(self) -> None:
        """uvicorn's, at a stop; but an idle TLS client is not waited for to agree to the end."""
        is_idle = self.cycle is None or self.cycle.response_complete
        is_tls = self.transport.get_extra_info("sslcontext") is not None
        if self._ending is not None:
            self._ending.hurry()
        elif is_idle and is_tls and not self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        """As uvicorn's, for all requests of the connection; and it lets go what would keep it in a circle."""
        self.connections.discard(self)
        for timer in (self._head_timer, self._send_timer, self._idle_timer):
            if timer is not None:
                timer.cancel()
        for cycle in (self._answering, *(waiting for waiting, _ in self.pipeline)):
            if cycle is not None:
                cycle.disconnected = cycle.disconnected or not cycle.response_complete
                cycle.message_event.set()
        self.flow.resume_writing()
        if self.on_disconnect is not None:
            self.on_disconnect()
            self.on_disconnect = None
        self.pipeline.clear()
        self.parser = self._ending = None  # type: ignore[assignment]  # as uvicorn has it
        self.cycle = self._answering = _GONE
        cast(_JoiningTransport, self.transport).lost()
