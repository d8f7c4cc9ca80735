"""How the upstream client gets its connections: TLS, addresses, names with both address families."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from gateway.wire import dial
from gateway.wire.connection import Connection
from gateway.wire.errors import ConnectFailed
from gateway.wire.http1 import Pool, Timeouts
from gateway.wire.origin import Origin

from tests.support.authority import LOCAL, Authority
from tests.support.scripted import OK, Backend, backend, pool, two_families


async def get(client: Pool, server: Backend) -> bytes:
    """A whole exchange; the request as the server saw it."""
    task = asyncio.create_task(client.request(b"GET", b"/", b""))
    request = await (await server.accept()).answer(OK)
    assert await (await task).read(2) == b"ok"
    return request


async def test_nobody_listens() -> None:
    async with backend() as server:
        pass
    for host in ("127.0.0.1", "localhost", f"{'x' * 70}.invalid"):
        async with pool(server, f"http://{host}") as client:
            with pytest.raises(ConnectFailed, match=host) as error:
                await client.request(b"GET", b"/", b"")
            assert not error.value.sent_first_byte


async def test_no_connection_in_time() -> None:
    timeouts = Timeouts(connect=0.1)
    async with backend() as server, pool(server, "https://127.0.0.1", timeouts=timeouts) as client:
        with pytest.raises(ConnectFailed, match="no connection within"):
            await client.request(b"GET", b"/", b"")
        await (await server.accept()).gone()
        assert client.open_connections == 0


@pytest.mark.parametrize(("address", "name"), [("::1", "[::1]"), ("127.0.0.1", "localhost")])
async def test_address_and_name(address: str, name: str) -> None:
    async with backend(address) as server, pool(server, f"http://{name}") as client:
        assert f"Host: {name}:{server.port}\r\n".encode() in await get(client, server)


@pytest.mark.parametrize("ipv6", ["answers", "refuses", "is a black hole"])
async def test_a_name_with_both_families_is_reached_on_either(ipv6: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name and the black hole are made here; the sockets are real."""
    given_up = []
    connect = dial._dial_family

    async def on_family(
        origin: Origin, factory: Callable[[], Connection], tls: ssl.SSLContext | None, family: int
    ) -> Connection:
        if family == socket.AF_INET6 and ipv6 == "is a black hole":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                given_up.append(family)
                raise
        host = "::1" if family == socket.AF_INET6 else "127.0.0.1"
        return await connect(replace(origin, host=host), factory, tls, family)

    two_families(monkeypatch, on_family, 0.05)
    address = "::1" if ipv6 == "answers" else "127.0.0.1"
    async with backend(address) as server, pool(server, "http://both.test") as client:
        await get(client, server)
        assert (server.accepted, client.open_connections) == (1, 1)
        assert bool(given_up) == (ipv6 == "is a black hole")
    async with pool(server, "http://both.test") as client:
        with pytest.raises(ConnectFailed):  # with nobody left on either, or in time
            client.timeouts = Timeouts(connect=0.2)
            await client.request(b"GET", b"/", b"")


async def test_of_two_families_that_connect_at_once_one_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = dial._dial_family

    both_connected = asyncio.Barrier(2)

    async def on_family(
        origin: Origin, factory: Callable[[], Connection], tls: ssl.SSLContext | None, _family: int
    ) -> Connection:
        connection = await connect(replace(origin, host="127.0.0.1"), factory, tls, socket.AF_INET)
        await both_connected.wait()
        return connection

    two_families(monkeypatch, on_family, 0.01)
    async with backend() as server, pool(server, "http://both.test") as client:
        task = asyncio.create_task(client.request(b"GET", b"/", b""))
        peers = [await server.accept(), await server.accept()]
        answers = [asyncio.create_task(peer.answer(OK)) for peer in peers]
        assert await (await task).read(2) == b"ok"
        results = await asyncio.gather(*answers, return_exceptions=True)
        assert sorted(type(result).__name__ for result in results) in (
            ["IncompleteReadError", "bytes"],
            ["ConnectionResetError", "bytes"],
        )
        assert client.open_connections == 1


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_tls(host: str, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with (
        backend(tls=authority.server(*LOCAL)) as server,
        pool(server, f"https://{host}", ssl_context=authority.client()) as client,
    ):
        task = asyncio.create_task(client.request(b"POST", b"/", b"", b"x" * 300_000))
        peer = await server.accept()
        assert (await peer.answer(OK)).endswith(b"x" * 300_000)
        assert await (await task).read(2) == b"ok"
        task = asyncio.create_task(client.request(b"GET", b"/", b""))
        await peer.answer(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n")
        response = await task
        assert (await response.next_chunk(), server.accepted) == (b"ab", 1)
        reading = asyncio.create_task(response.next_chunk())
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        await peer.gone()


@pytest.mark.parametrize(
    ("name", "is_trusted", "problem"),
    [("localhost", False, "certificate verify failed"), ("elsewhere.test", True, "mismatch")],
    ids=["an unknown authority", "another name"],
)
async def test_certificate_that_does_not_fit_is_refused(
    tmp_path: Path, name: str, is_trusted: bool, problem: str
) -> None:
    authority = Authority(tmp_path)
    trusted = authority.client() if is_trusted else None
    async with (
        backend(tls=authority.server(x509.DNSName(name))) as server,
        pool(server, "https://localhost", ssl_context=trusted) as client,
    ):
        with pytest.raises(ConnectFailed, match=f"(?i){problem}"):
            await client.request(b"GET", b"/", b"")
        assert client.open_connections == 0


async def test_plain_text_on_a_tls_port_is_refused() -> None:
    async with backend() as server, pool(server, "https://127.0.0.1") as client:
        task = asyncio.create_task(client.request(b"GET", b"/", b""))
        await (await server.accept()).send(OK)
        with pytest.raises(ConnectFailed):
            await task
