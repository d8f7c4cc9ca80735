"""A server on loopback that a test scripts byte by byte, and what runs such a test on both kinds of event loop."""

from __future__ import annotations

import asyncio
import gc
import inspect
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import uvloop
from gateway.wire import dial
from gateway.wire.connection import Connection, Response
from gateway.wire.http1 import Pool
from gateway.wire.origin import Origin

from tests.support.waiting import PATIENCE_SEC, until_async

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
Test = Callable[[], Coroutine[Any, Any, None]]
Run = Callable[[Test], None]


def run_on(loop: str, test: Test) -> None:
    """Fails also where a callback did: of that only the loop is told."""
    unexpected: list[dict[str, Any]] = []

    async def with_deadline() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unexpected.append(context))
        async with asyncio.timeout(2 * PATIENCE_SEC):
            await test()

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(with_deadline())
    assert unexpected == []


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Run:
    """Runs a coroutine on each kind of event loop, with a deadline."""
    return partial(run_on, request.param)


def pytest_pycollect_makeitem(name: str, obj: Any) -> None:
    """Has each test that is a coroutine ask for `run`."""
    if name.startswith("test_") and inspect.iscoroutinefunction(obj):
        pytest.mark.usefixtures("run")(obj)


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Runs such a test."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    asked = inspect.signature(pyfuncitem.obj).parameters
    run_it: Any = pyfuncitem.funcargs["run"]
    run_it(partial(pyfuncitem.obj, **{name: pyfuncitem.funcargs[name] for name in asked}))
    return True


@pytest.fixture(scope="session")
def frozen() -> Iterator[None]:
    """What was there before is not looked at by the collector, so that a test may ask it for what it has made."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def no_collector(frozen: None) -> Iterator[None]:
    """What is freed is freed by its last reference alone."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Peer:
    """The server's side of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def request(self) -> bytes:
        """The next request, head and body."""
        async with asyncio.timeout(PATIENCE_SEC):
            head = await self.reader.readuntil(b"\r\n\r\n")
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    return head + await self.reader.readexactly(int(line[15:]))
            return head

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def offer(self, data: bytes) -> None:
        """Send to a client that may have left."""
        if not self.writer.is_closing():
            self.writer.write(data)
            await asyncio.sleep(0)

    async def answer(self, data: bytes) -> bytes:
        request = await self.request()
        await self.send(data)
        return request

    async def gone(self) -> None:
        """Returns when the client has closed the connection."""
        async with asyncio.timeout(PATIENCE_SEC):
            try:
                while await self.reader.read(65536):
                    pass
            except ConnectionError:
                pass

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        self.writer.transport.abort()


class Backend:
    """A listening socket; `accept` gives its connections in the order in which they came."""

    def __init__(self) -> None:
        self.port = 0
        self.accepted = 0
        self._peers: asyncio.Queue[Peer] = asyncio.Queue()
        self._all: list[Peer] = []

    async def accept(self) -> Peer:
        async with asyncio.timeout(PATIENCE_SEC):
            return await self._peers.get()

    @property
    def none_waits(self) -> bool:
        """No connection but those that were accepted."""
        return self._peers.empty()

    def _joined(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Called as soon as the connection is made: a task might not begin before the server's end."""
        self.accepted += 1
        peer = Peer(reader, writer)
        self._all.append(peer)
        self._peers.put_nowait(peer)

    @asynccontextmanager
    async def listening(self, host: str, tls: ssl.SSLContext | None) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._joined, host, 0, ssl=tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()
            await asyncio.sleep(0)  # those that it has just accepted
            for peer in self._all:
                peer.reset()
            await server.wait_closed()
            await asyncio.sleep(0)  # the aborted transports' last callbacks


@asynccontextmanager
async def backend(host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> AsyncIterator[Backend]:
    server = Backend()
    async with server.listening(host, tls):
        yield server


@asynccontextmanager
async def pool(server: Backend, url: str = "http://127.0.0.1", **options: Any) -> AsyncIterator[Pool]:
    """A pool for `server`; at the end nothing of it may be left."""
    client = Pool(Origin.parse(f"{url}:{server.port}"), **options)
    try:
        yield client
    finally:
        await client.close()
        await until_async(lambda: client.open_connections == 0 and client.waiting == 0)


def stopped(client: Pool) -> Connection:
    """The pool's one connection, to which from now on only the test tells the time: by `check`."""
    (connection,) = client._joined
    assert client._timer is not None
    client._timer.cancel()
    return connection


def get(client: Pool) -> asyncio.Task[Response]:
    return asyncio.create_task(client.request(b"GET", b"/", b""))


@asynccontextmanager
async def asked(**options: Any) -> AsyncIterator[tuple[Backend, Pool, asyncio.Task[Response], Peer]]:
    """A server, a pool, the pool's first request, and the connection on which it comes."""
    async with backend() as server, pool(server, **options) as client:
        task = get(client)
        yield server, client, task, await server.accept()


@asynccontextmanager
async def kept(**options: Any) -> AsyncIterator[tuple[Backend, Pool, Peer]]:
    """A server, a pool, and their one connection, which has served a request and is idle."""
    async with backend() as server, pool(server, **options) as client:
        yield server, client, await served(client, server)


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def served(client: Pool, server: Backend) -> Peer:
    """A pool whose one connection has served a request and is idle."""
    task = get(client)
    peer = await server.accept()
    await peer.answer(OK)
    assert await (await task).read(2) == b"ok"
    return peer


def two_families(monkeypatch: pytest.MonkeyPatch, on_family: Callable[..., Any], second_after: float) -> None:
    """Gives each name two addresses, of which `on_family` dials one; the second after so many seconds."""

    async def families(_: Origin) -> list[int]:
        return [socket.AF_INET6, socket.AF_INET]

    monkeypatch.setattr(dial, "SECOND_FAMILY_AFTER", second_after)
    monkeypatch.setattr(dial, "_families", families)
    monkeypatch.setattr(dial, "_dial_family", on_family)
