"""Clients that read nothing, send more than they may, or leave early: one gateway over real sockets."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.support.chat_script import chat_script
from tests.support.gateways import TOKEN, Gateway, gateway, write_files
from tests.support.sockets import connect, read_until, send
from tests.support.upstream import upstream
from tests.support.waiting import PATIENCE_SEC, until
from tests.support.wire import EVENTS, JSON, NDJSON, Script, Wire, by_ollama, chunked, event, framed, line, settle

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
HI = [{"role": "user", "content": "Hi"}]
FLOOD_MAX = 32_000_000  # what sockets hold on a loopback with large buffers, and the gateway's own 256 KiB
WORDS = {"role": "assistant", "content": "x" * 1000}
FLOODS = {
    "test:echo": chunked(
        EVENTS, [event({"id": "c-1", "choices": [{"index": 0, "delta": WORDS}]}) * 50], is_whole=False
    ),
    "native:echo": chunked(NDJSON, [line({"model": "echo", "message": WORDS, "done": False}) * 50], is_whole=False),
}
WAYS = [(path, model) for path in (CHAT, MESSAGES) for model in FLOODS]
GOOD = Script((framed(JSON, b'{"choices":[{"index":0,"message":{"content":"Hi"},"finish_reason":"stop"}]}'),))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, server: Wire) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("pressed")
    write_files(home, server.url, {"native@here": by_ollama(server)})
    with gateway(home, MAX_UPLOAD_BYTES="1000000") as running:
        yield running


def begin(served: Gateway, server: Wire, path: str, model: str) -> socket.socket:
    """A connection on which more comes than anybody reads."""
    server.script, server.written = Script(FLOODS[model], repeats=True), 0
    body = {"model": model, "messages": HI, "stream": True, "max_tokens": 64}
    connection = send(served.port, path, body, buffer=4096)
    until(lambda: server.written, "nothing is written")
    return connection


@pytest.mark.parametrize(("path", "model"), WAYS)
def test_a_client_that_does_not_read_stops_its_backend(served: Gateway, server: Wire, path: str, model: str) -> None:
    """And nobody else: what it does not take stays with the backend, not in the gateway's memory."""
    with begin(served, server, path, model) as connection:
        held = settle(lambda: server.written)
        assert 0 < held < FLOOD_MAX
        server.script = GOOD
        for _ in range(20):
            assert served.chat("test:echo").status_code == 200
        assert server.written == held
        assert served.inflight() == 1
        taken = 0
        while taken < held or server.written == held:  # once it reads, it goes on
            data = connection.recv(1_000_000)
            assert data, "cut off"
            taken += len(data)
    served.wait_until_idle()


def test_a_stop_does_not_wait_for_a_client_that_does_not_read(tmp_path: Path, server: Wire) -> None:
    write_files(tmp_path, server.url, {"native@here": by_ollama(server)})
    with gateway(tmp_path, GATEWAY_SHUTDOWN_TIMEOUT_SEC="1") as served, ExitStack() as stack:
        for path, model in WAYS:
            stack.enter_context(begin(served, server, path, model))
        settle(lambda: server.written)
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(PATIENCE_SEC) == 0


def test_pipelined_requests_after_a_broken_stream(served: Gateway, server: Wire) -> None:
    """What is left of a broken stream is no part of the next answer."""
    server.script = Script(FLOODS["test:echo"], "reset")
    body = json.dumps({"model": "test:echo", "messages": HI, "stream": True}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {len(body)}\r\n\r\n"
    with connect(served.port) as connection:
        connection.sendall((head.encode() + body) * 3)
        received = read_until(connection, b"\r\n0\r\n\r\n", 3)
    assert received.count(b"HTTP/1.1 200 OK\r\n") == 3
    assert received.count(b"upstream_closed") == 3
    assert b"[DONE]" not in received


FORM = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
LIMITS = {
    **dict.fromkeys((CHAT, MESSAGES, RESPONSES), "MAX_REQUEST_BYTES"),
    **dict.fromkeys(
        ("/v1/embeddings", "/v1/rerank", "/v1/audio/speech", "/v1/images/generations"), "MAX_REQUEST_BYTES"
    ),
    **dict.fromkeys(("/v1/audio/transcriptions", "/v1/images/edits"), "MAX_UPLOAD_BYTES"),
}


@pytest.mark.parametrize("path", LIMITS)
@pytest.mark.parametrize("has_length", [False, True])
def test_bodies_beyond_the_limit(served: Gateway, path: str, has_length: bool) -> None:
    is_form = LIMITS[path] == "MAX_UPLOAD_BYTES"
    start = FORM if is_form else b""
    blocks = (start if number == 0 else b" " * 100_000 for number in range(100))
    headers = {"Content-Type": "multipart/form-data; boundary=x"} if is_form else {}
    answer = served.client.post(path, content=start + b" " * 1_000_001 if has_length else blocks, headers=headers)
    assert answer.status_code == 413
    assert LIMITS[path] in answer.json()["error"]["message"]


def test_client_that_leaves_before_its_backend_is_asked(tmp_path: Path) -> None:
    """Stored responses are read beside the event loop: who leaves meanwhile has left when the work begins."""
    with chat_script() as script:
        write_files(tmp_path, script.url)
        with gateway(tmp_path) as running:
            stored = running.client.post(RESPONSES, json={"model": "echo", "input": "Hi"}).json()["id"]
            request = {"model": "hang", "input": "Go on", "previous_response_id": stored}
            for number in range(30):
                send(running.port, RESPONSES, request, headers={"X-Request-Id": f"leaving-{number}"}).close()
            left = [entry for entry in running.log_entries(31) if entry["request_id"].startswith("leaving-")]
            assert [entry["status"] for entry in left] == [499] * 30
            running.wait_until_idle()


@pytest.mark.parametrize(("path", "model"), [*WAYS, *((RESPONSES, model) for model in FLOODS)])
def test_backend_that_said_all_and_stays(served: Gateway, server: Wire, path: str, model: str) -> None:
    """Nobody waits for the end of its message: the client has its answer whole, the next one the slot."""
    flood = FLOODS[model]
    last = chunked("", [line({"message": {}, "done": True}) if model == "native:echo" else b"data: [DONE]\n\n"])[1]
    server.script = Script((*flood, last), "hang")
    prompt: dict[str, Any] = {"input": "Hi"} if path == RESPONSES else {"messages": HI, "max_tokens": 64}
    answer = served.client.post(path, json={"model": model, "stream": True, **prompt})
    assert any(end in answer.text for end in ("[DONE]", "message_stop", "response.completed"))
    served.wait_until_idle()


def test_time_that_a_silent_backend_took_is_told(tmp_path: Path) -> None:
    with upstream() as backend:
        write_files(tmp_path, backend.url)
        with gateway(tmp_path, UPSTREAM_FIRST_BYTE_TIMEOUT_SEC="0.3") as running:
            for path, prompt in ((CHAT, {"messages": HI}), (RESPONSES, {"input": "Hi"})):
                answer = running.client.post(path, json={"model": "hang", **prompt})
                assert answer.status_code == 504
                assert running.entry_of(answer)["upstream_ms"] >= 300
