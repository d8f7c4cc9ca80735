"""Ollama's protocol without a socket: requests in its words, answers in OpenAI's, streams byte by byte."""

from __future__ import annotations

import base64
import json
import random
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from gateway.http.errors import ApiError
from gateway.upstream.adapters.base import Adapter, AnswerError, StreamTranslator
from gateway.upstream.adapters.ollama import OllamaAdapter, OllamaStream, loaded, models
from gateway.upstream.ndjson import LINE_MAX_BYTES
from hypothesis import given
from hypothesis import strategies as st

from tests.doubles.ollama import go_json
from tests.gateway.test_sse import cut as cuts

Json = dict[str, Any]
ADAPTER: Adapter = OllamaAdapter()
HEAD = {"model": "m", "created_at": "2026-11-21T10:00:00Z"}
COUNTS = {"prompt_eval_count": 7, "eval_count": 5}
LAST = {**HEAD, "message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop", **COUNTS}
USER = {"role": "user", "content": "Hi"}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}}
OTHER = {"type": "function", "function": {"name": "g"}}
PNG = "data:image/png;base64,iVBORw0KGgo="


def sent(capability: str = "chat", **fields: Any) -> Json:
    """The body that goes to Ollama for a request with these fields."""
    usual: dict[str, Json] = {"chat": {"messages": [USER]}, "completions": {"prompt": "Once"}, "embeddings": {}}
    outgoing = ADAPTER.request(capability, {"model": "alias", **usual[capability], **fields}, "m")
    paths = {"chat": b"/api/chat", "completions": b"/api/generate", "embeddings": b"/api/embed"}
    assert outgoing.path == paths[capability]
    body: Json = json.loads(outgoing.body)
    assert body["model"] == "m"
    return body


def said(*messages: Json) -> list[Json]:
    content: list[Json] = sent(messages=list(messages))["messages"]
    return content


# Requests ----------------------------------------------------------------------------------------------------------


def test_a_chat_is_ollamas() -> None:
    assert sent() == {"model": "m", "messages": [USER], "stream": False, "options": {}}
    assert sent(stream=True)["stream"] is True


def test_sampling_goes_into_the_options_beside_ollamas_own() -> None:
    body = sent(
        temperature=0.5,
        top_p=0.9,
        seed=7,
        stop="END",
        presence_penalty=0.1,
        frequency_penalty=0.2,
        max_tokens=9,
        options={"num_ctx": 4096, "temperature": 2},
    )
    assert body["options"] == {
        "num_ctx": 4096,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 7,
        "stop": ["END"],
        "presence_penalty": 0.1,
        "frequency_penalty": 0.2,
        "num_predict": 9,
    }
    assert sent(max_tokens=9, max_completion_tokens=3, stop=["a", "b"])["options"] == {
        "num_predict": 3,
        "stop": ["a", "b"],
    }


def test_fields_that_are_not_openais_are_forwarded() -> None:
    extra: Json = {
        "keep_alive": "10m",
        "think": True,
        "truncate": False,
        "user": "u-1",
        "metadata": {"a": "b"},
    }
    assert sent(**extra).items() >= extra.items()
    assert sent(store=None).keys() == sent().keys()


@pytest.mark.parametrize(
    ("effort", "think"),
    [("none", False), ("minimal", "low"), ("low", "low"), ("medium", "medium"), ("high", "high"), ("xhigh", "max")],
)
def test_reasoning_effort_is_think(effort: str, think: str | bool) -> None:
    assert sent(reasoning_effort=effort)["think"] == think
    assert sent(reasoning_effort=effort, think="low")["think"] == "low"


def test_response_format_is_format() -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    assert "format" not in sent(response_format={"type": "text"})
    assert sent(response_format={"type": "json_object"})["format"] == "json"
    wanted = {"type": "json_schema", "json_schema": {"name": "city", "strict": True, "schema": schema}}
    assert sent(response_format=wanted)["format"] == schema


