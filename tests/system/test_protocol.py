"""The gateway's HTTP protocol in this process, byte by byte: what a connection holds, and for how long."""

from __future__ import annotations

import asyncio
import json
import ssl
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import uvicorn
from gateway.wire import ending, protocol
from gateway.wire.protocol import EXTENSION, REQUEST_HEAD_MAX_BYTES, Protocol
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from tests.support.authority import LOCAL, Authority
from tests.support.waiting import until_async

GET = b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n"
BODY = b"POST /%b HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nhalf"
CHUNKED = b"POST /%b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
HEAD, STREAM_HEAD = b"HTTP/1.1 200 OK\r\n", b"transfer-encoding: chunked\r\n\r\n"


class Server:
    """Protocols before an app that does what a request's path says; `ended` has the paths whose handlers are over."""

    def __init__(self) -> None:
        self.state = ServerState()
        self.port = 0
        self.ended: list[str] = []
        self.bodies: list[bytes] = []
        self.headers: list[list[tuple[bytes, bytes]]] = []
        self.connections: list[weakref.ref[Protocol]] = []
        self.keep_alive = 5.0

    def made(self) -> Protocol:
        made = Protocol(uvicorn.Config(self._app, log_config=None, ws="none", interface="asgi3"), self.state, {})
        made.timeout_keep_alive = self.keep_alive  # type: ignore[assignment]  # uvicorn wants whole seconds
        self.connections.append(weakref.ref(made))
        return made

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"][1:]
        self.headers.append(list(scope["headers"]))
        more, body = path != "early", b""
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            body, more = body + message["body"], message["more_body"]
        self.bodies.append(body)
        scope["extensions"][EXTENSION].answer_begins()
        headers = [] if path in ("stream", "cut") else [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if path == "cut":
            await asyncio.sleep(0)
            scope["extensions"][EXTENSION].transport.abort()
        if headers:
            await send({"type": "http.response.body", "body": b"ok"})
        else:
            while (await receive())["type"] != "http.disconnect":
                pass
        self.ended.append(path)


@asynccontextmanager
async def serving(tls: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    served = Server()
    listener = await asyncio.get_running_loop().create_server(served.made, "127.0.0.1", 0, ssl=tls)
    served.port = listener.sockets[0].getsockname()[1]
    try:
        yield served
    finally:
        listener.close()


ENDS = {
    "nothing": (b"", b""),
    "half a head": (b"GET / HTTP", b""),
    "idle": (GET % b"", HEAD),
    "half a body": (BODY % b"", b""),
    "a stream": (GET % b"stream", STREAM_HEAD),
    "requests behind a stream": (GET % b"stream" + GET % b"" + BODY % b"", STREAM_HEAD),
    "an early answer": (BODY % b"early", b"ok"),
    "no request": (b"nonsense\r\n\r\n", b"HTTP/1.1 400"),
    "a request that is cut": (GET % b"cut", b""),
    "one that is cut before another": (GET % b"cut" + GET % b"", b""),
}


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("is_reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize(("sent", "answer"), ENDS.values(), ids=ENDS)
async def test_nothing_of_a_connection_outlives_it(
    tmp_path: Path, sent: bytes, answer: bytes, is_reset: bool, is_tls: bool
) -> None:
    """Its memory, its handlers: with requests pipelined, each of them learns the end."""
    authority = Authority(tmp_path)
    tls = (authority.server(*LOCAL), authority.client()) if is_tls else (None, None)
    async with serving(tls[0]) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port, ssl=tls[1])
        writer.write(sent)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(answer) if answer else await until_async(lambda: bool(served.connections))
        if is_reset:
            writer.transport.abort()
        else:
            writer.close()
        await until_async(lambda: not served.state.connections and not served.state.tasks)
        await until_async(lambda: served.connections[0]() is None)


# What a request may look like. The parser refuses most of it; that it goes on doing so is a test, too.

WITH = b"POST / HTTP/1.1\r\nHost: x\r\n%b\r\n\r\n0\r\n\r\n"
REFUSED_LINES = (
    b"Transfer-Encoding: chunked, chunked", b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked, gzip", b"Transfer-Encoding:", b"Transfer-Encoding: chunked\r\nContent-Length: 3",
    b"Content-Length: 3\r\nTransfer-Encoding: chunked", b"Content-Length: 5\r\nContent-Length: 6",
    b"Content-Length: 5\r\nContent-Length: 5", b"Content-Length: 5, 5", b"Content-Length: +5", b"Content-Length: 0x5",
    b"Content-Length:", b"Content-Length: 99999999999999999999", b"Host: y", b"A : b", b"A\0: b", b"A: b\0c", b": b",
    b"AB", b"A: b\r\n c", b"A: b\nB: c", b"A: b\rB: c",
)  # fmt: skip
REFUSED_CODINGS = (b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: identity", b"Transfer-Encoding: xchunked")
REFUSED_STARTS = (
    b"GET / HTTP/1.1\r\n",
    b"CONNECT x HTTP/1.1\r\nHost: x\r\n", b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n",
    b"GET http://x HTTP/1.1\r\nHost: x\r\n", b"GET x HTTP/1.1\r\nHost: x\r\n", b"GET /\x80 HTTP/1.1\r\nHost: x\r\n",
    b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
)  # fmt: skip
OTHER_METHODS = (b"FOO / HTTP/1.1\r\nHost: x\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")  # the latter is TLS
OTHER_VERSIONS = (
    b"GET /\r\n",
    b"GET / HTTP/1.2\r\nHost: x\r\n",
    b"GET / HTTP/2.0\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n",
)
REFUSED_CHUNKS = (b"5 \r\nhello", b"0x5\r\nhello", b"5\nhello", b"5\r\nhello!", b"fffffffffffffffff\r\nhello")
REFUSED = [
    *((WITH % lines, b"400") for lines in REFUSED_LINES),
    *((WITH % lines, b"501") for lines in REFUSED_CODINGS),
    *((start + b"\r\n", b"400") for start in REFUSED_STARTS),
    *((start + b"\r\n", b"501") for start in OTHER_METHODS),
    *((start + b"\r\n", b"505") for start in OTHER_VERSIONS),
    *((CHUNKED % b"" + chunk + b"\r\n0\r\n\r\n", b"400") for chunk in REFUSED_CHUNKS),
]


async def answers(served: Server, sent: bytes, pieces: int = 1) -> bytes:
    """All that the server says to it until it ends the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    size = -(-len(sent) // pieces)
    for start in range(0, len(sent), size):
        writer.write(sent[start : start + size])
        await writer.drain()
        await asyncio.sleep(0)
    received = await reader.read()
    writer.close()
    return received


@pytest.mark.parametrize(("sent", "status"), REFUSED)
async def test_a_request_that_two_could_read_differently_is_refused(sent: bytes, status: bytes) -> None:
    """In words, whatever follows it; and behind an answer that is outstanding by the connection's end alone."""
    async with serving() as served:
        for pieces in (1, 7):
            head, _, body = (await answers(served, sent + GET % b"smuggled", pieces)).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 " + status)
            assert b"\r\nconnection: close" in head
            assert json.loads(body)["error"]["message"]
        received = await answers(served, GET % b"" + sent + GET % b"smuggled")
        assert received.startswith(HEAD)
        assert received.count(HEAD) == 1
        assert b"smuggled" not in str(served.ended).encode()


TRAILED = CHUNKED % b"" + b"2\r\nhi\r\n0\r\nAuthorization: Bearer x\r\nHost: y\r\nExpect: 100-continue\r\n\r\n"
TAKEN = {
    "chunked in any case": (WITH % b"Transfer-Encoding: Chunked ", b""),
    "chunks with extensions": (CHUNKED % b"" + b'2;a=b;c="d"\r\nhi\r\n0\r\n\r\n', b"hi"),
    "trailers": (TRAILED, b"hi"),
    "an absolute target": (b"GET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n", b""),
    "blank lines before": (b"\r\n\r\n" + GET % b"", b""),
    "no host in HTTP/1.0": (b"GET / HTTP/1.0\r\n\r\n", b""),
    "WebSocket": (b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", b""),
    "h2c": (WITH % b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nContent-Length: 5", b"0\r\n\r\n"),
    "h2c, chunked": (WITH % b"Connection: Upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked", b""),
    "close and keep-alive": (WITH % b"Connection: close, keep-alive\r\nContent-Length: 5", b"0\r\n\r\n"),
}


@pytest.mark.parametrize(("sent", "body"), TAKEN.values(), ids=TAKEN)
@pytest.mark.parametrize("pieces", [1, 50])
async def test_what_is_taken_ends_where_it_says(sent: bytes, body: bytes, pieces: int) -> None:
    """The request behind it is never part of it; of trailers nothing is seen."""
    is_last = b"HTTP/1.0" in sent or b"close" in sent or b"h2c" in sent
    async with serving() as served:
        last = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") % b"last"
        received = await answers(served, sent if is_last else sent + last, pieces)
        assert served.bodies[0] == body
        assert received.count(HEAD) == len(served.ended) == (1 if is_last else 2)
        assert b"\r\nconnection: close\r\n" in received
        assert not {name for name, _ in served.headers[0]} & {b"authorization", b"expect"}
        assert all(sum(name == b"host" for name, _ in headers) < 2 for headers in served.headers)


ENDLESS = {
    "a header": (GET.removesuffix(b"\r\n") % b"" + b"X: ", b"x" * 4096),
    "headers": (GET.removesuffix(b"\r\n") % b"", b"X: y\r\n" * 700),
    "a request line": (b"GET /", b"x" * 4096),
    "blank lines": (b"", b"\r\n" * 2048),
    "a trailer": (CHUNKED % b"" + b"0\r\nX: ", b"x" * 4096),
    "trailers": (CHUNKED % b"" + b"0\r\n", b"X: y\r\n" * 700),
    "a chunk's extension": (CHUNKED % b"" + b"1;", b"x" * 4096),
    "zeros of a chunk's size": (CHUNKED % b"", b"0" * 4096),
}


@pytest.mark.parametrize(("begin", "endless"), ENDLESS.values(), ids=ENDLESS)
async def test_what_moves_a_request_on_by_nothing_is_bounded(begin: bytes, endless: bytes) -> None:
    async with serving() as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(begin)
        for _ in range(3 * REQUEST_HEAD_MAX_BYTES // len(endless)):
            writer.write(endless)
            await writer.drain()
        assert (await reader.readline()).startswith((b"HTTP/1.1 431", b"HTTP/1.1 400"))
        assert b"\r\nconnection: close\r\n" in await reader.read()
        writer.close()


async def test_only_so_many_requests_wait_on_one_connection() -> None:
    """All of one read: those that are taken are answered, in their order, and the last says that it is the last."""
    async with serving() as served:
        received = await answers(served, GET % b"" * 5000)
        assert received.count(HEAD) == len(served.ended) == protocol.PIPELINED_MAX + 1
        assert received.count(b"connection: close") == 1


async def test_a_client_that_leaves_with_requests_waiting_is_noticed() -> None:
    async with serving() as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(GET % b"stream" + GET % b"" * protocol.PIPELINED_READING)
        await reader.readuntil(STREAM_HEAD)
        writer.close()
        await until_async(lambda: served.ended == ["stream"])


# Early answers


@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize(
    "begin", [CHUNKED % b"early", b"POST / HTTP/1.1\r\nHost: x\r\nno header\r\n\r\n"], ids=["early", "refused"]
)
async def test_who_sends_all_before_it_reads_has_its_answer(tmp_path: Path, begin: bytes, is_tls: bool) -> None:
    authority = Authority(tmp_path)
    tls = (authority.server(*LOCAL), authority.client()) if is_tls else (None, None)
    async with serving(tls[0]) as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port, ssl=tls[1])
        writer.write(begin)
        for _ in range(100):
            writer.write(b"10000\r\n" + bytes(65536) + b"\r\n")
            await writer.drain()
        assert (await reader.readline()).startswith(b"HTTP/1.1 ")
        assert b"\r\nconnection: close\r\n" in await reader.read()
        writer.close()
        await until_async(lambda: not served.state.connections)


@pytest.mark.parametrize(("bound", "value"), [("LINGER_MAX_BYTES", 100_000), ("LINGER_MAX_SEC", 0.2)])
async def test_what_comes_after_an_answer_is_bounded(monkeypatch: pytest.MonkeyPatch, bound: str, value: float) -> None:
    monkeypatch.setattr(ending, bound, value)
    monkeypatch.setattr(ending, "LINGER_QUIET_SEC", 0.1)
    calls: list[int] = []
    monkeypatch.setattr(Protocol, "on_body", lambda _, body: calls.append(len(body)))
    async with serving() as served:
        _, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(CHUNKED % b"early")
        await until_async(lambda: served.ended == ["early"])
        with suppress(ConnectionError):
            while True:
                writer.write(b"1\r\nx\r\n" * (10_000 if bound == "LINGER_MAX_BYTES" else 1))
                await writer.drain()
                await asyncio.sleep(0.001)
        await until_async(lambda: not served.state.connections)
        assert calls == []  # nothing of it is parsed
        writer.close()


async def test_who_goes_silent_after_an_answer_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "LINGER_QUIET_SEC", 0.1)
    async with serving() as served:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(BODY % b"early")
        assert (await reader.read()).endswith(b"ok")
        await until_async(lambda: not served.state.connections)
        writer.close()


async def test_a_connection_is_closed_after_a_while_without_a_request() -> None:
    async with serving() as served:
        served.keep_alive = 0.1
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        for _ in range(2):
            writer.write(GET % b"")
            await reader.readuntil(b"ok")
        writer.write(b"GET / HT")  # its head has its own time
        connection = served.connections[0]
        await until_async(lambda: (known := connection()) is not None and known._idle_timer is None)
        writer.write(b"TP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"ok")
        assert await reader.read() == b""
        writer.close()
