"""Ollama's whole answers in OpenAI's words, without a socket."""

from __future__ import annotations

import base64
import struct
from contextlib import suppress
from typing import Any

import orjson
import pytest
from gateway.backends.protocols.base import AnswerError, embeddings_written
from gateway.backends.protocols.ollama.answer import models
from hypothesis import given

from tests.support.faces.ollama import go_json
from tests.support.ollama_lines import ADAPTER, ANY_JSON, COUNTS, HEAD, LAST, OTHER, TOOL, Json
from tests.support.pieces import ended


def answer(capability: str, line: Json, **fields: Any) -> Json:
    return answered(capability, fields, go_json(line))


def answered(capability: str, request: Json, body: bytes) -> Json:
    if capability != "embeddings":
        return ADAPTER.answer(capability, request, "m", body)
    (content, lists), _ = ended(ADAPTER.embeddings(request, "m", body))
    whole: Json = orjson.loads(ended(embeddings_written(content, lists, request.get("encoding_format")))[0])
    return whole


def test_a_whole_answer_is_openais() -> None:
    message = {"role": "assistant", "content": "Hello", "thinking": "Hm"}
    completion = answer("chat", LAST | {"message": message})
    assert completion.pop("id").startswith("chatcmpl-")
    assert completion.pop("created") > 0
    assert completion == {
        "object": "chat.completion",
        "model": "ollama:m",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12},
    }


def test_a_whole_answer_has_the_calls_of_tools() -> None:
    calls = [
        {"id": "call_a", "function": {"index": 0, "name": "f", "arguments": {"a": 1}}},
        {"function": {"name": "g"}},
    ]
    choice = answer("chat", LAST | {"message": {"role": "assistant", "content": "", "tool_calls": calls}})["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    first, second = choice["message"]["tool_calls"]
    assert first == {"id": "call_a", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    assert second["function"] == {"name": "g", "arguments": "{}"}
    assert second["id"].startswith("call_")


def test_a_tool_that_had_to_be_called_has_been() -> None:
    choice = answer(
        "chat",
        LAST | {"message": {"role": "assistant", "content": '{"a": 1}'}},
        tools=[TOOL, OTHER],
        tool_choice={"type": "function", "function": {"name": "f"}},
    )["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a": 1}'}


def test_no_parallel_calls_when_they_are_not_wanted() -> None:
    calls = [{"function": {"name": "f", "arguments": {}}}, {"function": {"name": "g", "arguments": {}}}]
    message = {"role": "assistant", "content": "", "tool_calls": calls}
    choice = answer("chat", LAST | {"message": message}, parallel_tool_calls=False)["choices"][0]
    assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["f"]


@pytest.mark.parametrize(
    ("counts", "usage"),
    [
        ({}, None),
        ({"eval_count": 5}, None),
        ({"prompt_eval_count": 7}, {"prompt_tokens": 7, "completion_tokens": 0, "total_tokens": 7}),
        ({"prompt_eval_count": 2**63, "eval_count": 2**63}, None),
        ({"prompt_eval_count": "7"}, None),
        ({"prompt_eval_count": True}, None),
    ],
)
def test_usage_is_real_or_absent(counts: Json, usage: Json | None) -> None:
    line = {key: value for key, value in LAST.items() if key not in COUNTS}
    assert answer("chat", line | counts).get("usage") == usage


def test_log_probabilities_are_openais() -> None:
    entries = [{"token": "Hel", "logprob": -0.5, "bytes": [72], "top_logprobs": [{"token": "Hel", "logprob": -0.5}]}]
    chat = answer("chat", LAST | {"logprobs": [*entries, {"token": "lo", "logprob": -1}]})
    assert chat["choices"][0]["logprobs"]["content"] == [
        {
            "token": "Hel",
            "logprob": -0.5,
            "bytes": [72],
            "top_logprobs": [{"token": "Hel", "logprob": -0.5, "bytes": None}],
        },
        {"token": "lo", "logprob": -1, "bytes": None, "top_logprobs": []},
    ]
    line = {**HEAD, "response": "Hello", "done": True, "logprobs": [*entries, {"token": "lo", "logprob": -1}]}
    assert answer("completions", line)["choices"][0]["logprobs"] == {
        "tokens": ["Hel", "lo"],
        "token_logprobs": [-0.5, -1],
        "top_logprobs": [{"Hel": -0.5}, {}],
        "text_offset": [0, 3],
    }


def test_a_completion_is_openais() -> None:
    line = {**HEAD, "response": " upon a time", "thinking": "Hm", "done": True, "done_reason": "length", **COUNTS}
    completion = answer("completions", line)
    assert completion["object"] == "text_completion"
    assert completion["id"].startswith("cmpl-")
    choice = {"index": 0, "text": " upon a time", "thinking": "Hm", "finish_reason": "length"}
    assert completion["choices"] == [choice]
    assert completion["usage"]["total_tokens"] == 12


def test_embeddings_are_openais() -> None:
    line = {"model": "m", "embeddings": [[0.5, -0.25], [1, 0]], "prompt_eval_count": 4}
    assert answer("embeddings", line, input=["a", "b"]) == {
        "object": "list",
        "model": "ollama:m",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [0.5, -0.25]},
            {"object": "embedding", "index": 1, "embedding": [1, 0]},
        ],
        "usage": {"prompt_tokens": 4, "total_tokens": 4},
    }
    packed = answer("embeddings", line, input=["a", "b"], encoding_format="base64")["data"][0]["embedding"]
    assert struct.unpack("<2f", base64.b64decode(packed)) == (0.5, -0.25)