def test_log_probabilities_are_asked_for() -> None:
    assert sent(logprobs=True, top_logprobs=3).items() >= {"logprobs": True, "top_logprobs": 3}.items()
    assert "logprobs" not in sent(logprobs=False)
    assert sent("completions", logprobs=2).items() >= {"logprobs": True, "top_logprobs": 2}.items()


def test_messages_are_ollamas() -> None:
    assert said({"role": "developer", "content": "Be brief"}) == [{"role": "system", "content": "Be brief"}]
    parts = [
        {"type": "text", "text": "What is"},
        {"type": "image_url", "image_url": {"url": PNG, "detail": "high"}},
        {"type": "text", "text": "this?"},
        {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}},
    ]
    assert said({"role": "user", "content": parts}) == [
        {"role": "user", "content": "What is\nthis?", "images": ["iVBORw0KGgo=", "UklGRg=="]}
    ]


def test_tool_calls_and_results_are_ollamas() -> None:
    arguments = '{"a": 1.0, "big": 123456789012345678901234567890, "e": "\\u00e9"}'
    calls = [
        {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": arguments}},
        {"id": "call_2", "type": "function", "function": {"name": "g", "arguments": ""}},
    ]
    messages = [
        {"role": "assistant", "content": None, "tool_calls": calls, "thinking": "Hm"},
        {"role": "tool", "tool_call_id": "call_2", "content": "two"},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "one"}]},
    ]
    body = ADAPTER.request("chat", {"messages": messages}, "m").body
    assert arguments.encode() in body  # the very text: no number is rewritten
    told = json.loads(body)["messages"]
    assert told == [
        {
            "role": "assistant",
            "content": "",
            "thinking": "Hm",
            "tool_calls": [
                {"id": "call_1", "function": {"name": "f", "index": 0, "arguments": json.loads(arguments)}},
                {"id": "call_2", "function": {"name": "g", "index": 1, "arguments": {}}},
            ],
        },
        {"role": "tool", "tool_call_id": "call_2", "tool_name": "g", "content": "two"},
        {"role": "tool", "tool_call_id": "call_1", "tool_name": "f", "content": "one"},
    ]


def test_tool_choice() -> None:
    tools = [TOOL, OTHER]
    assert sent(tools=tools)["tools"] == sent(tools=tools, tool_choice="auto")["tools"] == tools
    assert "tools" not in sent(tools=tools, tool_choice="none")
    named = {"type": "function", "function": {"name": "f"}}
    for choice, offered in ((named, tools), ("required", [TOOL])):
        body = sent(tools=offered, tool_choice=choice)
        assert body["tools"] == offered
        assert body["format"] == TOOL["function"]["parameters"]  # type: ignore[index]  # a dict of dicts


def test_a_completion_is_ollamas() -> None:
    assert sent("completions", suffix="the end.", raw=True) == {
        "model": "m",
        "prompt": "Once",
        "suffix": "the end.",
        "raw": True,
        "stream": False,
        "options": {},
    }
    assert sent("completions", prompt=["One"])["prompt"] == "One"


def test_an_embedding_is_ollamas() -> None:
    fields = {"input": ["a", "b"], "dimensions": 8, "encoding_format": "base64", "truncate": False}
    assert sent("embeddings", **fields) == {"model": "m", "input": ["a", "b"], "dimensions": 8, "truncate": False}


def content(part: Json) -> Json:
    return {"messages": [{"role": "user", "content": [part]}]}


def call(function: Json) -> Json:
    return {"messages": [{"role": "assistant", "tool_calls": [{"id": "c", "function": function}]}]}


