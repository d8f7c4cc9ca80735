"""Clients that are slow, or that only hold what they have: each of a request's phases has its time, and no more."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator

import pytest

from tests.support.gateways import TOKEN, Gateway, gateway, write_files
from tests.support.sockets import connect, send
from tests.support.waiting import PATIENCE_SEC
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