def test_large_embeddings_keep_their_numbers_as_they_came() -> None:
    vector = b"[" + b",".join([b"0.10", b"-1e-7", b"5", b"0.012345678901234567890"] * 30_000) + b"]"
    request: Json = {"input": ["a", "b"]}
    steps = ADAPTER.embeddings(request, "m", b'{"embeddings":[%b, [1]],"prompt_eval_count":4}' % vector)
    (content, lists), _ = ended(steps)
    body, stops = ended(embeddings_written(content, lists, None))
    assert vector in body
    assert stops >= 2
    assert orjson.loads(body)["data"][1] == {"object": "embedding", "index": 1, "embedding": [1]}
    (content, lists), _ = ended(ADAPTER.embeddings(request, "m", b'{"embeddings":[%b, [1]]}' % vector))
    packed = orjson.loads(ended(embeddings_written(content, lists, "base64"))[0])["data"][0]["embedding"]
    assert base64.b64decode(packed) == struct.pack("<120000f", *orjson.loads(vector))


@pytest.mark.parametrize(
    ("capability", "body"),
    [
        ("chat", b""),
        ("chat", b"<html>"),
        ("chat", b"[]"),
        ("chat", b'{"error":"no more memory"}'),
        ("chat", b'{"message":{"content":"\xff"},"done":true}'),
        ("chat", b'{"message":{"content":"Hel"}}'),
        ("chat", b'{"done":true}'),
        ("chat", b'{"message":{"content":5},"done":true}'),
        ("chat", b'{"message":{"tool_calls":{"a":1}},"done":true}'),
        ("chat", b'{"message":{"tool_calls":[5]},"done":true}'),
        ("chat", b'{"message":{"tool_calls":[{"function":{"name":"f","arguments":[]}}]},"done":true}'),
        ("chat", b'{"message":{"tool_calls":[{"function":{"arguments":{}}}]},"done":true}'),
        ("chat", b'{"message":{"tool_calls":[{"function":{"name":"f","arguments":%b}}]},"done":true}' % (b"[" * 900)),
        ("chat", b'{"message":{"content":""},"done":true,"logprobs":[5]}'),
        ("chat", b'{"message":{"content":""},"done":true,"logprobs":{"a":1}}'),
        ("completions", b'{"done":true}'),
        ("embeddings", b'{"embeddings":[[1]]}'),
        ("embeddings", b'{"embeddings":[[1],"x"]}'),
        ("embeddings", b'{"embeddings":[[1],{}]}'),
        ("embeddings", b'{"embeddings":[[1],[1e300]]}'),
    ],
)
def test_what_is_no_answer_is_told(capability: str, body: bytes) -> None:
    request: Json = {"input": ["a", "b"], "encoding_format": "base64"}
    with pytest.raises(AnswerError):
        answered(capability, request, body)


def test_arguments_too_deep_to_look_into_are_told() -> None:
    deep = b'{"a":' + b"[" * 980 + b"]" * 980 + b"}"
    with pytest.raises(AnswerError):
        ADAPTER.answer(
            "chat", {}, "m", b'{"message":{"tool_calls":[{"function":{"name":"f","arguments":%b}}]},"done":true}' % deep
        )


def test_the_probers_lists() -> None:
    body = b'{"models":[{"name":"qwen3:8b","model":"qwen3:8b","size":1},{"name":"minilm:latest"}]}'
    assert models(body) == ("qwen3:8b", "minilm:latest")
    assert models(b'{"models":[]}') == ()
    for none in (b"{}", b'{"models":{}}', b'{"models":[{}]}', b'{"models":[5]}', b"Ollama is running", b"\xff"):
        with pytest.raises(AnswerError):
            models(none)


@given(ANY_JSON, ANY_JSON, ANY_JSON)
def test_any_json_gives_an_answer_or_the_one_error(message: Any, calls: Any, logprobs: Any) -> None:
    for line in (
        {"done": True, "message": message, "logprobs": logprobs},
        {"done": True, "message": {"content": "", "tool_calls": calls}},
        {"done": True, "message": {"tool_calls": [{"function": message, "id": calls}]}},
        {"done": True, "response": message, "prompt_eval_count": calls},
        {"embeddings": calls, "error": logprobs},
    ):
        for capability in ("chat", "completions", "embeddings"):
            with suppress(AnswerError):
                assert answered(capability, {"input": "a"}, go_json(line))
