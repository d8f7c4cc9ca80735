"""Tokens are counted by the backend's tokenizer where that decides the route; where it does not tell, estimated."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from gateway.backends import tokenizer
from gateway.backends.slots import Backend
from gateway.backends.tokenizer import COUNTED_MAX_BYTES, count

from tests.support import scripted
from tests.support.chat_script import ChatScript, chat_script
from tests.support.gateways import Gateway, gateway, write_files
from tests.support.registries import record, registry
from tests.support.scripted import cancelled
from tests.support.sockets import send
from tests.support.waiting import until_async
from tests.support.wire import JSON, framed

HI = [{"role": "user", "content": "Hi"}]
CHAT, COMPLETION = {"messages": HI, "stream": True}, {"prompt": "Hi", "n": 2}
CHAT_PATH = "/v1/chat/completions/input_tokens"


def backend_of(server: scripted.Backend, prefix: str = "/v1") -> Backend:
    url = f"http://127.0.0.1:{server.port}{prefix}"
    (backend,) = registry(a=record(1, base_url=url, protocol="llamacpp", api_key="k")).backends
    return backend


async def counted(request: dict[str, Any], answer: bytes, prefix: str = "/v1") -> tuple[int | None, bytes]:
    """What is counted, and the request that was sent for it, where the server answers so."""
    async with scripted.backend() as server:
        backend = backend_of(server, prefix)
        task = asyncio.create_task(count(backend, "m", request))
        peer = await server.accept()
        asked = await peer.request()
        assert backend.slots["chat"].inflight == 0
        await peer.offer(answer)
        peer.close()
        tokens = await task
        await backend.pool.close()
        return tokens, asked


@pytest.mark.parametrize(
    ("request_", "prefix", "target", "sent", "answer", "expected"),
    [
        (CHAT, "/v1", CHAT_PATH, {"messages": HI}, b'{"input_tokens": 12}', 12),
        (CHAT, "/a", "/a/chat/completions/input_tokens", {"messages": HI}, b'{"input_tokens": 0}', 0),
        (COMPLETION, "/v1", "/tokenize", {"content": "Hi", "add_special": True}, b'{"tokens":[1,22,333]}', 3),
        (COMPLETION, "/a/v1", "/a/tokenize", {"content": "Hi", "add_special": True}, b'{ "tokens": [ 1 ] }\n', 1),
    ],
)
async def test_what_is_asked_and_told(
    request_: dict[str, Any], prefix: str, target: str, sent: dict[str, Any], answer: bytes, expected: int
) -> None:
    tokens, asked = await counted(request_, framed(JSON, answer), prefix)
    assert tokens == expected
    head, _, body = asked.partition(b"\r\n\r\n")
    assert head.startswith(f"POST {target} HTTP/1.1\r\n".encode())
    assert b"Authorization: Bearer k" in head
    assert json.loads(body) == {"model": "m", **sent}


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        (CHAT, framed(JSON, b'{"error":"no"}', status="500 Oops")),
        (CHAT, framed(JSON, b'{"input_tokens":12}', status="404 Not Found")),
        (CHAT, framed(JSON, b"<html>")),
        (CHAT, framed(JSON, b"[12]")),
        (CHAT, framed(JSON, b'{"tokens":[1,2]}')),
        (CHAT, framed(JSON, b'{"input_tokens":true}')),
        (CHAT, framed(JSON, b'{"input_tokens":-1}')),
        (CHAT, framed(JSON, b'{"input_tokens":"12"}')),
        (CHAT, framed(JSON, b'{"input_tokens":12%b}' % (b" " * 10_000))),
        (CHAT, b"\x00 nonsense\r\n\r\n"),
        (CHAT, b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{"),
        (CHAT, b""),
        (COMPLETION, framed(JSON, b'{"input_tokens":12}')),
        (COMPLETION, framed(JSON, b'{"tokens":["a","b"]}')),
        (COMPLETION, framed(JSON, b'{"tokens":[1,2')),
        (COMPLETION, framed(JSON, b'{"error":1,"tokens":[1,2]}')),
    ],
)
async def test_an_answer_that_is_none_counts_nothing(request_: dict[str, Any], answer: bytes) -> None:
    tokens, _ = await counted(request_, answer)
    assert tokens is None


async def test_a_server_that_is_not_there_counts_nothing() -> None:
    async with scripted.backend() as server:
        backend = backend_of(server)
    assert await count(backend, "m", CHAT) is None
    assert backend.ready, "the chat itself may yet find it"


async def test_a_server_that_is_slow_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "TIMEOUT_SEC", 0.05)
    async with scripted.backend() as server:
        backend = backend_of(server)
        task = asyncio.create_task(count(backend, "m", CHAT))
        peer = await server.accept()
        assert await task is None
        await peer.gone()
        await until_async(lambda: backend.pool.open_connections == 0)


async def test_who_leaves_ends_the_count() -> None:
    async with scripted.backend() as server:
        backend = backend_of(server)
        task = asyncio.create_task(count(backend, "m", CHAT))
        peer = await server.accept()
        await peer.request()
        await cancelled(task)
        await peer.gone()
        await until_async(lambda: backend.pool.open_connections == 0)


async def test_what_is_too_large_is_not_sent() -> None:
    async with scripted.backend() as server:
        assert await count(backend_of(server), "m", {"prompt": "x" * COUNTED_MAX_BYTES}) is None
        assert server.none_waits


# The whole way: an alias `long` with a context of 2,000 tokens, and a server that counts as it is told.


@pytest.fixture(scope="module")
def routed(tmp_path_factory: pytest.TempPathFactory, script: ChatScript) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("counted")
    write_files(home, script.url, protocol="llamacpp")
    long = {"backend": "test", "model": "echo", "context": 2_000}
    (home / "model_aliases.json").write_text(json.dumps({"default": "test:echo", "fast": "test:echo", "long": long}))
    with gateway(home, None, ROUTER_ENABLE_POLICY="true") as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_seen(script: ChatScript) -> None:
    script.seen.clear()
    script.paths = {"/v1/completions": lambda _: {"choices": [{"index": 0, "text": "Hello"}]}}


def asking(path: str, text: str) -> dict[str, Any]:
    """A request of each route that is a chat or a completion, for no model."""
    messages = [{"role": "user", "content": text}]
    requests: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"messages": messages},
        "/v1/completions": {"prompt": text},
        "/v1/messages": {"model": "auto", "max_tokens": 9, "messages": messages},
        "/v1/responses": {"input": text},
    }
    return requests[path]


LONG, FAST = "policy:long_context->alias:long", "policy:fast->alias:fast"
Tell = Callable[[int], dict[str, Any]]
TOLD: dict[str, tuple[str, Tell]] = {
    path: (CHAT_PATH, lambda tokens: {"input_tokens": tokens})
    for path in ("/v1/chat/completions", "/v1/messages", "/v1/responses")
}
TOLD["/v1/completions"] = ("/tokenize", lambda tokens: {"tokens": [1] * tokens})


@pytest.mark.parametrize("path", TOLD)
@pytest.mark.parametrize(
    ("text", "tokens", "reason"),
    [("word " * 400, 2_000, LONG), ("word " * 400, 1_999, FAST), ("word " * 4_000, 1_999, FAST)],
)
def test_what_is_counted_decides(
    routed: Gateway, script: ChatScript, path: str, text: str, tokens: int, reason: str
) -> None:
    counter, tell = TOLD[path]
    script.paths[counter] = lambda _: tell(tokens)
    answer = routed.client.post(path, json=asking(path, text))
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-router-reason"] == reason
    counting, answering = script.seen
    assert (counting.path, answering.json["model"]) == (counter, "echo")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"messages": HI}, FAST),
        ({"messages": [{"role": "user", "content": "x" * 900}]}, FAST),
        ({"model": "fast", "messages": [{"role": "user", "content": "x" * 9_000}]}, "alias:model"),
        ({"model": "echo", "messages": [{"role": "user", "content": "x" * 9_000}]}, "pinned:model"),
    ],
)
def test_nobody_is_asked_where_it_is_certain(
    routed: Gateway, script: ChatScript, fields: dict[str, Any], reason: str
) -> None:
    answer = routed.client.post("/v1/chat/completions", json=fields)
    assert answer.headers["x-router-reason"] == reason
    assert [seen.path for seen in script.seen] == ["/v1/chat/completions"]


@pytest.mark.parametrize(("words", "reason"), [(1_600, LONG), (1_599, FAST)])
def test_a_tokenizer_that_fails_costs_the_chat_nothing(
    routed: Gateway, script: ChatScript, words: int, reason: str
) -> None:
    """A word and a blank are 5 characters, a token 4: the context is 1,600 words."""
    answer = routed.client.post("/v1/chat/completions", json=asking("/v1/chat/completions", "word " * words))
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-router-reason"] == reason
    assert [seen.path for seen in script.seen] == [CHAT_PATH, "/v1/chat/completions"]


def test_clients_leaving_ends_the_question(tmp_path: Path) -> None:
    with chat_script() as script:
        write_files(tmp_path, script.url, protocol="llamacpp")
        long = {"backend": "test", "model": "hang", "context": 2_000}
        (tmp_path / "model_aliases.json").write_text(json.dumps({"default": "test:echo", "long": long}))
        with gateway(tmp_path, None, ROUTER_ENABLE_POLICY="true") as running:
            body = asking("/v1/chat/completions", "word " * 400)
            with send(running.port, "/v1/chat/completions", body):
                script.wait_for(1)
            (asked,) = script.wait_for(1, left=True)
            assert asked.path == CHAT_PATH
            assert running.log_entry(lambda entry: entry["status"] == 499)["abort_reason"] == "client_disconnected"
            assert len(script.seen) == 1
