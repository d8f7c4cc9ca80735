"""Answers to the upstream client: what it makes of them, and what it refuses to take for one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from gateway.wire.connection import Response
from gateway.wire.errors import ProtocolViolation, UpstreamClosed
from gateway.wire.http1 import Pool

from tests.support.scripted import OK, Backend, Peer, backend, pool, stopped
from tests.support.waiting import until_async

HEAD = b"HTTP/1.1 200 OK\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


async def exchange(client: Pool, peer: Peer, answer: bytes) -> tuple[Response, bytes]:
    """One request on a connection that `peer` has already, answered with `answer`."""
    served = asyncio.create_task(peer.answer(answer))
    response = await client.request(b"POST", b"/x", b"", b"{}")
    body = await response.read(1 << 20)
    await served
    return response, body


async def first(client: Pool, server: Backend, answer: bytes) -> tuple[Peer, Response]:
    """The first request of a pool, answered with `answer`."""
    task = asyncio.create_task(client.request(b"GET", b"/x", b""))
    peer = await server.accept()
    await peer.answer(answer)
    return peer, await task


@pytest.mark.parametrize(
    ("method", "answer", "status", "body", "is_reused"),
    [
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
    ],
)
@pytest.mark.parametrize("in_pieces", [False, True])
async def test_bodies(method: bytes, answer: bytes, status: int, body: bytes, is_reused: bool, in_pieces: bool) -> None:
    async with backend() as server, pool(server) as client:
        task = asyncio.create_task(client.request(method, b"/x", b""))
        peer = await server.accept()
        await peer.request()
        for piece in [bytes([byte]) for byte in answer] if in_pieces else [answer]:
            await peer.send(piece)
            await asyncio.sleep(0)
        response = await task
        assert (response.status, await response.read(100)) == (status, body)
        assert response.complete
        assert response.header(b"link") is None
        assert client.open_connections == int(is_reused)
        response.close()
        response.close()
        if is_reused:
            assert (await exchange(client, peer, OK))[1] == b"ok"
        assert server.accepted == 1


async def test_a_body_without_length_ends_with_the_connection() -> None:
    async with backend() as server, pool(server) as client:
        peer, response = await first(client, server, HEAD + b"X: y\r\n\r\nsome")
        assert not response.complete
        assert (response.header(b"x"), await response.next_chunk()) == (b"y", b"some")
        await peer.send(b"thing")
        peer.close()
        assert (await response.read(100), await response.next_chunk()) == (b"thing", b"")
        assert response.complete
        assert client.open_connections == 0


async def test_chunks_come_as_they_came() -> None:
    async with backend() as server, pool(server) as client:
        peer, response = await first(client, server, CHUNKED)
        for event in (b"data: 1\n\n", b"data: 22\n\n", b"\x00\xff"):
            await peer.send(b"%x\r\n%b\r\n" % (len(event), event))
            assert await response.next_chunk() == event
        await peer.send(b"1\r\na\r\n1\r\nb\r\n1")
        assert await response.next_chunk() == b"ab"
        await peer.send(b"\r\nc\r\n0\r\n\r\n")
        assert (await response.next_chunk(), await response.next_chunk()) == (b"c", b"")
        assert (await response.next_chunk(), response.complete, client.open_connections) == (b"", True, 1)


@pytest.mark.parametrize(
    ("answer", "begins"),
    [
        (b"HTTP/1.1 20", False),
        (HEAD + b"Content-Length: 5\r\n\r\nab", True),
        (CHUNKED + b"5\r\nab", True),
        (CHUNKED + b"2\r\nab\r\n", True),
        (CHUNKED + b"2\r\nab\r\n0\r\n", True),
    ],
)
@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_backend_that_dies_is_told_apart_from_one_that_ends(answer: bytes, begins: bool, how: str) -> None:
    async with backend() as server, pool(server) as client:
        task = asyncio.create_task(client.request(b"GET", b"/x", b""))
        peer = await server.accept()
        await peer.answer(answer)
        if begins:
            response = await task
            assert await response.next_chunk() == b"ab"
            getattr(peer, how)()
            with pytest.raises(UpstreamClosed) as error:
                await response.read(100)
            assert not response.complete
            with pytest.raises(UpstreamClosed):
                await response.next_chunk()
        else:
            # Of an answer that is reset unread nothing can be known.
            peer.close()
            with pytest.raises(UpstreamClosed) as error:
                await task
        assert error.value.sent_first_byte
        assert client.open_connections == 0


@pytest.mark.parametrize(
    "answer",
    [
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
    ],
)
@pytest.mark.parametrize("in_pieces", [False, True])
async def test_what_is_not_one_clear_answer_is_refused(answer: bytes, in_pieces: bool) -> None:
    async with backend() as server, pool(server) as client:
        task = asyncio.create_task(client.request(b"GET", b"/x", b""))
        peer = await server.accept()
        await peer.request()
        for piece in [bytes([byte]) for byte in answer] if in_pieces else [answer]:
            await peer.offer(piece)
        with pytest.raises(ProtocolViolation):
            await (await task).read(100)
        assert client.open_connections == 0
        await peer.gone()


@pytest.mark.parametrize(
    "answer",
    [
        HEAD + b"X: " + b"x" * 5000,
        HEAD + b"x" * 5000,
        HEAD + b"X: y\r\n" * 1000,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 1000,
        CHUNKED + b"1\r\na\r\n0\r\n" + b"X: y\r\n" * 100_000,
        CHUNKED + b"1;" + b"x" * 700_000,
    ],
)
@pytest.mark.parametrize("size", [7, 100, 100_000])
async def test_what_has_no_end_is_cut_off(answer: bytes, size: int) -> None:
    async with backend() as server, pool(server, max_header_bytes=2000) as client:
        task = asyncio.create_task(client.request(b"GET", b"/x", b""))
        peer = await server.accept()
        await peer.request()
        for start in range(0, len(answer), size):
            if peer.writer.is_closing():
                break
            await peer.offer(answer[start : start + size])
        with pytest.raises(ProtocolViolation, match=r"longer than 2000 bytes|without end"):
            await (await task).read(100)
        await peer.gone()


@pytest.mark.parametrize("cut", [1, 1000, 2000])
async def test_a_head_of_exactly_the_limit_is_taken(cut: int) -> None:
    head = HEAD + b"Content-Length: 3\r\nX: %b\r\n\r\n"
    fitting = head % (b"x" * (2000 - len(head) + 2))
    async with backend() as server, pool(server, max_header_bytes=2000) as client:
        task = asyncio.create_task(client.request(b"GET", b"/x", b""))
        peer = await server.accept()
        await peer.answer(fitting[:cut])
        await peer.send(fitting[cut:] + b"abc")
        assert await (await task).read(3) == b"abc"


@pytest.mark.parametrize("extra", [OK, b"HTTP", b"x"])
async def test_bytes_after_a_message_cost_the_connection(extra: bytes) -> None:
    async with backend() as server, pool(server) as client:
        peer, response = await first(client, server, OK + extra)
        assert await response.read(100) == b"ok"
        assert client.open_connections == 0
        await peer.gone()
        task = asyncio.create_task(client.request(b"GET", b"/y", b""))
        other = await server.accept()
        await other.answer(HEAD + b"Content-Length: 4\r\n\r\nmine")
        assert await (await task).read(100) == b"mine"


@pytest.mark.parametrize("extra", [OK, b"\r\n", b"x"])
async def test_bytes_on_an_idle_connection_cost_it(extra: bytes) -> None:
    async with backend() as server, pool(server) as client:
        peer, response = await first(client, server, OK)
        assert await response.read(100) == b"ok"
        assert client.open_connections == 1
        await peer.send(extra)
        await peer.gone()
        await until_async(lambda: client.open_connections == 0)


async def test_a_body_is_read_up_to_its_limit() -> None:
    async with backend() as server, pool(server) as client:
        peer, response = await first(client, server, OK)
        with pytest.raises(ProtocolViolation, match="longer than 1 bytes"):
            await response.read(1)
        served = asyncio.create_task(peer.answer(HEAD + b"Content-Length: 100\r\n\r\n" + b"x" * 50))
        response = await client.request(b"GET", b"/", b"")
        with pytest.raises(ProtocolViolation, match="longer than 10 bytes"):
            await response.read(10)
        await served
        await peer.gone()
        assert client.open_connections == 0


async def test_an_unread_body_holds_the_backend_up_and_none_of_it_is_lost() -> None:
    block = bytes(range(256)) * 256
    async with backend() as server, pool(server) as client:
        peer, response = await first(client, server, HEAD + b"Content-Length: %d\r\n\r\n" % (512 * len(block)))

        async def pump() -> None:
            for _ in range(512):
                await peer.send(block)

        pumping = asyncio.create_task(pump())
        connection = stopped(client)
        await until_async(lambda: connection._paused)
        for _ in range(3):
            connection.check(connection.deadline)  # one that is paused is not an idle one
        assert not pumping.done()
        received = b"".join([piece async for piece in _pieces(response)])
        assert received == block * 512
        await pumping


async def _pieces(response: Response) -> AsyncIterator[bytes]:
    while piece := await response.next_chunk():
        assert len(piece) < 1 << 20
        yield piece


async def test_an_answer_before_the_request_is_out_costs_the_connection() -> None:
    async with backend() as server, pool(server) as client:
        task = asyncio.create_task(client.request(b"POST", b"/x", b"", b"x" * (32 << 20)))
        peer = await server.accept()
        await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        response = await task
        assert (response.status, await response.read(10)) == (413, b"no")
        assert client.open_connections == 0
