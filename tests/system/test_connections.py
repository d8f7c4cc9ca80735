"""What the gateway's own protocol adds to uvicorn's keeps HTTP's rules: order, closing, half-closed clients."""

import json
import socket

import pytest

from tests.support.gateways import TOKEN, Gateway
from tests.support.sockets import connect, read_to_end, read_until
from tests.support.upstream import DONE, Upstream


def request(model: str, *, version: str = "1.1", stream: bool = False, extra: str = "") -> bytes:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hi"}], "stream": stream})
    head = f"POST /v1/chat/completions HTTP/{version}\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n{extra}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()


@pytest.fixture
def connection(served: Gateway, seen: Upstream) -> socket.socket:
    return connect(served.port)


def test_pipelined_requests_are_answered_in_order(connection: socket.socket) -> None:
    models = ["echo", "test:status-404", "fast", "nowhere", "echo"]
    with connection:
        connection.sendall(b"".join(request(model) for model in models))
        received = read_until(connection, b"HTTP/1.1 ", len(models))
        statuses = [part.split(b" ")[0] for part in received.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"200", b"404", b"200", b"404", b"200"]


def test_stream_between_pipelined_answers(connection: socket.socket) -> None:
    with connection:
        connection.sendall(
            request("echo") + request("echo", stream=True) + request("echo", extra="Connection: close\r\n")
        )
        received = read_to_end(connection)
    assert received.count(b"HTTP/1.1 200 OK") == 3
    assert received.index(DONE) < received.rindex(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize(("extra", "version"), [("Connection: close\r\n", "1.1"), ("", "1.0")])
def test_last_answer_comes_whole_before_the_end(connection: socket.socket, extra: str, version: str) -> None:
    with connection:
        connection.sendall(request("echo", extra=extra, version=version))
        received = read_to_end(connection)
    assert b"200 OK" in received
    assert b"connection: close" in received
    assert received.endswith(b"}")


def test_connection_serves_many_requests(connection: socket.socket) -> None:
    with connection:
        for _ in range(20):
            connection.sendall(request("echo"))
            answer = read_until(connection, b'"total_tokens"')
            assert answer.startswith(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
            assert answer.count(b"\r\ndate: ") == 1


def test_each_head_that_comes_in_parts_has_its_own_bound(connection: socket.socket) -> None:
    """Twenty of 8 KB are more than one may have."""
    padded, half = request("echo", extra=f"X-Long: {'x' * 8000}\r\n"), 4000
    with connection:
        connection.sendall(padded[:half])
        for _ in range(20):
            connection.sendall(padded[half:] + padded[:half])
            assert read_until(connection, b'"total_tokens"').startswith(b"HTTP/1.1 200 OK\r\n")


def test_head_of_a_stream_does_not_wait_for_its_first_event(connection: socket.socket, seen: Upstream) -> None:
    with connection:
        connection.sendall(request("hang-head", stream=True))
        read_until(connection, b"\r\n\r\n")
    seen.wait_for(1, left=True)


def test_large_head_within_the_limit_is_taken(served: Gateway) -> None:
    assert served.client.get("/health", headers={"X-Large": "x" * 30_000}).status_code == 200
