"""The upstream client's connections: reuse, retry, cap and queue."""

from __future__ import annotations

import asyncio

import pytest
from gateway.wire.errors import ConnectFailed, UpstreamClosed
from gateway.wire.http1 import Timeouts

from tests.support.scripted import OK, backend, cancelled, get, kept, pool, served
from tests.support.waiting import until_async

# Reuse


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_kept_connection_that_dies_unanswered_costs_no_error(how: str) -> None:
    async with kept(max_connections=1) as (server, client, peer):
        task = asyncio.create_task(client.request(b"POST", b"/again", b"", b"body"))
        request = await peer.request()
        getattr(peer, how)()
        fresh = await server.accept()
        assert await fresh.answer(OK) == request
        assert await (await task).read(2) == b"ok"
        assert client.open_connections == 1


async def test_a_request_goes_out_twice_at_most() -> None:
    async with kept() as (server, client, peer):
        task = get(client)
        for _ in range(2):
            await peer.request()
            peer.close()
            if server.accepted == 1:
                peer = await server.accept()
        with pytest.raises(UpstreamClosed) as error:
            await task
        assert (error.value.sent_first_byte, error.value.sendings) == (False, 2)
        assert (server.accepted, client.open_connections) == (2, 0)


async def test_an_answer_that_has_begun_is_not_asked_for_again() -> None:
    async with kept() as (server, client, peer):
        task = get(client)
        await peer.answer(b"H")
        peer.close()
        with pytest.raises(UpstreamClosed) as error:
            await task
        assert error.value.sent_first_byte
        assert server.accepted == 1


async def test_a_cancelled_retry_leaves_nothing() -> None:
    async with kept(max_connections=1) as (server, client, peer):
        task = get(client)
        await peer.request()
        peer.close()
        fresh = await server.accept()
        await fresh.request()
        await cancelled(task)
        await fresh.gone()
        assert client.open_connections == 0


async def test_a_request_that_is_cancelled_as_its_connection_dies_leaves_its_slot() -> None:
    async with kept(max_connections=1) as (server, client, peer):
        task = get(client)
        await peer.request()
        (connection,) = client._joined
        connection.eof_received()  # in one step of the loop: found dead …
        task.cancel()  # … and cancelled
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (client.open_connections, server.accepted) == (0, 1)
        await served(client, server)


async def test_idle_connections_are_closed_in_time_or_by_the_backend() -> None:
    async with kept(keepalive_idle=0.05) as (_, client, peer):
        await peer.gone()
        await until_async(lambda: client.open_connections == 0)
    async with kept() as (_server, client, peer):
        peer.close()
        await until_async(lambda: client.open_connections == 0)


async def test_an_idle_connection_is_kept_for_its_time() -> None:
    async with kept(keepalive_idle=60) as (server, client, peer):
        (connection,) = client._joined
        connection.check(asyncio.get_running_loop().time() + 59)
        task = get(client)
        await peer.answer(OK)
        assert await (await task).read(2) == b"ok"
        assert server.accepted == 1
        connection.check(asyncio.get_running_loop().time() + 61)
        await peer.gone()


# Cap and queue


async def test_waiters_are_served_in_order_and_never_above_the_cap() -> None:
    async with backend() as server, pool(server, max_connections=2) as client:
        tasks = [asyncio.create_task(client.request(b"GET", b"/%d" % n, b"")) for n in range(8)]
        peers = [await server.accept(), await server.accept()]
        seen = []
        assert (client.open_connections, client.waiting) == (2, 6)
        for n in range(8):
            request = await peers[n % 2].answer(OK)
            seen.append(request.split(b" ")[1])
            assert client.open_connections <= 2
        assert seen == [b"/%d" % n for n in range(8)]
        assert [await (await task).read(2) for task in tasks] == [b"ok"] * 8
        assert (server.accepted, client.waiting, client.open_connections) == (2, 0, 2)


async def test_the_slot_of_a_dead_connection_goes_to_the_next() -> None:
    async with backend() as server, pool(server, max_connections=1) as client:
        tasks = [get(client) for _ in range(3)]
        peer = await server.accept()
        await peer.request()
        peer.close()
        with pytest.raises(UpstreamClosed):
            await tasks[0]
        peer = await server.accept()
        await peer.request()
        await cancelled(tasks[1])
        peer = await server.accept()
        await peer.answer(OK)
        assert await (await tasks[2]).read(2) == b"ok"
        assert client.open_connections == 1


