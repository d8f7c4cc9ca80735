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


def test_tool_choice() -> None:
    tools = [TOOL, OTHER]
    assert sent(tools=tools)["tools"] == sent(tools=tools, tool_choice="auto")["tools"] == tools
    assert "tools" not in sent(tools=tools, tool_choice="none")
    named = {"type": "function", "function": {"name": "f"}}
    for choice, offered in ((named, tools), ("required", [TOOL])):
        body = sent(tools=offered, tool_choice=choice)
        assert body["tools"] == offered
        assert body["format"] == TOOL["function"]["parameters"]  # type: ignore[index]  # a dict of dicts


def content(part: Json) -> Json:
    return {"messages": [{"role": "user", "content": [part]}]}


def call(function: Json) -> Json:
    return {"messages": [{"role": "assistant", "tool_calls": [{"id": "c", "function": function}]}]}


ROUTES = {"chat": "/v1/chat/completions", "completions": "/v1/completions", "embeddings": "/v1/embeddings"}
ELSEWHERE = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
UNSUPPORTED: list[tuple[str, Json, str]] = [
    ("chat", {"n": 2}, "n"),
    ("chat", {"logit_bias": {"1": 5}}, "logit_bias"),
    ("chat", {"modalities": ["text", "audio"]}, "modalities"),
    ("chat", {"audio": {"voice": "alloy"}}, "audio"),
    ("chat", {"functions": [{"name": "f"}]}, "functions"),
    ("chat", {"function_call": "auto"}, "function_call"),
    ("chat", {"web_search_options": {}}, "web_search_options"),
    ("chat", {"verbosity": "low"}, "verbosity"),
    ("chat", {"tools": [TOOL, OTHER], "tool_choice": "required"}, "tool_choice"),
    ("chat", content(ELSEWHERE), "messages.0.content.0.image_url.url"),
    ("completions", {"prompt": ["a", "b"]}, "prompt"),
    ("completions", {"n": 2}, "n"),
    ("completions", {"best_of": 3}, "best_of"),
    ("completions", {"echo": True}, "echo"),
    ("completions", {"logit_bias": {"1": 1}}, "logit_bias"),
    ("embeddings", {"input": [1, 2]}, "input"),
]


def proven(capability: str, fields: Json, param: str) -> Any:
    field = param.partition(".")[0]
    mark = pytest.mark.proves(ROUTES[capability], field, backend="ollama", refused=True)
    return pytest.param(capability, fields, param, marks=mark)


@pytest.mark.parametrize(
    ("capability", "fields", "param"),
    [
        *(proven(*row) for row in UNSUPPORTED),
        ("chat", {"top_logprobs": 2}, "top_logprobs"),
        ("chat", {"options": "num_ctx=1"}, "options"),
        ("chat", {"reasoning_effort": "enormous"}, "reasoning_effort"),
        ("chat", {"response_format": {"type": "grammar"}}, "response_format.type"),
        ("chat", {"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ("chat", {"tools": [{"type": "custom", "custom": {}}]}, "tools.0.type"),
        ("chat", {"tools": [{"type": "function"}]}, "tools.0.function.name"),
        ("chat", {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ("chat", {"tools": [TOOL], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ("chat", {"messages": [{"role": "function", "name": "f", "content": "1"}]}, "messages.0.role"),
        ("chat", {"messages": [{"role": "assistant", "audio": {"id": "a"}}]}, "messages.0.audio"),
        ("chat", content({"type": "file", "file": {}}), "messages.0.content.0"),
        ("chat", content({"type": "text"}), "messages.0.content.0"),
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
        ("completions", {"prompt": [1, 2]}, "prompt"),
        ("embeddings", {"input": [[1, 2]]}, "input"),
    ],
)
def test_fields_that_ollama_lacks_are_refused_by_name(capability: str, fields: Json, param: str | None) -> None:
    with pytest.raises(ApiError) as refused:
        sent(capability, **fields)
    assert refused.value.status == 400
    assert refused.value.param == param
