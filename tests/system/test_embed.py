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
from gateway.shims.embed import BATCH_TOKENS, MAX_BODY_BYTES, MAX_REQUESTS, MAX_TEXTS, batches
from hypothesis import given
from hypothesis import strategies as st

from tests.support.ports import free_ports
from tests.support.sockets import connect, read_to_end, read_until
from tests.support.waiting import PATIENCE_SEC, until

MODEL = "all-minilm-l6-v2"
LONG = "a sentence that goes on and on about nothing in particular, " * 30
COMMAND = [sys.executable, "-m", "gateway.shims.embed"]
STUBBORN = "from gateway.shims import embed; embed.STOP_TIMEOUT_SEC = 3600; embed.main()"


@contextmanager
def running(command: list[str] = COMMAND) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process, ready, and its address; stopped by SIGTERM if it still runs."""
    (port,) = free_ports(1)
    arguments = ["--host", "127.0.0.1", "--port", str(port), "--threads", "1"]
    with subprocess.Popen(command + arguments, stderr=subprocess.PIPE, text=True) as process:
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


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["one", ""]}, "input"),
        ({"input": ["one", None]}, "input"),
        ({"input": [15339, 1917]}, "input"),
        ({"input": [[15339, 1917]]}, "input"),
        ({"input": {"text": "one"}}, "input"),
        ({"input": ["one"] * (MAX_TEXTS + 1)}, "input"),
        ({"model": ""}, "model"),
        ({"model": 7}, "model"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"encoding_format": ["float"]}, "encoding_format"),
        ({"dimensions": 256}, "dimensions"),
        ({"dimensions": "384"}, "dimensions"),
        ({"user": 7}, "user"),
        ({"input_type": "query"}, "input_type"),
    ],
)
def test_a_wrong_field_is_named(url: str, fields: dict[str, Any], param: str) -> None:
    answer = post(url, **fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["type"]) == (400, param, "invalid_request_error")
    assert param in error["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"text"', b'{"input": "\\ud800"}', b"\xff"])
def test_what_is_not_a_json_object_is_refused(url: str, body: bytes) -> None:
    answer = httpx.post(f"{url}/v1/embeddings", content=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")


def test_a_body_that_is_too_large_is_refused(url: str) -> None:
    answer = httpx.post(f"{url}/v1/embeddings", content=b" " * (MAX_BODY_BYTES + 1))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    assert str(MAX_BODY_BYTES) in answer.json()["error"]["message"]


def test_other_routes_and_methods_get_openai_errors(url: str) -> None:
    for method, path, status in [("GET", "/v1/embeddings", 405), ("POST", "/v1/chat/completions", 404)]:
        answer = httpx.request(method, url + path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, "unknown_route")


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


def test_work_ends_when_its_client_leaves() -> None:
    """About 100 s of work; were it still wanted, SIGTERM would wait for it."""
    body = json.dumps({"model": MODEL, "input": [LONG] * MAX_TEXTS}).encode()
    with running([sys.executable, "-c", STUBBORN]) as (process, url):
        with begin(url, body) as connection:
            connection.sendall(body)
            assert post(url).status_code == 200
        assert post(url).status_code == 200
        process.terminate()
        assert process.wait(PATIENCE_SEC) == 0


def test_a_stop_lets_running_requests_end() -> None:
    body = json.dumps({"model": MODEL, "input": [LONG] * 8, "encoding_format": "base64"}).encode()
    with running() as (process, url), begin(url, body) as connection:
        process.terminate()
        connection.sendall(body)
        answer = read_to_end(connection)
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert answer.count(b'"object":"embedding"') == 8
        assert process.wait(PATIENCE_SEC) == 0


def refusal(arguments: list[str], command: list[str] = COMMAND) -> tuple[int, str]:
    done = subprocess.run(command + arguments, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr


def test_a_taken_port_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, said = refusal(["--host", "127.0.0.1", "--port", str(port)])
    assert code == 1
    expected = f"gateway-embed: cannot listen on 127.0.0.1 port {port}: Address already in use; choose another --port"
    assert said.splitlines() == [expected]


@pytest.mark.parametrize("name", ["numpy", "onnxruntime", "tokenizers"])
def test_a_missing_extra_is_one_line(name: str) -> None:
    hide = f"import sys; sys.modules[{name!r}] = None; from gateway.shims.embed import main; main()"
    arguments = ["--host", "127.0.0.1", "--port", str(free_ports(1)[0])]
    code, said = refusal(arguments, [sys.executable, "-c", hide])
    assert code == 1
    assert len(said.splitlines()) == 1
    assert "install the gateway with its extra `embed`" in said


@pytest.mark.parametrize("arguments", [["--port", "70000"], ["--port", "http"], ["--port", "1", "--threads", "0"], []])
def test_wrong_arguments_are_refused(arguments: list[str]) -> None:
    code, said = refusal(["--host", "127.0.0.1", *arguments])
    assert code == 2
    assert "Traceback" not in said


@given(st.lists(st.integers(2, 256)), st.integers(1, 600))
def test_batches_hold_every_text_once_within_the_budget(lengths: list[int], budget: int) -> None:
    cut = batches(lengths, budget)
    assert sorted(index for batch in cut for index in batch) == list(range(len(lengths)))
    for batch in cut:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= budget


def test_short_texts_share_a_batch() -> None:
    assert len(batches([16] * 64, BATCH_TOKENS)) == 4
