"""Clients that are slow, or that only hold what they have: each of a request's phases has its time, and no more."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import uvicorn
from gateway.wire.protocol import Protocol
from starlette.types import ASGIApp, Receive, Scope, Send

from tests.support.gateways import TOKEN, Gateway, gateway, write_files
from tests.support.sockets import connect, read_to_end, read_until, send
from tests.support.waiting import PATIENCE_SEC, until
from tests.support.wire import Script, Wire, event, head, wire


@pytest.fixture(scope="module")
def bounded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, Wire]]:
    """A gateway whose clients have half a second for a body, and for taking something of their answers."""
    home = tmp_path_factory.mktemp("bounded")
    with wire() as double:
        write_files(home, double.url)
        settings = {"REQUEST_BODY_TIMEOUT_SEC": "0.5", "RESPONSE_SEND_TIMEOUT_SEC": "0.5"}
        with gateway(home, None, **settings) as running:
            yield running, double


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


FORM = "multipart/form-data; boundary=b", '--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n'


@pytest.mark.parametrize(
    ("path", "content_type", "begin"),
    [("/v1/chat/completions", "application/json", ""), ("/v1/images/edits", *FORM)],
    ids=["JSON", "a form"],
)
def test_a_body_has_its_time(bounded: tuple[Gateway, Wire], path: str, content_type: str, begin: str) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: {content_type}\r\n"
    with connect(bounded[0].port) as connection:
        connection.sendall(f"{head}Content-Length: 100000\r\n\r\n{begin}".encode())
        received = trickle(connection)
    answer = json.loads(received.partition(b"\r\n\r\n")[2])
    assert received.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert b"connection: close" in received
    assert (answer["error"]["type"], answer["error"]["code"]) == ("timeout_error", "request_timeout")
    assert "REQUEST_BODY_TIMEOUT_SEC" in answer["error"]["message"]


def test_a_client_that_takes_nothing_of_a_stream_is_cut(bounded: tuple[Gateway, Wire]) -> None:
    running, double = bounded
    double.script = Script((head("text/event-stream"), event({"choices": []}) * 1000), repeats=True)
    body = {"model": "fast", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    with send(running.port, "/v1/chat/completions", body, buffer=4096):
        entry = running.log_entry(lambda entry: entry.get("stream") is True)
        assert (entry["status"], entry["abort_reason"]) == (200, "client_disconnected")
        running.wait_until_idle()


@contextmanager
def serving(app: ASGIApp, listener: socket.socket) -> Iterator[uvicorn.Server]:
    """A server in this process whose clients may be idle for two seconds."""
    config = uvicorn.Config(app, http=Protocol, ws="none", lifespan="off", log_config=None, timeout_keep_alive=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=asyncio.run, args=(server.serve(sockets=[listener]),))
    thread.start()
    try:
        yield server
    finally:
        server.should_exit = True
        thread.join()


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
        with connect(listener.getsockname()[1], 4096) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            with serving(app, listener) as server:
                until(lambda: server.server_state.total_requests == 1, "it is not answered")
                until(lambda: not server.server_state.connections, "it is held for ever")


async def answer_late(scope: Scope, receive: Receive, send: Send) -> None:
    await asyncio.sleep(1)
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"", b""),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX-Half", b"HTTP/1.1 408 Request Timeout\r\n"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.1 204 No Content\r\n"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nX-Half", b"HTTP/1.1 204 No Content\r\n"),
    ],
    ids=["nothing", "half a head", "a whole one", "one and a half"],
)
def test_a_head_has_its_time(monkeypatch: pytest.MonkeyPatch, sent: bytes, answer: bytes) -> None:
    """Who never ends it only holds a connection, and is let go; an answer under way is not disturbed."""
    monkeypatch.setattr("gateway.wire.protocol.REQUEST_HEAD_MAX_SEC", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listener, connect(listener.getsockname()[1]) as connection:
        connection.sendall(sent)  # before anybody looks, so that nothing but the rest of a head is late
        with serving(answer_late, listener):
            if sent.endswith(b"\r\n\r\n"):
                assert read_until(connection, b"\r\n\r\n").startswith(answer)
                return
            received = read_to_end(connection)
            assert received.startswith(answer)
            assert sent == b"" or b"408 Request Timeout" in received
