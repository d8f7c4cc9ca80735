"""What a backend of protocol `llamacpp` is sent: an object `tool_choice` in words that llama.cpp's server knows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.chat_script import ChatScript
from tests.support.gateways import Gateway, gateway, write_files

PARAMETERS = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 10**30}}}
FUNCTIONS = [{"type": "function", "function": {"name": name, "parameters": PARAMETERS}} for name in ("f", "g")]
HELLO = [{"role": "user", "content": "Hi"}]
CHAT = {"model": "echo", "messages": HELLO, "tools": FUNCTIONS}
NAMED = {"type": "function", "function": {"name": "g"}}
MESSAGE = {
    "model": "echo",
    "messages": HELLO,
    "tools": [{"name": name, "input_schema": PARAMETERS} for name in ("f", "g")],
    "tool_choice": {"type": "tool", "name": "g"},
}
RESPONSE = {
    "model": "echo",
    "input": "Hi",
    "tools": [{"type": "function", "name": name, "parameters": PARAMETERS, "strict": False} for name in ("f", "g")],
    "tool_choice": {"type": "function", "name": "g"},
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, script: ChatScript) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("llamacpp")
    script.paths["/v1/chat/completions/input_tokens"] = lambda _: {"input_tokens": 12}
    write_files(home, script.url, protocol="llamacpp")
    with gateway(home) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_seen(script: ChatScript) -> None:
    script.seen.clear()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {**CHAT, "tool_choice": NAMED}),
        ("/v1/chat/completions", {**CHAT, "tool_choice": NAMED, "stream": True}),
        ("/v1/messages", {**MESSAGE, "max_tokens": 9}),
        ("/v1/messages/count_tokens", MESSAGE),
        ("/v1/responses", RESPONSE),
    ],
)
def test_the_named_function_alone_is_required(
    served: Gateway, script: ChatScript, path: str, body: dict[str, Any]
) -> None:
    answer = served.client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    (sent,) = script.requests
    assert sent["tool_choice"] == "required"
    (tool,) = sent["tools"]
    assert (tool["function"]["name"], tool["function"]["parameters"]) == ("g", PARAMETERS)
    assert sent["messages"] == HELLO


@pytest.mark.parametrize("choice", ["auto", "required", "none", None])
def test_other_choices_go_through_as_they_came(served: Gateway, script: ChatScript, choice: str | None) -> None:
    sent = served.client.build_request("POST", "/v1/chat/completions", json={**CHAT, "tool_choice": choice})
    assert served.client.send(sent).status_code == 200
    assert script.seen[0].body == sent.content


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_choice": {"type": "function", "function": {"name": "h"}}},
        {"tool_choice": {"type": "function", "function": "g"}},
        {"tool_choice": {"type": "custom", "custom": {"name": "g"}}},
        {"tool_choice": {}},
        {"tool_choice": NAMED, "tools": None},
        {"tool_choice": NAMED, "tools": [{"function": "g"}, {}]},
    ],
)
def test_a_choice_that_cannot_be_said_is_refused(served: Gateway, script: ChatScript, fields: dict[str, Any]) -> None:
    answer = served.client.post("/v1/chat/completions", json={**CHAT, **fields})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "tool_choice")
    assert script.seen == []
