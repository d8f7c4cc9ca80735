"""gateway-embed with its real model on a real socket, asked by OpenAI's SDK and by bare sockets."""

from __future__ import annotations

import base64
import json
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import openai
import pytest
from gateway.shims.embed import MAX_BODY_BYTES, MAX_REQUESTS, MAX_TEXTS

from tests.support.ports import free_ports
from tests.support.sockets import connect, read_to_end, read_until
from tests.support.waiting import PATIENCE_SEC, until

MODEL = "all-minilm-l6-v2"
LONG = "a sentence that goes on and on about nothing in particular, " * 30
COMMAND = [sys.executable, "-m", "gateway.shims.embed"]


@contextmanager
def running() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, ready, and its address; stopped by SIGTERM if it still runs."""
    (port,) = free_ports(1)
    arguments = ["--host", "127.0.0.1", "--port", str(port), "--threads", "1"]
    with subprocess.Popen(COMMAND + arguments, stderr=subprocess.PIPE, text=True) as process:
        try:
            until(lambda: reachable(port), "the port does not open")
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            try:
                process.communicate(timeout=PATIENCE_SEC)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def reachable(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running() as (_, address):
        yield address


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as sdk:
        yield sdk


def post(url: str, **fields: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/embeddings", json={"model": MODEL, "input": "one", **fields}, timeout=60)


def dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))


def test_related_sentences_score_higher_than_unrelated_ones(client: openai.OpenAI) -> None:
    pairs = [
        ("The cat sleeps on the sofa.", "A kitten is napping on the couch."),
        ("The central bank raised interest rates.", "Borrowing became more expensive after the decision."),
        ("How do I reset my password?", "I forgot my login credentials."),
        ("The server listens on port 443.", "HTTPS connections arrive at the host."),
    ]
    texts = [text for pair in pairs for text in pair]
    vectors = [item.embedding for item in client.embeddings.create(model=MODEL, input=texts).data]
    for index in range(0, len(texts), 2):
        related = dot(vectors[index], vectors[index + 1])
        others = [dot(vectors[index], vectors[other]) for other in range(len(texts)) if other // 2 != index // 2]
        assert related > max(others) + 0.1


def test_vectors_have_length_one_and_keep_their_order_whatever_their_batch(client: openai.OpenAI) -> None:
    texts = [LONG, "short", "a sentence of middle length, with a comma", LONG[:300], "Straße, 東京 and 🙂"]
    together = client.embeddings.create(model=MODEL, input=texts)
    assert [item.index for item in together.data] == list(range(len(texts)))
    assert together.model == MODEL
    for text, item in zip(texts, together.data, strict=True):
        alone = client.embeddings.create(model=MODEL, input=text).data[0].embedding
        assert len(item.embedding) == 384
        assert dot(item.embedding, item.embedding) == pytest.approx(1, abs=1e-5)
        assert item.embedding == pytest.approx(alone, abs=1e-5)


def test_float_and_base64_hold_the_same_numbers(url: str) -> None:
    as_float = post(url, encoding_format="float", user="someone", dimensions=384).json()["data"][0]["embedding"]
    packed = post(url, encoding_format="base64").json()["data"][0]["embedding"]
    assert as_float == pytest.approx(struct.unpack("<384f", base64.b64decode(packed)), abs=1e-7)
    assert post(url).json()["data"][0]["embedding"] == as_float


def test_usage_counts_the_tokens_and_cut_texts_are_reported(url: str) -> None:
    # [CLS] hello world ! [SEP] and [CLS] em ##bed ##ding ##s [SEP]
    answer = post(url, input=["Hello world!", "embeddings"])
    assert answer.json()["usage"] == {"prompt_tokens": 11, "total_tokens": 11}
    assert "x-truncated-inputs" not in answer.headers
    cut = post(url, input=["Hello world!", LONG])
    assert cut.json()["usage"]["prompt_tokens"] == 5 + 256
    assert cut.headers["x-truncated-inputs"] == "1"


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError, match=MODEL):
        client.models.retrieve("text-embedding-3-small")
    with pytest.raises(openai.NotFoundError, match=MODEL) as refused:
        client.embeddings.create(model="text-embedding-3-small", input="one")
    assert (refused.value.param, refused.value.code) == ("model", "model_not_found")


def test_refusals_are_openai_errors(url: str) -> None:
    too_large = b" " * (MAX_BODY_BYTES + 1)
    for method, path, body, status, code in (
        ("POST", "/v1/embeddings", b"[]", 400, "invalid_json"),
        ("POST", "/v1/embeddings", too_large, 413, "request_too_large"),
        ("GET", "/v1/embeddings", b"", 405, "unknown_route"),
        ("POST", "/v1/chat/completions", b"", 404, "unknown_route"),
    ):
        answer = httpx.request(method, url + path, content=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_health(url: str) -> None:
    for path in ("/health", "/readyz"):
        assert httpx.get(url + path).json() == {"ok": True}


def begin(url: str, body: bytes) -> socket.socket:
    """A connection whose request has reached its handler, which now waits for `body`."""
    connection = connect(int(url.rpartition(":")[2]))
    head = f"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode())
    assert read_until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
    return connection


def test_one_request_too_many_is_told_when_to_come_back(url: str) -> None:
    with ExitStack() as held:
        for _ in range(MAX_REQUESTS):
            held.enter_context(begin(url, b"{}"))
        refused = post(url)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert httpx.get(f"{url}/health").status_code == 200
    until(lambda: post(url).status_code == 200, "no place is free again")


def test_requests_take_turns(url: str) -> None:
    """A short text is answered while one request of about 100 s of work is under way."""
    body = json.dumps({"model": MODEL, "input": [LONG] * MAX_TEXTS}).encode()
    with begin(url, body) as connection:
        connection.sendall(body)
        assert post(url).status_code == 200
        connection.settimeout(0)
        with pytest.raises(BlockingIOError):
            connection.recv(1)


def test_a_stop_lets_running_requests_end() -> None:
    body = json.dumps({"model": MODEL, "input": [LONG] * 8, "encoding_format": "base64"}).encode()
    with running() as (process, url), begin(url, body) as connection:
        process.terminate()
        connection.sendall(body)
        answer = read_to_end(connection)
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert answer.count(b'"object":"embedding"') == 8
        assert process.wait(PATIENCE_SEC) == 0


def test_a_taken_port_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = subprocess.run([*COMMAND, "--host", "127.0.0.1", "--port", str(port)], capture_output=True, check=False)
    expected = f"gateway-embed: cannot listen on 127.0.0.1 port {port}: Address already in use; choose another --port"
    assert (done.returncode, done.stderr.decode().splitlines()) == (1, [expected])
