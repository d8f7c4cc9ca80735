"""A backend's connection in memory: what arrives, and in which pieces, is exactly what a test says."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import pytest
from gateway.wire import http1
from gateway.wire.connection import Connection
from gateway.wire.errors import UpstreamClosed, UpstreamError
from gateway.wire.http1 import Pool
from gateway.wire.origin import Origin

MAX_HEAD = 300


class Wire(asyncio.Transport):
    """Both ends of a connection: notes what is written, delivers what it is told to."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self.connection = connection
        self.written = b""
        self.unsent = 0
        self.is_closed = False
        self.is_paused = False
        connection.connection_made(self)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.is_closed
        self.written += data

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def is_closing(self) -> bool:
        return self.is_closed

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def abort(self, error: Exception | None = None) -> None:
        if not self.is_closed:
            self.is_closed = True
            asyncio.get_running_loop().call_soon(self.connection.connection_lost, error)

    def end(self, how: str) -> None:
        """The backend closes the connection, or it is a `reset`."""
        if not self.is_closed:
            if how == "reset":
                self.abort(ConnectionResetError())
            else:
                self.connection.eof_received()
                self.abort()


@pytest.fixture
def wires(monkeypatch: pytest.MonkeyPatch) -> list[Wire]:
    """The connections that a pool has dialled, not one of them for real."""
    dialled: list[Wire] = []

    async def dial(_origin: object, factory: object, _tls: object) -> Connection:
        connection = cast("type[Connection]", factory)()  # type: ignore[call-arg]  # the pool's own factory
        dialled.append(Wire(connection))
        return connection

    monkeypatch.setattr(http1, "dial", dial)
    return dialled


@dataclass(frozen=True)
class Outcome:
    """Of one request: the head, the body up to its end, and how it ended."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    error: str


async def outcome(wires: list[Wire], method: bytes, pieces: Iterable[bytes], ends: str = "") -> tuple[Outcome, int]:
    """What one request comes to, and how many connections it leaves behind for the next one."""
    wires.clear()
    pool = Pool(Origin.parse("http://backend"), max_connections=1, max_header_bytes=MAX_HEAD)
    task = asyncio.create_task(pool.request(method, b"/", b""))
    await is_settled(task)
    assert wires[0].written
    has_begun = False
    for piece in pieces:
        if not wires[0].is_closed:
            wires[0].connection.data_received(piece)
            has_begun = True
    if ends:
        wires[0].end(ends)
    status, body, error = 0, b"", ""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    try:
        if not ends and not await is_settled(task):
            task.cancel()
        response = await task
        status, headers = response.status, tuple(response.headers)
        while not response.complete or response._rest:
            reading = asyncio.create_task(response.next_chunk())
            if not ends and not await is_settled(reading):
                reading.cancel()
            if not (chunk := await reading):
                break
            body += chunk
        assert await response.next_chunk() == b""
        response.close()
    except UpstreamError as caught:
        error = type(caught).__name__
        assert pool.open_connections == 0
        assert not isinstance(caught, UpstreamClosed) or caught.sent_first_byte == has_begun
    except asyncio.CancelledError:
        error = "waits for more"
        assert pool.open_connections == 0
    left = pool.open_connections
    assert left == int(not wires[0].is_closed), "a connection is counted exactly as long as it is open"
    await pool.close()
    assert (pool.open_connections, pool.waiting, wires[0].is_closed) == (0, 0, True)
    return Outcome(status, headers, body, error), left


async def is_settled(task: asyncio.Task[object]) -> bool:
    for _ in range(5):
        await asyncio.sleep(0)
    return task.done()
