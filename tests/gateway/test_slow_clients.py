"""Clients that send or take too slowly: each has its time, and whoever only holds a connection is let go."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from gateway.http.protocol import Protocol
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.gateway.conftest import TOKEN, Gateway, gateway, write_files
from tests.gateway.sockets import connect, read_to_end, read_until, send
from tests.gateway.test_leaving import wait_until_idle
from tests.gateway.wire import Script, Wire, event, head, wire
from tests.waiting import PATIENCE_SEC, until


async def answer_late(scope: Scope, receive: Receive, send: Send) -> None:
    await asyncio.sleep(1)
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


@contextmanager
def serving(listener: socket.socket, app: ASGIApp = answer_late, keep_alive: int = 75) -> Iterator[uvicorn.Server]:
    """A server of `app` in this process."""
    config = uvicorn.Config(
        app, http=Protocol, ws="none", lifespan="off", log_config=None, timeout_keep_alive=keep_alive
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=asyncio.run, args=(server.serve(sockets=[listener]),))
    thread.start()
    try:
        yield server
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Listens for a server that is not there yet, whose clients have 0.3 s for a head."""
    monkeypatch.setattr("gateway.http.protocol.REQUEST_HEAD_MAX_SEC", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"", b""),
        (b"GET / HTTP/1.1\r\nHost", b"HTTP/1.1 408 Request Timeout\r\n"),
        (b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 204 No Content\r\n"),
        (b"GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\nHost", b"HTTP/1.1 204 No Content\r\n"),
    ],
    ids=["nothing", "half a head", "a whole one", "one and a half"],
)
def test_a_head_has_its_time(impatient: socket.socket, sent: bytes, answer: bytes) -> None:
    """Who never ends it only holds a connection, and is let go; an answer under way is not disturbed."""
    with connect(impatient.getsockname()[1]) as connection:
        connection.sendall(sent)  # before anybody looks, so that nothing but the rest of a head is late
        with serving(impatient):
            if sent.endswith(b"\r\n\r\n"):
                assert read_until(connection, b"\r\n\r\n").startswith(answer)
                return
            received = read_to_end(connection)
            assert received.startswith(answer)
            assert sent == b"" or b"408 Request Timeout" in received


def test_a_connection_outlives_the_time_that_its_heads_have(impatient: socket.socket) -> None:
    with connect(impatient.getsockname()[1]) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with serving(impatient):
            for _ in range(3):
                assert read_until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 204")
                time.sleep(0.5)
                connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert read_until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 204")


def trickle(connection: socket.socket) -> bytes:
    """Sends a byte now and then until the connection is closed; what came until then."""
    received = b""
    connection.settimeout(0.05)
    deadline = time.monotonic() + PATIENCE_SEC
    while time.monotonic() < deadline:
        try:
            connection.sendall(b"x")
            if not (data := connection.recv(65536)):
                return received
            received += data
        except TimeoutError:
            continue
        except ConnectionError:
            return received
    raise AssertionError(f"still open, with {received!r}")


def test_a_body_that_nobody_reads_does_not_come_for_ever(impatient: socket.socket) -> None:
    with connect(impatient.getsockname()[1]) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n")
        with serving(impatient):
            assert trickle(connection).startswith(b"HTTP/1.1 204")


@pytest.fixture(scope="module")
def bounded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, Wire]]:
    """A gateway whose clients have half a second for a body, and for taking something of their answers."""
    home = tmp_path_factory.mktemp("bounded")
    with wire() as double:
        write_files(home, double.url)
        settings = {"REQUEST_BODY_TIMEOUT_SEC": "0.5", "RESPONSE_SEND_TIMEOUT_SEC": "0.5"}
        with gateway(home, None, **settings) as running:
            yield running, double


FORM = "multipart/form-data; boundary=b", '--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n'


@pytest.mark.parametrize(
    ("path", "content_type", "begin"),
    [("/v1/chat/completions", "application/json", ""), ("/v1/images/edits", *FORM)],
    ids=["JSON", "a form"],
)
def test_a_body_has_its_time(bounded: tuple[Gateway, Wire], path: str, content_type: str, begin: str) -> None:
    running, _ = bounded
    lines = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: {content_type}\r\n"
    with connect(running.port) as connection:
        connection.sendall(f"{lines}Content-Length: 100000\r\n\r\n{begin}".encode())
        received = trickle(connection)
    assert received.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert b"connection: close" in received
    error = json.loads(received.partition(b"\r\n\r\n")[2])["error"]
    assert (error["type"], error["code"]) == ("timeout_error", "request_timeout")
    assert "REQUEST_BODY_TIMEOUT_SEC" in error["message"]


def test_a_client_that_takes_nothing_of_a_stream_is_cut(bounded: tuple[Gateway, Wire]) -> None:
    running, double = bounded
    double.script = Script((head("text/event-stream"), event({"choices": []}) * 1000), repeats=True)
    body = {"model": "fast", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    with send(running.port, "/v1/chat/completions", body, buffer=4096):
        entry = running.log_entry(lambda entry: entry.get("stream") is True)
        assert (entry["status"], entry["abort_reason"]) == (200, "client_disconnected")
        wait_until_idle(running)


@pytest.mark.parametrize("size", [60_000, 20_000_000], ids=["less than stops its writer", "more"])
@pytest.mark.parametrize("ending", [b"close", b"keep-alive"])
def test_a_whole_answer_that_nobody_takes_is_dropped(monkeypatch: pytest.MonkeyPatch, size: int, ending: bytes) -> None:
    """Its handler has long ended: only the event loop holds it."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"connection", ending), (b"content-length", b"%d" % size)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": bytes(size)})

    monkeypatch.setattr(Protocol, "send_timeout", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        with serving(listener, app, keep_alive=1) as server, connect(listener.getsockname()[1], 4096) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
            until(lambda: server.server_state.total_requests == 1, "it is not answered")
            until(lambda: not server.server_state.connections, "it is held for ever")


class Sending:
    """A transport, and a loop's timers, for a connection on which only sending matters."""

    def __init__(self) -> None:
        self.unsent = 100_000
        self.aborted = False
        self.timers: list[Any] = []
        self.protocol = Protocol(
            uvicorn.Config(answer_late, http=Protocol, log_config=None),
            uvicorn.server.ServerState(),
            {},
            self,  # type: ignore[arg-type]  # of a loop it has what is used here
        )
        self.protocol.connection_made(self)  # type: ignore[arg-type]  # likewise of a transport
        self.timers.clear()

    def call_later(self, delay: float, callback: Any, *arguments: Any) -> Any:
        timer = SimpleNamespace(run=lambda: callback(*arguments), cancelled=False)
        timer.cancel = lambda: setattr(timer, "cancelled", True)
        self.timers.append(timer)
        return timer

    call_at = call_later

    def time(self) -> float:
        return 0

    def is_closing(self) -> bool:
        return False

    pause_reading = resume_reading = is_closing

    def get_extra_info(self, name: str) -> None:
        return None

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def abort(self) -> None:
        self.aborted = True


def test_a_slow_client_is_not_cut() -> None:
    """Whoever has taken anything since the last look gets as much time again."""
    sending = Sending()
    sending.protocol.pause_writing()
    for _ in range(3):
        sending.unsent -= 1
        sending.timers[-1].run()
        assert not sending.aborted
    assert len(sending.timers) == 4
    sending.timers[-1].run()
    assert sending.aborted


def test_nobody_is_cut_once_writing_is_resumed() -> None:
    sending = Sending()
    sending.protocol.pause_writing()
    sending.protocol.resume_writing()
    assert [timer.cancelled for timer in sending.timers] == [True]
