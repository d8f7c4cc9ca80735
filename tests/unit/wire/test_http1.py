"""What the upstream client sends, what it makes of an answer, and what it refuses to take for one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from gateway.wire.connection import UNREAD_HIGH, Response
from gateway.wire.errors import ProtocolViolation
from gateway.wire.http1 import Pool
from gateway.wire.origin import Origin

from tests.support.in_memory import MAX_HEAD, Wire, is_settled, outcome

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@asynccontextmanager
async def asked(wires: list[Wire], body: bytes = b"") -> AsyncIterator[tuple[Pool, Wire, asyncio.Task[Response]]]:
    """A pool whose one connection has been sent a request."""
    pool = Pool(Origin.parse("http://backend"), max_header_bytes=MAX_HEAD)
    task = asyncio.create_task(pool.request(b"POST", b"/", b"", body))
    await is_settled(task)
    yield pool, wires[-1], task
    await pool.close()
    assert (pool.open_connections, pool.waiting) == (0, 0)


ANSWERS = [
    (b"GET", OK, 200, b"ok", True),
    (b"GET", HEAD + b"Content-Length: 0\r\n\r\n", 200, b"", True),
    (b"GET", HEAD + b"Content-Length: 2\r\nConnection: close\r\n\r\nok", 200, b"ok", False),
    (b"GET", b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", False),
    (b"GET", b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok", 200, b"ok", True),
    (b"GET", CHUNKED + b"2\r\nab\r\n3;x=y\r\ncde\r\n0\r\nTrailer: t\r\n\r\n", 200, b"abcde", True),
    (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", True),
    (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", 304, b"", True),
    (b"HEAD", HEAD + b"Content-Length: 5\r\n\r\n", 200, b"", False),
    (b"GET", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\n" + OK, 200, b"ok", True),
    (b"GET", b"HTTP/1.1 302 Found\r\nLocation: /y\r\nContent-Length: 0\r\n\r\n", 302, b"", True),
    (b"GET", b"HTTP/1.1 503 \r\nContent-Length: 3\r\n\r\nbye", 503, b"bye", True),
]


@pytest.mark.parametrize(("method", "answer", "status", "body", "is_reused"), ANSWERS)
@pytest.mark.parametrize("size", [1, 1000])
async def test_answer_tells_where_it_ends_and_whether_its_connection_is_kept(
    wires: list[Wire], method: bytes, answer: bytes, status: int, body: bytes, is_reused: bool, size: int
) -> None:
    found, left = await outcome(wires, method, in_pieces(answer, size))
    assert (found.status, found.body, found.error, left) == (status, body, "", int(is_reused))
    assert b"link" not in dict(found.headers)


MALFORMED = [
    b"garbage\r\n\r\n",
    b"\r\n" + OK,
    b"RTSP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/0.9 200 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 000 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 600 OK\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\nContent-Length: 2\r\n\r\n",
    HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nokk",
    HEAD + b"Content-Length: 2, 3\r\n\r\nokk",
    HEAD + b"Content-Length: -1\r\n\r\n",
    HEAD + b"Content-Length: 99999999999999999999\r\n\r\n",
    HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    HEAD + b"Transfer-Encoding: identity\r\n\r\nok",
    HEAD + b"A : b\r\nContent-Length: 0\r\n\r\n",
    HEAD + b"A: b\r\n folded\r\nContent-Length: 0\r\n\r\n",
    HEAD + b"A: b\x00\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
    CHUNKED + b"zz\r\n",
    CHUNKED + b"-1\r\nok\r\n",
    CHUNKED + b"2\r\nokay\r\n0\r\n\r\n",
]
ENDLESS = [
    HEAD + b"X: " + b"x" * 5000,
    HEAD + b"x" * 5000,
    HEAD + b"X: y\r\n" * 1000,
    b"HTTP/1.1 100 Continue\r\n\r\n" * 200,
    CHUNKED + b"1\r\na\r\n0\r\n" + b"X: y\r\n" * 1000,
    CHUNKED + b"1;" + b"x" * 5000,
]


@pytest.mark.parametrize("answer", [*MALFORMED, *ENDLESS])
@pytest.mark.parametrize("size", [1, 7, 2000])
async def test_what_is_not_one_clear_answer_is_refused(wires: list[Wire], answer: bytes, size: int) -> None:
    found, _ = await outcome(wires, b"GET", in_pieces(answer, size))
    assert found.error == "ProtocolViolation"


def in_pieces(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


async def test_chunks_come_as_they_came(wires: list[Wire]) -> None:
    async with asked(wires) as (pool, wire, task):
        wire.connection.data_received(CHUNKED)
        response = await task
        for event in (b"data: 1\n\n", b"data: 22\n\n", b"\x00\xff"):
            wire.connection.data_received(b"%x\r\n%b\r\n" % (len(event), event))
            assert await response.next_chunk() == event
        wire.connection.data_received(b"1\r\na\r\n1\r\nb\r\n1")
        assert await response.next_chunk() == b"ab"
        wire.connection.data_received(b"\r\nc\r\n0\r\n\r\n")
        assert [await response.next_chunk() for _ in range(3)] == [b"c", b"", b""]
        assert (response.complete, pool.open_connections) == (True, 1)


@pytest.mark.parametrize("framing", [b"", b"Content-Length: 4\r\n"])
async def test_answer_that_is_whole_stays_so_when_it_is_closed(wires: list[Wire], framing: bytes) -> None:
    async with asked(wires) as (_, wire, task):
        wire.connection.data_received(HEAD + framing + b"\r\nsome")
        wire.end("close")
        response = await task
        assert await response.read(100) == b"some"
        response.close()
        assert (await response.next_chunk(), response.complete) == (b"", True)


@pytest.mark.parametrize("extra", [OK, b"\r\n", b"x"])
async def test_bytes_on_an_idle_connection_cost_it(wires: list[Wire], extra: bytes) -> None:
    async with asked(wires) as (pool, wire, task):
        wire.connection.data_received(OK)
        assert await (await task).read(100) == b"ok"
        assert pool.open_connections == 1
        wire.connection.data_received(extra)
        assert (pool.open_connections, wire.is_closed) == (0, True)


@pytest.mark.parametrize(("answer", "limit"), [(OK, 1), (HEAD + b"Content-Length: 100\r\n\r\n" + b"x" * 50, 10)])
async def test_body_is_read_up_to_its_limit(wires: list[Wire], answer: bytes, limit: int) -> None:
    async with asked(wires) as (_, wire, task):
        wire.connection.data_received(answer)
        with pytest.raises(ProtocolViolation, match=f"longer than {limit} bytes"):
            await (await task).read(limit)


async def test_unread_body_stops_its_backend_and_loses_nothing(wires: list[Wire]) -> None:
    block = bytes(range(256)) * 256
    async with asked(wires) as (_, wire, task):
        wire.connection.data_received(HEAD + b"Content-Length: %d\r\n\r\n" % (10 * len(block)))
        response, received, sent = await task, b"", 0
        while sent < 10:
            while sent < 10 and not wire.is_paused:
                wire.connection.data_received(block)
                sent += 1
                assert wire.connection._unread <= UNREAD_HIGH + len(block)
            assert wire.is_paused == (sent < 10)
            for _ in range(3):  # a paused connection is not an idle one
                wire.connection.check(wire.connection.deadline)
            received += await response.next_chunk()
        assert received == block * 10


async def test_answer_before_its_request_is_out_costs_the_connection(wires: list[Wire]) -> None:
    async with asked(wires, b"x" * 1000) as (pool, wire, task):
        wire.unsent = 900
        wire.connection.data_received(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        response = await task
        assert (response.status, await response.read(10)) == (413, b"no")
        assert pool.open_connections == 0


@pytest.mark.parametrize(
    ("request_", "sent"),
    [
        (
            (b"POST", b"/v1/x?a=b", b"x-a: 1\r\nx-b:2\r\n", b"body"),
            b"POST /v1/x?a=b HTTP/1.1\r\nHost: backend\r\nx-a: 1\r\nx-b:2\r\nContent-Length: 4\r\n\r\nbody",
        ),
        ((b"GET", b"/", b""), b"GET / HTTP/1.1\r\nHost: backend\r\n\r\n"),
        ((b"POST", b"/", b""), b"POST / HTTP/1.1\r\nHost: backend\r\nContent-Length: 0\r\n\r\n"),
    ],
)
async def test_request_goes_out_as_given_with_host_and_length(
    wires: list[Wire], request_: tuple[bytes, ...], sent: bytes
) -> None:
    async with asked(wires) as (pool, wire, task):
        wire.connection.data_received(OK)
        await task
        wire.written = b""
        again = asyncio.create_task(pool.request(*request_))  # type: ignore[arg-type]  # its last three are optional
        await is_settled(again)
        assert wire.written == sent
        again.cancel()


@pytest.mark.parametrize(
    ("method", "target", "headers"),
    [
        *((method, b"/", b"") for method in (b"GET\r\nX: y", b"GET ", b"")),
        *((b"GET", target, b"") for target in (b"/ HTTP/1.1\r\nX: y", b"/a b", b"", b"x", b"/#x", b"/\xc3\xa4")),
        *((b"GET", b"/", headers) for headers in (b"x: y", b"x:", b"a: b\r\nx:", b"x: y\n", b"x: y\r\n\r\n")),
        *((b"GET", b"/", b"%b\r\n" % line) for line in (b"x: y\rz: a", b"x: y\r\n z", b"x: \x00", b"x y: z", b": z")),
        *((b"GET", b"/", b"%b\r\n" % line) for line in (b"a: b\r\nHOST: evil", b"Content-length: 3")),
        (b"GET", b"/", b"transfer-encoding: chunked\r\n"),
    ],
)
async def test_what_would_break_a_request_is_not_sent(
    wires: list[Wire], method: bytes, target: bytes, headers: bytes
) -> None:
    pool = Pool(Origin.parse("http://backend"))
    with pytest.raises(ValueError, match=r"method|target|header"):
        await pool.request(method, target, headers)
    assert (wires, pool.open_connections) == ([], 0)


@pytest.mark.parametrize(
    ("url", "host", "port", "tls", "prefix", "header"),
    [
        ("http://127.0.0.1:8088/v1", "127.0.0.1", 8088, False, b"/v1", b"127.0.0.1:8088"),
        ("http://Box.lan", "box.lan", 80, False, b"", b"box.lan"),
        ("https://box.lan:443/a/b/", "box.lan", 443, True, b"/a/b", b"box.lan"),
        ("https://box.lan:80/", "box.lan", 80, True, b"", b"box.lan:80"),
        ("http://[::1]:11434/v1", "::1", 11434, False, b"/v1", b"[::1]:11434"),
    ],
)
def test_origins(url: str, host: str, port: int, tls: bool, prefix: bytes, header: bytes) -> None:
    found = Origin.parse(url)
    assert (found.host, found.port, found.tls, found.prefix, found.host_header) == (host, port, tls, prefix, header)


NO_ORIGINS = {
    "must begin with http": ["", "box:8080", "ftp://box"],
    "no valid host": ["http://", "http://:80", "http://a..b-", "http://a%20b"],
    "port 0": ["http://box:0"],
    "(?i)port": ["http://box:99999", "http://box:x"],
    "(?i)ipv6": ["http://[::1"],
    "user or password": ["http://me:secret@box"],
    "query or fragment": ["http://box/?q", "http://box/#f"],
    "blanks": ["http://box/ v1", "http://bo\r\nx/"],
    "non-ASCII": ["http://b\u00fcx/"],
}


@pytest.mark.parametrize(("problem", "url"), [(problem, url) for problem, urls in NO_ORIGINS.items() for url in urls])
def test_what_is_no_origin_is_refused_in_a_line(url: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as error:
        Origin.parse(url)
    assert "\n" not in str(error.value)