async def test_a_waiter_that_leaves_is_out_of_the_queue() -> None:
    async with backend() as server, pool(server, max_connections=1) as client:
        first, second, third = (get(client) for _ in range(3))
        peer = await server.accept()
        await peer.request()
        assert client.waiting == 2
        await cancelled(second)
        assert (client.waiting, client.open_connections) == (1, 1)
        await peer.send(OK)
        await first
        await peer.answer(OK)
        assert await (await third).read(2) == b"ok"
        assert (client.waiting, client.open_connections, server.accepted) == (0, 1, 1)


@pytest.mark.parametrize("is_alive", [True, False])
async def test_a_waiter_that_is_served_as_it_leaves_passes_its_turn_on(is_alive: bool) -> None:
    async with backend() as server, pool(server, max_connections=1) as client:
        first = get(client)
        peer = await server.accept()
        await peer.answer(OK[:-1])
        response = await first
        second, third = get(client), get(client)
        await until_async(lambda: client.waiting == 2)
        if is_alive:
            connection = response._conn
            assert connection is not None
            connection.data_received(b"k")  # in one step of the loop: served …
        else:
            response.close()
        assert client.waiting == 1
        second.cancel()  # … and cancelled
        if not is_alive:
            peer = await server.accept()
        await peer.answer(OK)
        assert await (await third).read(2) == b"ok"
        assert second.cancelled()
        assert (client.waiting, client.open_connections) == (0, 1)


async def test_a_waiter_that_leaves_as_its_time_ends_is_only_gone() -> None:
    async with backend() as server, pool(server, max_connections=1) as client:
        first, leaving = get(client), get(client)
        peer = await server.accept()
        (waiter,) = client._waiters
        client._waiters[waiter] = 0.0
        leaving.cancel()  # and in the same step of the loop:
        client._tick()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert client.waiting == 0
        await peer.answer(OK)
        assert await (await first).read(2) == b"ok"


async def test_a_queue_that_does_not_move_is_a_failed_connection() -> None:
    timeouts = Timeouts(pool_wait=0.05)
    async with backend() as server, pool(server, max_connections=1, timeouts=timeouts) as client:
        first = get(client)
        peer = await server.accept()
        with pytest.raises(ConnectFailed, match=r"none of 1 connections free within 0\.05 s") as error:
            await get(client)
        assert not error.value.sent_first_byte
        assert (client.waiting, client.open_connections) == (0, 1)
        await peer.answer(OK)
        await first


async def test_retired_pool_keeps_no_connection_beyond_its_use() -> None:
    async with backend() as server, pool(server) as client:
        idle = await served(client, server)
        first = get(client)
        await idle.request()
        second = get(client)
        other = await server.accept()
        await other.answer(OK)
        assert await (await second).read(2) == b"ok"
        client.retire()
        await other.gone()
        assert client.open_connections == 1
        await idle.send(OK)
        assert await (await first).read(2) == b"ok"
        await idle.gone()
        assert client.open_connections == 0
        late = get(client)
        await (await server.accept()).answer(OK)
        assert await (await late).read(2) == b"ok"
        assert client.open_connections == 0


async def test_cap_that_changes_holds_from_then_on() -> None:
    async with backend() as server, pool(server, max_connections=1) as client:
        first, second, third = get(client), get(client), get(client)
        peers = [await server.accept()]
        client.take_over(2, client.timeouts)
        peers.append(await server.accept())
        assert (client.open_connections, client.waiting) == (2, 1)
        client.take_over(1, client.timeouts)
        for peer in peers:
            await peer.answer(OK)
        await first, await second
        await (await server.accept() if client.waiting else peers[1]).answer(OK)
        assert await (await third).read(2) == b"ok"
        assert client.open_connections == 1
        client.take_over(0, client.timeouts)
        assert client.open_connections == 0


async def test_request_that_is_to_go_out_once_takes_a_new_connection() -> None:
    async with backend() as server, pool(server, max_connections=1) as client:
        kept = await served(client, server)
        task = asyncio.create_task(client.request(b"POST", b"/", b"", b"", only_once=True))
        await kept.gone()
        peer = await server.accept()
        await peer.request()
        peer.reset()
        with pytest.raises(UpstreamClosed) as error:
            await task
        assert (error.value.sendings, server.accepted, client.open_connections) == (1, 2, 0)
