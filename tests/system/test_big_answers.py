"""Whatever a backend sends, no step of the event loop takes long: others are answered meanwhile.

Steps are told in CPU time and compared with a job of the test's own, so that neither a busy nor a slow machine matters.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.gateways import Gateway, gateway, write_files
from tests.support.wire import EVENTS, JSON, NDJSON, Script, Wire, by_ollama, chunked, framed

# For a gateway on asyncio's own loop: writes the longest step since the file was removed.
WATCH = """
import asyncio, os, time, uvloop
from asyncio.events import Handle

longest, run = 0.0, Handle._run

def timed(self):
    global longest
    began = time.thread_time()
    run(self)
    took = time.thread_time() - began
    if not os.path.exists(os.environ["STEPS"]):
        longest = 0.0
    if took > longest:
        longest = took
        with open(os.environ["STEPS"] + "~", "w") as file:
            file.write(str(took))
        os.replace(file.name, os.environ["STEPS"])

Handle._run = timed
uvloop.run = asyncio.run
"""
SIZE = 400_000
TEXTS = 250
CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
REQUESTS: dict[str, dict[str, Any]] = {
    CHAT: {"messages": [{"role": "user", "content": "Hi"}]},
    RESPONSES: {"input": "Hi", "store": False},
    MESSAGES: {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5},
    "/v1/embeddings": {"input": ["a"] * TEXTS},
    "/v1/rerank": {"query": "a", "documents": ["b"] * (TEXTS - 1)},
    "/v1/audio/speech": {"input": "Hi"},
    "/v1/images/generations": {"prompt": "a"},
}


@pytest.fixture(scope="module")
def unit() -> float:
    """CPU seconds of what a step may take: 100 ms where this was written."""

    def once() -> float:
        began = time.thread_time()
        sum(number & 3 for number in range(3_000_000))
        return time.thread_time() - began

    return min(once() for _ in range(3))


def many(unit: bytes, size: int = SIZE) -> bytes:
    return unit * (size // len(unit))


def delta(content: bytes) -> bytes:
    return b'data: {"choices":[{"index":0,"delta":%b}]}\n\n' % content


def call(index: int, arguments: bytes) -> bytes:
    function = b'{"name":"f","arguments":"%b"}' % arguments
    return b'{"tool_calls":[{"index":%d,"id":"c%d","function":%b}]}' % (index, index, function)


FIRST = delta(call(0, b'{\\"a\\":{')) + delta(call(1, b""))
STREAMS = {
    "blank lines": many(b"\n"),
    "carriage returns": many(b"\r"),
    "comments": many(b":\n\n"),
    "empty data": many(b"data:\n\n"),
    "empty deltas": many(delta(b"{}")),
    "thoughts and words": many(delta(b'{"content":"a","reasoning":"b"}')),
    "usage all along": many(b'data:{"usage":{}}\n\n'),
    "one of many has the usage": b'data:{"usage":{}}\n\n' + many(b":\n\n"),
    "arguments while a call waits": FIRST + many(delta(b'{"tool_calls":[{"index":0,"function":{"arguments":"{}"}}]}')),
    "far indexes": b"".join(delta(call(2**31 + at, b"{}")) for at in range(900)),
    "calls without an index": many(delta(b'{"tool_calls":[{"function":{"name":"f","arguments":"{"}}]}')),
    "calls in a delta": delta(b'{"tool_calls":[%b{}]}' % many(b"{},")),
    "marks in arguments": FIRST + delta(call(0, many(b'a\\"'))),
    "data over many lines": many(b"data:\n", 4 * SIZE) + b"\n",
    "lists in an event": b'data:{"usage":{},"a":[' + many(b"[],", 5 * SIZE) + b"0]}\n\n",
}


def of_lists(members: bytes) -> bytes:
    return b'{"a":[' + many(b"[],", 10 * SIZE) + b"0]," + members + b"}"


VECTOR = b"[" + b",".join([b"-0.0123456789"] * 4096) + b"]"
EMBEDDINGS = b'{"embeddings":[' + b",".join([VECTOR] * TEXTS) + b'],"prompt_eval_count":5}'
OPENAI_EMBEDDINGS = (
    b'{"data":[' + b",".join(b'{"index":%d,"embedding":%b}' % (at, VECTOR) for at in range(TEXTS)) + b'],"error":null}'
)
WHOLE: list[tuple[str, str, bytes, dict[str, Any], int]] = [
    ("test", CHAT, of_lists(b'"usage":{"prompt_tokens":5},"text":"' + many(b"a") + b'"'), {}, 200),
    ("test", CHAT, of_lists(b'"error":null'), {}, 502),
    ("test", CHAT, of_lists(b'"choices":[]'), {"stream": True}, 502),
    ("test", CHAT, b'{"choices":[],"a":%b%b}' % (b"[" * 900, b"]" * 900), {"stream": True}, 502),
    ("test", RESPONSES, of_lists(b'"choices":[]'), {}, 502),
    ("test", MESSAGES, of_lists(b'"choices":[]'), {}, 502),
    ("test", "/v1/embeddings", OPENAI_EMBEDDINGS, {}, 200),
    ("test", "/v1/rerank", OPENAI_EMBEDDINGS, {}, 200),
    ("native", "/v1/embeddings", EMBEDDINGS, {}, 200),
    ("native", "/v1/embeddings", EMBEDDINGS, {"encoding_format": "base64"}, 200),
    ("native", "/v1/rerank", EMBEDDINGS, {}, 200),
    ("native", CHAT, of_lists(b'"message":{},"done":true'), {}, 502),
    ("speech", "/v1/audio/speech", of_lists(b'"audio":"aaaa"'), {}, 502),
    ("speech", "/v1/images/generations", of_lists(b'"data":[]'), {}, 502),
]


class Watched(Gateway):
    steps: Path

    def longest(self) -> float:
        """CPU seconds of the longest step since the last call."""
        self.client.get("/v1/models")  # after which the last step is written
        longest = float(self.steps.read_text()) if self.steps.exists() else 0.0
        self.steps.unlink(missing_ok=True)
        return longest


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, server: Wire) -> Iterator[Watched]:
    home = tmp_path_factory.mktemp("big")
    (home / "sitecustomize.py").write_text(WATCH)
    speech = {"supported_capabilities": ["tts", "images"]}
    write_files(home, server.url, {"native@here": by_ollama(server), "speech@here": speech})
    with gateway(home, PYTHONPATH=str(home), STEPS=str(home / "steps")) as running:
        watched = Watched(**vars(running))
        watched.steps = home / "steps"
        yield watched


def ask(served: Watched, path: str, model: str = "test:echo", **fields: Any) -> httpx.Response:
    return served.client.post(path, json={"model": model, **REQUESTS[path], **fields})


def script(data: bytes, content_type: str = EVENTS, piece: int = 65536) -> Script:
    return Script(chunked(content_type, [data[at : at + piece] for at in range(0, len(data), piece)]))


@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
@pytest.mark.parametrize("name", STREAMS)
def test_no_step_of_a_stream_is_long(served: Watched, server: Wire, path: str, name: str, unit: float) -> None:
    server.script = script(STREAMS[name] + delta(b'{"content":"a"}') + b"data: [DONE]\n\n")
    served.longest()
    answer = ask(served, path, stream=True)
    assert served.longest() < unit
    assert answer.status_code == 200 or (answer.status_code == 502 and path != CHAT)


@pytest.mark.parametrize(
    "line", [b"\n", b'{"message":{}}\n', b'{"message":{"tool_calls":[{"function":{"name":"f"}}]}}\n']
)
@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES])
def test_no_step_of_a_stream_of_lines_is_long(
    served: Watched, server: Wire, path: str, line: bytes, unit: float
) -> None:
    server.script = script(many(line) + b'{"message":{},"done":true}\n', NDJSON)
    served.longest()
    assert ask(served, path, "native:echo", stream=True).status_code in (200, 502)
    assert served.longest() < unit


@pytest.mark.parametrize(("backend", "path", "body", "fields", "status"), WHOLE)
def test_no_step_of_a_whole_answer_is_long(
    served: Watched,
    server: Wire,
    unit: float,
    backend: str,
    path: str,
    body: bytes,
    fields: dict[str, Any],
    status: int,
) -> None:
    server.script = Script((framed(JSON, body),))
    served.longest()
    answer = ask(served, path, f"{backend}:echo", **fields)
    assert answer.status_code == status, answer.text[:300]
    assert served.longest() < unit
