"""What llama.cpp's server is asked, and its counts of tokens, without a socket."""

from __future__ import annotations

import json
from typing import Any

import pytest
from gateway.backends.protocols.base import AnswerError
from gateway.backends.protocols.llamacpp import chat, count_request, counted
from gateway.errors import ApiError
from gateway.routing.body import dump

HI = [{"role": "user", "content": "Hi"}]
CHAT, COMPLETION = {"messages": HI, "stream": True}, {"prompt": "Hi", "n": 2}
TOOLS = [{"type": "function", "function": {"name": name}} for name in ("f", "g")]


@pytest.mark.parametrize(
    ("request_", "prefix", "path", "sent"),
    [
        (CHAT, b"/v1", b"/v1/chat/completions/input_tokens", {"messages": HI}),
        (CHAT, b"/a", b"/a/chat/completions/input_tokens", {"messages": HI}),
        (COMPLETION, b"/v1", b"/tokenize", {"content": "Hi", "add_special": True}),
        (COMPLETION, b"/a/v1", b"/a/tokenize", {"content": "Hi", "add_special": True}),
    ],
)
def test_request_for_a_count(request_: dict[str, Any], prefix: bytes, path: bytes, sent: dict[str, Any]) -> None:
    asked = count_request("m", request_, prefix)
    assert (asked.path, json.loads(asked.body)) == (path, {"model": "m", **sent})


@pytest.mark.parametrize(
    ("request_", "answer", "tokens"),
    [
        (CHAT, b'{"input_tokens": 12}', 12),
        (CHAT, b'{"input_tokens": 0}', 0),
        (COMPLETION, b'{"tokens":[1,22,333]}', 3),
        (COMPLETION, b'{ "tokens": [ 1 ] }\n', 1),
    ],
)
def test_count(request_: dict[str, Any], answer: bytes, tokens: int) -> None:
    assert counted(request_, answer) == tokens


@pytest.mark.parametrize(
    ("request_", "answer"),
    [
        *((CHAT, answer) for answer in (b"<html>", b"[12]", b'{"tokens":[1,2]}')),
        *((CHAT, b'{"input_tokens":%b}' % count) for count in (b"true", b"-1", b'"12"')),
        (COMPLETION, b'{"input_tokens":12}'),
        *((COMPLETION, b'{"tokens":%b' % rest) for rest in (b'["a","b"]}', b"[1,2", b'[1,2],"error":1}')),
    ],
)
def test_malformed_count(request_: dict[str, Any], answer: bytes) -> None:
    with pytest.raises(AnswerError):
        counted(request_, answer)


@pytest.mark.parametrize("choice", ["auto", "required", "none", None])
def test_choice_of_tools_in_a_word_goes_on_as_it_came(choice: str | None) -> None:
    body = b'{ "tool_choice": ...'
    assert chat({"tool_choice": choice}, body) is body


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_choice": {"type": "function", "function": {"name": "h"}}},
        {"tool_choice": {"type": "function", "function": "g"}},
        {"tool_choice": {"type": "custom", "custom": {"name": "g"}}},
        {"tool_choice": {}},
        {"tools": None},
        {"tools": [{"function": "g"}, {}]},
    ],
)
def test_choice_that_names_no_tool_is_refused(fields: dict[str, Any]) -> None:
    request = {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "g"}}}
    assert json.loads(chat(request, dump(request))) == {"tools": TOOLS[1:], "tool_choice": "required"}
    with pytest.raises(ApiError) as refused:
        chat(request | fields, dump(request | fields))
    assert (refused.value.status, refused.value.param) == (400, "tool_choice")
