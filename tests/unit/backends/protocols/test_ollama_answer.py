"""Ollama's whole answers in OpenAI's words, without a socket."""

from __future__ import annotations

import base64
import struct
from typing import Any

import orjson
import pytest
from gateway.backends.protocols.base import AnswerError, embeddings_written
from gateway.backends.protocols.ollama.answer import models

from tests.support.faces.ollama import go_json
from tests.support.ollama_lines import ADAPTER, COUNTS, LAST, Json
from tests.support.pieces import ended

DEEP = b'{"a":' + b"[" * 980 + b"]" * 980 + b"}"


def answer(capability: str, line: Json, **fields: Any) -> Json:
    return answered(capability, fields, go_json(line))


def answered(capability: str, request: Json, body: bytes) -> Json:
    if capability != "embeddings":
        return ADAPTER.answer(capability, request, "m", body)
    (content, lists), _ = ended(ADAPTER.embeddings(request, "m", body))
    whole: Json = orjson.loads(ended(embeddings_written(content, lists, request.get("encoding_format")))[0])
    return whole


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
        ("chat", b'{"message":{"tool_calls":[{"function":{"name":"f","arguments":%b}}]},"done":true}' % DEEP),
        ("chat", b'{"message":{"content":""},"done":true,"logprobs":[5]}'),
        ("chat", b'{"message":{"content":""},"done":true,"logprobs":{"a":1}}'),
        ("completions", b'{"done":true}'),
        ("embeddings", b'{"embeddings":[[1]]}'),
        ("embeddings", b'{"embeddings":[[1],"x"]}'),
        ("embeddings", b'{"embeddings":[[1],{}]}'),
        ("embeddings", b'{"embeddings":[[1],[1e300]]}'),
    ],
)
def test_malformed_answers_are_refused(capability: str, body: bytes) -> None:
    request: Json = {"input": ["a", "b"], "encoding_format": "base64"}
    with pytest.raises(AnswerError):
        answered(capability, request, body)


def test_lists_of_models_for_the_prober() -> None:
    body = b'{"models":[{"name":"qwen3:8b","model":"qwen3:8b","size":1},{"name":"minilm:latest"}]}'
    assert models(body) == ("qwen3:8b", "minilm:latest")
    assert models(b'{"models":[]}') == ()
    for none in (b"{}", b'{"models":{}}', b'{"models":[{}]}', b'{"models":[5]}', b"Ollama is running", b"\xff"):
        with pytest.raises(AnswerError):
            models(none)
