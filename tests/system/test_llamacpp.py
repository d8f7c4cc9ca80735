"""What a backend of protocol `llamacpp` is asked: counts of tokens that decide the route, a named tool in its words."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from gateway.backends import tokenizer
from gateway.backends.slots import Backend
from gateway.backends.tokenizer import COUNTED_MAX_BYTES, count

from tests.support import scripted
from tests.support.chat_script import HANG, ChatScript
from tests.support.gateways import Gateway, gateway, write_files
from tests.support.registries import record, registry
from tests.support.scripted import cancelled
from tests.support.sockets import send
from tests.support.waiting import until_async
from tests.support.wire import JSON, framed

HI = [{"role": "user", "content": "Hi"}]
CHAT, COUNT, TOKENIZE = "/v1/chat/completions", "/v1/chat/completions/input_tokens", "/tokenize"

# The question alone.


@asynccontextmanager
async def asking() -> AsyncIterator[tuple[scripted.Backend, Backend, asyncio.Task[int | None]]]:
    """A server, the backend that it is, and a count that was begun; at the end no connection may be left."""
    async with scripted.backend() as server:
        url = f"http://127.0.0.1:{server.port}/v1"
        (backend,) = registry(a=record(1, base_url=url, protocol="llamacpp", api_key="k")).backends
        yield server, backend, asyncio.create_task(count(backend, "m", {"messages": HI}))
        await until_async(lambda: backend.pool.open_connections == 0)


@pytest.mark.parametrize(
    ("answer", "tokens"),
    [
        (framed(JSON, b'{"input_tokens":12}'), 12),
        (framed(JSON, b'{"input_tokens":12}', status="404 Not Found"), None),
        (framed(JSON, b'{"input_tokens":12%b}' % (b" " * 10_000)), None),
        (framed(JSON, b'{"input_tokens":true}'), None),
        (b"\x00 nonsense\r\n\r\n", None),
        (b"", None),
    ],
)
async def test_a_count_or_none(answer: bytes, tokens: int | None) -> None:
    async with asking() as (server, backend, counting):
        peer = await server.accept()
        head = (await peer.request()).partition(b"\r\n\r\n")[0]
        assert b"Authorization: Bearer k" in head
        assert backend.slots["chat"].inflight == 0
        await peer.offer(answer)
        peer.close()
        assert await counting == tokens
        await backend.pool.close()


@pytest.mark.parametrize("is_slow", [True, False])
async def test_a_count_that_nobody_waits_for_ends(monkeypatch: pytest.MonkeyPatch, is_slow: bool) -> None:
    if is_slow:
        monkeypatch.setattr(tokenizer, "TIMEOUT_SEC", 0.05)
    async with asking() as (server, _, counting):
        peer = await server.accept()
        if is_slow:
            assert await counting is None
        else:
            await peer.request()
            await cancelled(counting)
        await peer.gone()


async def test_what_is_too_large_or_goes_nowhere_is_not_counted() -> None:
    async with asking() as (server, backend, counting):
        await cancelled(counting)
        assert await count(backend, "m", {"prompt": "x" * COUNTED_MAX_BYTES}) is None
        assert server.none_waits
    assert await count(backend, "m", {"messages": HI}) is None
    assert backend.ready, "the chat itself may yet find it"


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


def said(text: str, **fields: Any) -> dict[str, Any]:
    return {**fields, "messages": [{"role": "user", "content": text}]}


LONG, FAST = "policy:long_context->alias:long", "policy:fast->alias:fast"
NEAR, FAR = "word " * 400, "word " * 4_000


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/messages", "/v1/responses"])
@pytest.mark.parametrize(("text", "tokens", "reason"), [(NEAR, 2_000, LONG), (NEAR, 1_999, FAST), (FAR, 1_999, FAST)])
def test_what_is_counted_decides(
    routed: Gateway, script: ChatScript, path: str, text: str, tokens: int, reason: str
) -> None:
    script.paths |= {COUNT: lambda _: {"input_tokens": tokens}, TOKENIZE: lambda _: {"tokens": [1] * tokens}}
    others = {"/v1/completions": {"prompt": text}, "/v1/responses": {"input": text}}
    body = others.get(path) or said(text, model="auto", max_tokens=9)
    answer = routed.client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-router-reason"] == reason
    counting, answering = script.seen
    assert counting.path == (TOKENIZE if path == "/v1/completions" else COUNT)
    assert answering.json["model"] == "echo"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (said("Hi"), FAST),
        (said("x" * 900), FAST),
        (said("x" * 9_000, model="fast"), "alias:model"),
        (said("x" * 9_000, model="echo"), "pinned:model"),
    ],
)
def test_nobody_is_asked_where_it_is_certain(
    routed: Gateway, script: ChatScript, body: dict[str, Any], reason: str
) -> None:
    assert routed.client.post(CHAT, json=body).headers["x-router-reason"] == reason
    assert [seen.path for seen in script.seen] == [CHAT]


@pytest.mark.parametrize(("words", "reason"), [(1_600, LONG), (1_599, FAST)])
def test_a_tokenizer_that_fails_costs_the_chat_nothing(
    routed: Gateway, script: ChatScript, words: int, reason: str
) -> None:
    """A word and a blank are 5 characters, a token 4: the context is 1,600 words."""
    answer = routed.client.post(CHAT, json=said("word " * words))
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-router-reason"] == reason
    assert [seen.path for seen in script.seen] == [COUNT, CHAT]


def test_clients_leaving_ends_the_question(routed: Gateway, script: ChatScript) -> None:
    script.paths[COUNT] = lambda _: HANG
    with send(routed.port, CHAT, said(NEAR)):
        script.wait_for(1)
    (asked,) = script.wait_for(1, left=True)
    assert asked.path == COUNT
    assert routed.log_entry(lambda entry: entry["status"] == 499)["abort_reason"] == "client_disconnected"
    assert len(script.seen) == 1


PARAMETERS = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 10**30}}}
FUNCTIONS = [{"type": "function", "function": {"name": name, "parameters": PARAMETERS}} for name in ("f", "g")]
NAMED = {"tools": FUNCTIONS, "tool_choice": {"type": "function", "function": {"name": "g"}}}
BLOCKS = {
    "messages": HI,
    "tools": [{"name": name, "input_schema": PARAMETERS} for name in ("f", "g")],
    "tool_choice": {"type": "tool", "name": "g"},
}
ITEMS = {
    "input": "Hi",
    "tools": [{"type": "function", "name": name, "parameters": PARAMETERS, "strict": False} for name in ("f", "g")],
    "tool_choice": {"type": "function", "name": "g"},
}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": HI, **NAMED}),
        (CHAT, {"messages": HI, **NAMED, "stream": True}),
        ("/v1/messages", {**BLOCKS, "max_tokens": 9}),
        ("/v1/messages/count_tokens", BLOCKS),
        ("/v1/responses", ITEMS),
    ],
)
def test_the_named_function_alone_is_required(
    routed: Gateway, script: ChatScript, path: str, body: dict[str, Any]
) -> None:
    script.paths[COUNT] = lambda _: {"input_tokens": 12}
    answer = routed.client.post(path, json={"model": "echo", **body})
    assert answer.status_code == 200, answer.text
    (sent,) = script.requests
    assert sent["tool_choice"] == "required"
    (tool,) = sent["tools"]
    assert (tool["function"]["name"], tool["function"]["parameters"]) == ("g", PARAMETERS)
    assert sent["messages"] == HI
