"""The upstream client's connections, and how they are left: cancel in every phase, close, timeouts."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from gateway.wire.errors import ConnectFailed, ProtocolViolation, UpstreamClosed, UpstreamTimeout
from gateway.wire.http1 import Timeouts

from tests.support.scripted import OK, asked, backend, cancelled, get, kept, pool, served, stopped
from tests.support.waiting import until_async

STREAM = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


async def test_cancel_before_the_first_byte() -> None:
    async with backend() as server, pool(server) as client:
        for kept in (False, True):
            if kept:
                peer = await served(client, server)
            task = get(client)
            if not kept:
                peer = await server.accept()
            await peer.request()
            await cancelled(task)
            assert client.open_connections == 0
            await peer.gone()


@pytest.mark.parametrize("how", ["next_chunk", "read", "close"])
async def test_leaving_in_the_body_shows_the_backend_that_nobody_listens(how: str) -> None:
    async with asked() as (_server, client, task, peer):
        await peer.answer(STREAM + b"1\r\nx\r\n")
        response = await task
        assert await response.next_chunk() == b"x"
        body = asyncio.create_task(response.read(100) if how == "read" else response.next_chunk())
        await asyncio.sleep(0)
        if how == "close":
            response.close()
            with pytest.raises(UpstreamClosed):
                await body
        else:
            await cancelled(body)
        assert client.open_connections == 0
        await peer.gone()
        with pytest.raises(UpstreamClosed):
            await response.next_chunk()


async def test_cancel_as_the_answer_arrives_keeps_the_connection_good() -> None:
    async with kept() as (_server, client, peer):
        task = get(client)
        await peer.request()
        (connection,) = client._joined
        connection.data_received(OK)
        await cancelled(task)
        assert client.open_connections == 1
        task = get(client)
        await peer.answer(OK)
        assert await (await task).read(2) == b"ok"


async def test_closing_the_pool_ends_everything() -> None:
    async with backend() as server, pool(server, max_connections=2) as client:
        streaming, waiting_for_head, queued = get(client), get(client), get(client)
        peers = [await server.accept(), await server.accept()]
        await peers[0].answer(STREAM)
        response = await streaming
        await client.close()
        assert not client._joined, "a socket is still open"
        with pytest.raises(UpstreamClosed):
            await response.next_chunk()
        with pytest.raises(UpstreamClosed):
            await waiting_for_head
        with pytest.raises(ConnectFailed):
            await queued
        with pytest.raises(ConnectFailed, match="closed"):
            await client.request(b"GET", b"/", b"")
        for peer in peers:
            await peer.gone()


async def test_two_readers_are_a_mistake() -> None:
    async with asked() as (_server, _client, task, peer):
        await peer.answer(STREAM)
        response = await task
        reading = asyncio.create_task(response.next_chunk())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError):
            await response.next_chunk()
        await peer.send(b"1\r\nx\r\n")
        assert await reading == b"x"


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 100 Continue\r\n\r\nHTTP"], ids=["silence", "an interim answer"])
async def test_answer_has_its_time_and_buys_no_more(sent: bytes) -> None:
    async with asked() as (_server, client, task, peer):
        await peer.request()
        connection = stopped(client)
        deadline = connection.deadline
        await peer.send(sent)
        await until_async(lambda: connection.head_bytes == len(sent))
        connection.check(deadline)
        with pytest.raises(UpstreamTimeout, match="no response head within") as error:
            await task
        assert error.value.phase == "first_byte"
        await peer.gone()
        assert client.open_connections == 0


async def test_silence_in_the_body() -> None:
    idle = 100.0
    async with asked(timeouts=Timeouts(first_byte=200, idle=idle)) as (_server, client, task, peer):
        await peer.answer(STREAM)
        response = await task
        connection, now = stopped(client), asyncio.get_running_loop().time()
        for _ in range(10):  # longer than both timeouts, never silent
            await peer.send(b"1\r\nx\r\n")
            assert await response.next_chunk() == b"x"
            connection.check(now := now + 0.9 * idle)
        connection.check(now + idle)
        with pytest.raises(UpstreamTimeout, match="no byte of the body for") as error:
            await response.next_chunk()
        assert error.value.phase == "idle"
        assert client.open_connections == 0
        await peer.gone()


@pytest.mark.parametrize(
    ("sent", "ends", "is_aborted"),
    [
        (STREAM, "cancelled", True),
        (STREAM, "timed out", True),
        (STREAM, "violated", True),
        (STREAM, "cut by the backend", False),
        (STREAM, "over", False),
        (OK, "whole", False),
        (b"", "refused", False),
    ],
)
async def test_abort_is_told_where_this_side_ends_an_answer(sent: bytes, ends: str, is_aborted: bool) -> None:
    told: list[bool] = []
    async with backend() as server, pool(server) as client:
        task = asyncio.create_task(client.request(b"GET", b"/", b"", on_abort=lambda: told.append(True)))
        peer = await server.accept()
        await peer.answer(sent)
        if ends == "refused":
            peer.reset()
        with suppress(UpstreamClosed, ProtocolViolation):
            response = await task
            if ends == "timed out":
                stopped(client).check(float("inf"))
            elif ends == "violated":
                await peer.send(b"xyz\r\n")  # no size of a chunk
                await response.next_chunk()
            elif ends == "cut by the backend":
                peer.reset()
                await response.next_chunk()
            response.is_over = ends == "over"
            response.close()
            response.close()
        assert told == [True] * is_aborted