@pytest.mark.parametrize(
    ("capability", "fields", "param"),
    [
        ("chat", {"n": 2}, "n"),
        ("chat", {"logit_bias": {"1": 5}}, "logit_bias"),
        ("chat", {"modalities": ["text", "audio"]}, "modalities"),
        ("chat", {"audio": {"voice": "alloy"}}, "audio"),
        ("chat", {"functions": [{"name": "f"}]}, "functions"),
        ("chat", {"function_call": "auto"}, "function_call"),
        ("chat", {"web_search_options": {}}, "web_search_options"),
        ("chat", {"verbosity": "low"}, "verbosity"),
        ("chat", {"top_logprobs": 2}, "top_logprobs"),
        ("chat", {"options": "num_ctx=1"}, "options"),
        ("chat", {"reasoning_effort": "enormous"}, "reasoning_effort"),
        ("chat", {"response_format": {"type": "grammar"}}, "response_format.type"),
        ("chat", {"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ("chat", {"tools": [{"type": "custom", "custom": {}}]}, "tools.0.type"),
        ("chat", {"tools": [{"type": "function"}]}, "tools.0.function.name"),
        ("chat", {"tools": [TOOL, OTHER], "tool_choice": "required"}, "tool_choice"),
        ("chat", {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ("chat", {"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ("chat", {"messages": [{"role": "function", "name": "f", "content": "1"}]}, "messages.0.role"),
        ("chat", {"messages": [{"role": "assistant", "audio": {"id": "a"}}]}, "messages.0.audio"),
        ("chat", content({"type": "file", "file": {}}), "messages.0.content.0"),
        ("chat", content({"type": "text"}), "messages.0.content.0"),
        (
            "chat",
            content({"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}),
            "messages.0.content.0.image_url.url",
        ),
        (
            "chat",
            content({"type": "image_url", "image_url": {"url": PNG, "detail": "low"}}),
            "messages.0.content.0.image_url.detail",
        ),
        ("chat", call({"name": "f", "arguments": "{"}), "messages.0.tool_calls.0.function.arguments"),
        ("chat", call({"name": "f", "arguments": "[]"}), "messages.0.tool_calls.0.function.arguments"),
        ("chat", call({"name": "f", "arguments": {}}), "messages.0.tool_calls.0.function.arguments"),
        ("chat", call({"arguments": "{}"}), "messages.0.tool_calls.0"),
        ("chat", {"messages": [{"role": "assistant", "tool_calls": {}}]}, "messages.0.tool_calls"),
        ("chat", {"seed": 2**70}, None),
        ("completions", {"prompt": ["a", "b"]}, "prompt"),
        ("completions", {"prompt": [1, 2]}, "prompt"),
        ("completions", {"best_of": 3}, "best_of"),
        ("completions", {"echo": True}, "echo"),
        ("embeddings", {"input": [1, 2]}, "input"),
        ("embeddings", {"input": [[1, 2]]}, "input"),
    ],
)
def test_what_ollama_cannot_do_is_refused_by_name(capability: str, fields: Json, param: str | None) -> None:
    with pytest.raises(ApiError) as refused:
        sent(capability, **fields)
    assert refused.value.status == 400
    assert refused.value.param == param


# Whole answers -----------------------------------------------------------------------------------------------------


def answer(capability: str, line: Json, **fields: Any) -> Json:
    return ADAPTER.answer(capability, fields, "m", go_json(line))


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
        ("embeddings", b'{"embeddings":[[1],[1e300]]}'),
    ],
)
def test_what_is_no_answer_is_told(capability: str, body: bytes) -> None:
    request: Json = {"input": ["a", "b"], "encoding_format": "base64"}
    with pytest.raises(AnswerError):
        ADAPTER.answer(capability, request, "m", body)


def test_arguments_too_deep_to_look_into_are_told() -> None:
    deep = b'{"a":' + b"[" * 980 + b"]" * 980 + b"}"
    with pytest.raises(AnswerError):
        ADAPTER.answer(
            "chat", {}, "m", b'{"message":{"tool_calls":[{"function":{"name":"f","arguments":%b}}]},"done":true}' % deep
        )


def test_the_probers_lists() -> None:
    body = b'{"models":[{"name":"qwen3:8b","model":"qwen3:8b","size":1},{"name":"minilm:latest"}]}'
    assert models(body) == loaded(body) == ("qwen3:8b", "minilm:latest")
    assert models(b'{"models":[]}') == ()
    for none in (b"{}", b'{"models":{}}', b'{"models":[{}]}', b'{"models":[5]}', b"Ollama is running", b"\xff"):
        with pytest.raises(AnswerError):
            models(none)


# Streams -----------------------------------------------------------------------------------------------------------


def streamed(pieces: Iterable[bytes], capability: str = "chat", **fields: Any) -> tuple[list[Any], str | None]:
    """The events that come out, `[DONE]` as a text, and the error that ended them."""
    stream: StreamTranslator = ADAPTER.stream(capability, {"stream": True, **fields}, "m")
    out: list[bytes] = []
    error = None
    try:
        for piece in pieces:
            out += stream.feed(piece)
        out += stream.end()
    except AnswerError as answer_error:
        error = str(answer_error)
    assert stream.is_done is (error is None)
    return [event_of(data) for data in out], error


def event_of(data: bytes) -> Any:
    assert data.startswith(b"data: ")
    assert data.endswith(b"\n\n")
    assert data.count(b"\n") == 2
    content = data[6:-2]
    if content == b"[DONE]":
        return "[DONE]"
    event = json.loads(content)
    # What is new in every stream.
    for key in ("id", "created"):
        del event[key]
    for choice in event["choices"]:
        for call in choice.get("delta", {}).get("tool_calls", ()):
            if "id" in call:
                assert call["id"].startswith("call_")
                call["id"] = "call_"
    return event


def ndjson(*lines: Json) -> bytes:
    return b"".join(go_json(line) + b"\n" for line in lines)


def delta_line(**message: Any) -> Json:
    return {**HEAD, "message": {"role": "assistant", "content": "", **message}, "done": False}


def test_a_stream_is_openais() -> None:
    lines = ndjson(
        delta_line(thinking="Hm"),
        delta_line(content="Hel"),
        delta_line(tool_calls=[{"function": {"name": "f", "arguments": {"a": "é<"}}}, {"function": {"name": "g"}}]),
        delta_line(tool_calls=[{"id": "call_9", "function": {"index": 0, "name": "h", "arguments": {}}}]),
        LAST,
    )
    events, error = streamed([lines], stream_options={"include_usage": True})
    assert error is None

    def called(index: int, name: str, arguments: str) -> Json:
        return {"index": index, "id": "call_", "type": "function", "function": {"name": name, "arguments": arguments}}

    deltas = [
        {"role": "assistant", "content": "", "thinking": "Hm"},
        {"content": "Hel"},
        {"tool_calls": [called(0, "f", '{"a":"é\\u003c"}'), called(1, "g", "{}")]},
        {"tool_calls": [called(2, "h", "{}")]},
        {},
    ]
    reasons = [None, None, None, None, "tool_calls"]
    head = {"object": "chat.completion.chunk", "model": "ollama:m"}
    assert events == [
        *(
            {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
            for delta, reason in zip(deltas, reasons, strict=True)
        ),
        {**head, "choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}},
        "[DONE]",
    ]


def test_usage_is_told_only_when_asked_for_but_always_known() -> None:
    stream = ADAPTER.stream("chat", {"stream": True}, "m")
    events = stream.feed(ndjson(delta_line(content="Hi"), LAST))
    assert len(events) == 3
    assert not any(b"usage" in event for event in events)
    assert stream.usage == {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
    assert stream.end() == []


def test_the_last_line_may_say_something() -> None:
    events, _ = streamed([ndjson(LAST | {"message": {"content": "Hi"}, "done_reason": "length"})])
    assert events[0]["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": "Hi"}, "finish_reason": "length"}
    ]
    assert events[1:] == ["[DONE]"]


def test_a_completions_stream() -> None:
    lines = [{**HEAD, "response": "Hel", "done": False}, {**HEAD, "response": "", "done": True, "done_reason": "stop"}]
    events, error = streamed([ndjson(*lines)], "completions")
    assert error is None
    head = {"object": "text_completion", "model": "ollama:m"}
    assert events == [
        {**head, "choices": [{"index": 0, "text": "Hel", "finish_reason": None}]},
        {**head, "choices": [{"index": 0, "text": "", "finish_reason": "stop"}]},
        "[DONE]",
    ]


def test_a_forced_call_is_streamed_as_its_arguments_come() -> None:
    pieces = ['{"a"', ": ", "1}"]
    lines = ndjson(delta_line(thinking="Hm"), *(delta_line(content=piece) for piece in pieces), LAST)
    events, _ = streamed([lines], tools=[TOOL], tool_choice="required")
    deltas = [event["choices"][0]["delta"] for event in events[:-1]]
    assert "tool_calls" not in deltas[0]
    calls = [delta["tool_calls"][0] for delta in deltas[1:4]]
    assert calls[0]["function"]["name"] == "f"
    assert [call["index"] for call in calls] == [0, 0, 0]
    assert "".join(call["function"]["arguments"] for call in calls) == "".join(pieces)
    assert events[-2]["choices"][0]["finish_reason"] == "tool_calls"


def test_a_call_made_without_force_is_the_one() -> None:
    calls = [{"function": {"name": "f", "arguments": {"a": 1}}}]
    lines = ndjson(delta_line(tool_calls=calls), delta_line(content="Done."), LAST)
    events, _ = streamed([lines], tools=[TOOL], tool_choice="required")
    assert events[0]["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"] == '{"a":1}'
    assert events[1]["choices"][0]["delta"] == {"content": "Done."}


def test_an_error_line_ends_the_stream_after_what_came_before() -> None:
    lines = ndjson(delta_line(content="Hel"), {"error": "CUDA error"}, delta_line(content="lo"))
    events, error = streamed([lines])
    assert error == "CUDA error"
    assert [event["choices"][0]["delta"]["content"] for event in events] == ["Hel"]
    stream = ADAPTER.stream("chat", {}, "m")
    assert len(stream.feed(lines)) == 1
    for _ in range(2):
        with pytest.raises(AnswerError, match="CUDA error"):
            stream.feed(b"")


@pytest.mark.parametrize("rest", [b"", b'{"message":{"content":"lo', b'{"message":{"content":"lo"},"done":false}'])
def test_a_stream_that_is_cut_is_no_answer(rest: bytes) -> None:
    events, error = streamed([ndjson(delta_line(content="Hel")) + rest])
    assert error
    assert len(events) == 1


def test_the_last_line_needs_no_end() -> None:
    assert streamed([ndjson(LAST).rstrip()]) == streamed([ndjson(LAST)])


def test_what_comes_after_the_last_line_is_of_no_interest() -> None:
    assert streamed([ndjson(LAST) + b"\xff\n{", b"x\n"]) == streamed([ndjson(LAST)])


def test_a_line_without_end_is_no_answer() -> None:
    stream = ADAPTER.stream("chat", {}, "m")
    with pytest.raises(AnswerError):
        for _ in range(LINE_MAX_BYTES // 2**20 + 2):
            stream.feed(b"x" * 2**20)


# Fidelity ----------------------------------------------------------------------------------------------------------

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda some: st.lists(some, max_size=3) | st.dictionaries(st.text(), some, max_size=3),
    max_leaves=5,
)
arguments = st.dictionaries(st.text(), values, max_size=4)
tool_calls = st.lists(st.fixed_dictionaries({"name": st.text(min_size=1), "arguments": arguments}), min_size=1)
messages = st.fixed_dictionaries(
    {"content": st.text(max_size=10)},
    optional={"thinking": st.text(max_size=10), "tool_calls": tool_calls.map(lambda c: [{"function": f} for f in c])},
)


@given(st.lists(messages, max_size=6), st.data())
def test_any_split_of_a_stream_gives_the_same_events(some: list[Json], data: st.DataObject) -> None:
    lines = ndjson(*(delta_line(**message) for message in some), LAST)
    whole = streamed([lines])
    assert streamed(data.draw(cuts(lines))) == whole
    assert len(whole[0]) == len(some) + 2  # the last line is the finish; [DONE] follows
    said = [call["function"] for message in some for call in message.get("tool_calls", ())]
    heard = [call for event in whole[0][:-1] for call in event["choices"][0]["delta"].get("tool_calls", ())]
    assert [call["index"] for call in heard] == list(range(len(said)))
    for call, function in zip(heard, said, strict=True):
        assert call["function"]["name"] == function["name"]
        assert call["function"]["arguments"].encode() == go_json(function["arguments"])


@given(
    st.lists(st.binary(max_size=60) | st.sampled_from([b"\n", b"{", b'{"message":{}}\n', b'"done":true']), max_size=9)
)
def test_any_bytes_give_events_or_the_one_error(pieces: list[bytes]) -> None:
    for capability in ("chat", "completions"):
        events, error = streamed(pieces, capability)
        assert (streamed([b"".join(pieces)], capability)) == (events, error)


@given(values, values, values)
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
                assert ADAPTER.answer(capability, {"input": "a"}, "m", go_json(line))


def recorded_shapes(seed: int) -> Iterator[list[Json]]:
    """Answers as Ollama streams them: a token a line; thinking first; calls one or several a line; empty last lines."""
    chance = random.Random(seed)  # noqa: S311 - repeatable, not secret
    words = ["Hello", " world", "!", "\n\n", " é", "🌍", ' "quoted"', " <b>&amp;</b>", "", "\u2028", "\\n", " naïve"]
    for number in range(100):
        lines = [delta_line(thinking=chance.choice(words)) for _ in range(chance.choice([0, 0, 9]))]
        if number % 3 == 0:
            for _ in range(chance.randint(1, 4)):
                calls = [
                    {
                        "id": f"call_{chance.randrange(10**8):08d}",
                        "function": {
                            "index": index,
                            "name": chance.choice(["get_weather", "get_time"]),
                            "arguments": {"city": chance.choice(words), "days": chance.randrange(2**63), "x": 1e-7},
                        },
                    }
                    for index in range(chance.randint(1, 3))
                ]
                lines.append(delta_line(tool_calls=calls))
        lines += [delta_line(content=chance.choice(words)) for _ in range(chance.randint(20, 60))]
        yield [*lines, LAST | {"done_reason": chance.choice(["stop", "length"])}]


@pytest.mark.proves("/v1/chat/completions", "stream", "tools", "parallel_tool_calls", backend="ollama")
def test_three_thousand_lines_are_as_many_events() -> None:
    lines = calls = 0
    for seed, answer_lines in enumerate(recorded_shapes(7)):
        data = ndjson(*answer_lines)
        size = 1 + seed % 97
        events, error = streamed(data[at : at + size] for at in range(0, len(data), size))
        assert error is None
        assert len(events) == len(answer_lines) + 1  # [DONE]
        for line, event in zip(answer_lines, events, strict=False):
            said, delta = line["message"], event["choices"][0]["delta"]
            assert (delta.get("content", ""), delta.get("thinking", "")) == (said["content"], said.get("thinking", ""))
            heard = delta.get("tool_calls", [])
            for call, spoken in zip(heard, said.get("tool_calls", []), strict=True):
                assert call["function"]["arguments"].encode() == go_json(spoken["function"]["arguments"])
            calls += len(heard)
        lines += len(answer_lines)
    assert lines >= 3000
    assert calls >= 100


def test_a_stream_of_the_adapter_is_its_own() -> None:
    first, second = (ADAPTER.stream("chat", {}, "m") for _ in range(2))
    assert isinstance(first, OllamaStream)
    ids = [json.loads(stream.feed(ndjson(LAST))[0][6:])["id"] for stream in (first, second)]
    assert ids[0] != ids[1]
