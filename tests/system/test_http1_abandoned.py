"""Dials that nobody waits for any more leave nothing: no connection, no memory, nothing that a close waits for."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from gateway.wire import dial, http1
from gateway.wire.connection import Connection, Response
from gateway.wire.errors import ConnectFailed, UpstreamClosed, UpstreamError
from gateway.wire.http1 import Pool, Timeouts
from gateway.wire.origin import Origin
from httptools import HttpResponseParser

from tests.support.authority import LOCAL, Authority
from tests.support.scripted import OK, Backend, backend, get, pool, served, two_families
from tests.support.waiting import PATIENCE_SEC, until_async

STEPS = 40  # of the loop, more than any dial takes on loopback


@pytest.fixture
def uncollected(no_collector: None) -> Callable[[], list[object]]:
    """The connections, answers and parsers that are still there without the collector's help."""
    return lambda: [one for one in gc.get_objects() if isinstance(one, Connection | Response | HttpResponseParser)]


def both_families(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each name has two addresses; both are those of the server."""
    connect = dial._dial_family

    async def on_family(
        origin: Origin, factory: Callable[[], Connection], tls: ssl.SSLContext | None, _: int
    ) -> Connection:
        return await connect(replace(origin, host="127.0.0.1"), factory, tls, socket.AF_INET)

    two_families(monkeypatch, on_family, 0.0)


@pytest.mark.parametrize("way", ["plain", "tls", "two families"])
async def test_dial_that_is_cancelled_at_any_moment_leaves_nothing(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uncollected: Callable[[], list[object]]
) -> None:
    authority = Authority(tmp_path) if way == "tls" else None
    if way == "two families":
        both_families(monkeypatch)
    url = {"plain": "http://127.0.0.1", "tls": "https://127.0.0.1", "two families": "http://both.test"}[way]
    context = authority.client() if authority else None
    async with (
        backend(tls=authority.server(*LOCAL) if authority else None) as server,
        pool(server, url, ssl_context=context) as client,
    ):
        for steps in [*range(STEPS)] * 3:
            task = get(client)
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await until_async(lambda: not client._joined and client.open_connections == 0)
        await until_async(lambda: uncollected() == [])


async def test_dial_that_is_refused_leaves_nothing(tmp_path: Path, uncollected: Callable[[], list[object]]) -> None:
    async with backend() as gone:
        pass
    async with (
        backend(tls=Authority(tmp_path).server(*LOCAL)) as unknown,
        pool(unknown, "https://127.0.0.1") as distrusting,
        pool(gone) as refused,
    ):
        with pytest.raises(ConnectFailed):
            await refused.request(b"GET", b"/", b"")
        await until_async(lambda: uncollected() == [])
        with pytest.raises(ConnectFailed):  # asyncio's own part of this error is a cycle
            await distrusting.request(b"GET", b"/", b"")
        await until_async(lambda: not distrusting._joined)


async def test_backend_that_closes_what_it_has_accepted_is_not_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    """With two families the dial ends some turns of the loop after the connection did."""
    both_families(monkeypatch)

    def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    listener = await asyncio.start_server(join, "127.0.0.1", 0)
    server = Backend()
    server.port = listener.sockets[0].getsockname()[1]
    async with listener, pool(server, "http://both.test", timeouts=Timeouts(first_byte=PATIENCE_SEC)) as client:
        for _ in range(20):
            with pytest.raises((UpstreamClosed, ConnectFailed)):
                await client.request(b"GET", b"/", b"")


ENDINGS = {
    "before": b"",
    "in the head": b"HTTP/1.1 200",
    "in the body": b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx",
    "after it": OK,
    "with nonsense": b"nonsense\r\n\r\n",
}


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("ending", ENDINGS)
async def test_dead_connection_goes_without_the_collector(
    ending: str, kept: bool, uncollected: Callable[[], list[object]]
) -> None:
    async with backend() as server, pool(server) as client:
        if kept:
            peer = await served(client, server)
        task = get(client)
        if not kept:
            peer = await server.accept()
        await peer.answer(ENDINGS[ending])
        peer.close()
        if kept and ending == "before":
            peer = await server.accept()
            await peer.request()
            peer.close()
        try:
            response = await task
            try:
                await response.read(9)
            finally:
                response.close()
                del response
        except UpstreamError:
            assert ending != "after it"
        del task
        await until_async(lambda: not client._joined)
        await until_async(lambda: uncollected() == [])


async def test_close_is_bounded_and_tells_what_is_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(http1, "CLOSE_SEC", 0.01)
    async with backend() as server, pool(server) as client:
        await served(client, server)
        (connection,) = client._joined
        with monkeypatch.context() as patch:
            patch.setattr(Pool, "left", lambda *_: None)
            await client.close()
            await asyncio.sleep(0.05)
        assert "1 connections are still open" in caplog.text
        client.left(connection)
