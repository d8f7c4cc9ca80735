"""OpenAI's requests in Ollama's words, without a socket."""

from __future__ import annotations

import json
from typing import Any

import pytest
from gateway.errors import ApiError

from tests.support.ollama_lines import ADAPTER, OTHER, TOOL, Json

USER = {"role": "user", "content": "Hi"}
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
        ("chat", {"seed": 2**70}, "seed"),
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
