"""Anthropic's requests as chats, without I/O."""

from __future__ import annotations

import json
from typing import Any

import pytest
from anthropic.types import message_create_params
from anthropic.types.beta import message_create_params as beta_params
from gateway.dialects.messages.request import REFUSED, MessagesRequest, prefill, shows_thinking, to_chat
from gateway.errors import ApiError
from gateway.web.endpoint import parse
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

REQUEST = TypeAdapter(MessagesRequest)
HELLO = [{"role": "user", "content": "Hello"}]
TEXT = {"type": "text", "text": "Look:"}
PNG = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0="}}
PNG_PART = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0="}}
USE = {"type": "tool_use", "id": "call_1", "name": "look", "input": {"at": "Zürich", "big": 2**70}}
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "look", "arguments": '{"at":"Zürich","big":1180591620717411303424}'},
}


def refused(field: str) -> Any:
    """A parameter whose test proves a refusal."""
    return pytest.param(field, marks=pytest.mark.proves("/v1/messages", field, backend="openai", refused=True))


def chat(**fields: Any) -> dict[str, Any]:
    body = json.dumps({"model": "m", "max_tokens": 10, "messages": HELLO, **fields})
    return to_chat(parse(body.encode(), REQUEST))


def refusal(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as error:
        chat(**fields)
    assert error.value.status == 400
    return error.value


def test_the_plainest_request() -> None:
    assert chat() == {"model": "m", "max_tokens": 10, "messages": HELLO}


def test_fields_with_the_same_meaning_and_unknown_ones_go_on() -> None:
    fields = {"temperature": 0.5, "top_p": 0.9, "top_k": 40, "stream": True, "min_p": 0.05, "seed": 7}
    assert chat(**fields) == {"model": "m", "max_tokens": 10, "messages": HELLO, **fields}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"stop_sequences": ["END", "STOP"]}, {"stop": ["END", "STOP"]}),
        ({"metadata": {"user_id": "u-1"}}, {"user": "u-1"}),
        ({"service_tier": "auto"}, {"service_tier": "auto"}),
        ({"service_tier": "standard_only"}, {"service_tier": "default"}),
        ({"thinking": {"type": "disabled"}}, {"reasoning_effort": "none"}),
        ({"thinking": {"type": "adaptive"}}, {}),
        ({"thinking": {"type": "adaptive"}, "output_config": {"effort": "max"}}, {"reasoning_effort": "max"}),
        ({"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}, {}),
        ({"tool_choice": {"type": "none"}, "tools": []}, {}),
        ({"cache_control": {"type": "ephemeral"}}, {}),
        pytest.param({"speed": "standard"}, {}, marks=pytest.mark.proves("/v1/messages", "speed", backend="openai")),
        ({"context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}}, {}),
        ({"container": None, "inference_geo": None, "stop_sequences": []}, {}),
    ],
)
def test_fields_that_are_called_otherwise(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    assert chat(**fields) == {"model": "m", "max_tokens": 10, "messages": HELLO, **expected}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, {"tool_choice": "auto"}),
        ({"type": "none"}, {"tool_choice": "none"}),
        ({"type": "any", "disable_parallel_tool_use": True}, {"tool_choice": "required", "parallel_tool_calls": False}),
        ({"type": "tool", "name": "look"}, {"tool_choice": {"type": "function", "function": {"name": "look"}}}),
    ],
)
def test_a_choice_of_tools(choice: dict[str, Any], expected: dict[str, Any]) -> None:
    made = chat(tools=[LOOK], tool_choice=choice)
    assert {name: value for name, value in made.items() if name in ("tool_choice", "parallel_tool_calls")} == expected


@pytest.mark.parametrize(("budget", "effort"), [(1024, "low"), (4095, "low"), (4096, "medium"), (16384, "high")])
def test_a_budget_of_thinking_is_an_effort(budget: int, effort: str) -> None:
    thinking = {"type": "enabled", "budget_tokens": budget}
    assert chat(max_tokens=32_000, thinking=thinking)["reasoning_effort"] == effort
    named = chat(max_tokens=32_000, thinking=thinking, output_config={"effort": "low"})
    assert named["reasoning_effort"] == "low"


@pytest.mark.parametrize("field", ["output_format", "output_config"])
def test_a_schema_of_the_answer(field: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    given_format = {"type": "json_schema", "schema": schema}
    value = given_format if field == "output_format" else {"format": given_format}
    assert chat(**{field: value})["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "schema": schema, "strict": True},
    }


def test_system_prompts() -> None:
    assert chat(system="Be brief")["messages"] == [{"role": "system", "content": "Be brief"}, *HELLO]
    one = {"type": "text", "text": "Be brief", "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    assert chat(system=[one])["messages"][0] == {"role": "system", "content": "Be brief"}
    parts = chat(system=[one, {"type": "text", "text": "Be kind"}])["messages"][0]["content"]
    assert parts == [{"type": "text", "text": "Be brief"}, {"type": "text", "text": "Be kind"}]
    assert chat(system="")["messages"] == chat(system=[])["messages"] == HELLO
    later = [*HELLO, {"role": "system", "content": [one]}]
    assert chat(messages=later)["messages"][1] == {"role": "system", "content": "Be brief"}


@pytest.mark.proves("/v1/messages", "messages.content.image", backend="openai")
def test_images() -> None:
    by_url = {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}}
    content = chat(messages=[{"role": "user", "content": [TEXT, PNG, by_url]}])["messages"][0]["content"]
    assert content == [TEXT, PNG_PART, {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]


def test_a_tool() -> None:
    schema = {"type": "object", "properties": {"at": {"type": "string"}}}
    tool = {"name": "look", "description": "Looks", "input_schema": schema, "strict": True, "type": "custom"}
    assert chat(tools=[{**tool, "cache_control": {"type": "ephemeral"}, "eager_input_streaming": True}])["tools"] == [
        {
            "type": "function",
            "function": {"name": "look", "description": "Looks", "parameters": schema, "strict": True},
        }
    ]
    assert "tools" not in chat(tools=[])


@pytest.mark.proves("/v1/messages", "messages.content.tool_use", "messages.content.tool_result", backend="openai")
@pytest.mark.proves("/v1/messages", "messages.content.thinking", backend="openai")
def test_a_round_of_tools() -> None:
    thought = {"type": "thinking", "thinking": "Where?", "signature": ""}
    other = {**USE, "id": "call_2", "input": {}}
    results = [
        {"type": "tool_result", "tool_use_id": "call_1", "content": [TEXT, PNG]},
        {"type": "tool_result", "tool_use_id": "call_2", "content": "no such place", "is_error": True},
    ]
    messages = [
        *HELLO,
        {"role": "assistant", "content": [thought, TEXT, USE, other]},
        {"role": "user", "content": [*results, {"type": "text", "text": "Well?"}]},
    ]
    assert chat(messages=messages)["messages"] == [
        *HELLO,
        {
            "role": "assistant",
            "content": "Look:",
            "reasoning_content": "Where?",
            "tool_calls": [CALL, {**CALL, "id": "call_2", "function": {"name": "look", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "Look:"},
        {"role": "tool", "tool_call_id": "call_2", "content": "Error: no such place"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Image of the result of tool call call_1:"},
                PNG_PART,
                {"type": "text", "text": "Well?"},
            ],
        },
    ]


def test_results_of_tools_in_their_other_forms() -> None:
    def content(**fields: Any) -> Any:
        block = {"type": "tool_result", "tool_use_id": "call_1", **fields}
        messages = chat(messages=[{"role": "user", "content": [block]}])["messages"]
        assert len(messages) == 1
        return messages[0]["content"]

    assert content() == content(content=[]) == content(content="") == ""
    assert content(is_error=True) == "Error: the tool failed"
    assert content(content=[TEXT, TEXT], is_error=True) == [{"type": "text", "text": "Error: Look:"}, TEXT]


def test_a_message_of_calls_alone_has_no_content() -> None:
    message = chat(messages=[*HELLO, {"role": "assistant", "content": [USE]}])["messages"][1]
    assert message == {"role": "assistant", "content": None, "tool_calls": [CALL]}


def test_prefill() -> None:
    assert prefill(chat(messages=[*HELLO, {"role": "assistant", "content": "Well,"}])) == "Well,"
    assert prefill(chat()) == ""


@pytest.mark.parametrize(
    ("thinking", "is_shown"),
    [
        (None, False),
        ({"type": "disabled"}, False),
        ({"type": "adaptive"}, True),
        ({"type": "enabled", "budget_tokens": 1024, "display": "omitted"}, False),
        ({"type": "enabled", "budget_tokens": 1024, "display": "summarized"}, True),
    ],
)
def test_thinking_is_shown_to_who_asked_for_it(thinking: Any, is_shown: bool) -> None:
    assert shows_thinking({"thinking": thinking}) is is_shown


@pytest.mark.parametrize("field", [refused(field) for field in sorted(REFUSED)])
def test_what_a_chat_cannot_do_is_refused_by_name(field: str) -> None:
    error = refusal(**{field: "x"})
    assert error.param == field
    assert field in error.message


def user(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(blocks)}]}


def assistant(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [*HELLO, {"role": "assistant", "content": list(blocks)}]}


WEB_SEARCH = {"type": "web_search_20250305", "name": "web_search", "max_uses": 3}
LOOK = {"name": "look", "input_schema": {"type": "object"}}
RESULT = {"type": "tool_result", "tool_use_id": "call_1"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "10"}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"system": [PNG]}, "system.0"),
        ({"stop_sequences": [""]}, "stop_sequences.0"),
        ({"metadata": {"user_id": "u", "other": 1}}, "metadata.other"),
        ({"speed": "fast"}, "speed"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, "context_management"),
        ({"thinking": {"type": "between_tools"}}, "thinking.type"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 10}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}, "max_tokens": 2000}, "thinking.budget_tokens"),
        ({"output_config": {"effort": "huge"}}, "output_config.effort"),
        ({"output_config": {"task_budget": 1}}, "output_config.task_budget"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tool_choice": {"type": "tool"}, "tools": [LOOK]}, "tool_choice.name"),
        ({"tool_choice": {"type": "tool", "name": "other"}, "tools": [LOOK]}, "tool_choice.name"),
        ({"tools": [WEB_SEARCH]}, "tools.0.type"),
        ({"tools": [{"name": "look"}]}, "tools.0.input_schema"),
        ({"tools": [{**LOOK, "defer_loading": True}]}, "tools.0.defer_loading"),
        ({"tools": [{**LOOK, "input_examples": [{}]}]}, "tools.0.input_examples"),
        ({"tools": [{**LOOK, "allowed_callers": ["code_execution_20260120"]}]}, "tools.0.allowed_callers"),
        (user(), "messages.0.content"),
        (user({"type": "document", "source": {}}), "messages.0.content.0"),
        (user({"type": "search_result", "source": "x"}), "messages.0.content.0"),
        (user(USE), "messages.0.content.0"),
        (user({"type": "text"}), "messages.0.content.0.text"),
        (user({**TEXT, "citations": [{}]}), "messages.0.content.0.citations"),
        (user({**PNG, "transformations": {"x": 1}}), "messages.0.content.0.transformations"),
        (user({"type": "image"}), "messages.0.content.0.source"),
        (user({"type": "image", "source": {"type": "file", "file_id": "f"}}), "messages.0.content.0.source.type"),
        (user({"type": "image", "source": {"type": "base64", "data": "x"}}), "messages.0.content.0.source.media_type"),
        (user(TEXT, RESULT), "messages.0.content.1"),
        (user({"type": "tool_result"}), "messages.0.content.0.tool_use_id"),
        (user({**RESULT, "is_error": "yes"}), "messages.0.content.0.is_error"),
        (user({**RESULT, "content": 5}), "messages.0.content.0.content"),
        (user({**RESULT, "content": ["x"]}), "messages.0.content.0.content"),
        (user({**RESULT, "content": [{"type": "document"}]}), "messages.0.content.0.content.0"),
        (user({**RESULT, "content": [{}]}), "messages.0.content.0.content.0"),
        (assistant(PNG), "messages.1.content.0"),
        (assistant({"type": "redacted_thinking", "data": "x"}), "messages.1.content.0"),
        (assistant({"type": "server_tool_use", "id": "x"}), "messages.1.content.0"),
        (assistant({"type": "thinking"}), "messages.1.content.0.thinking"),
        (assistant({**USE, "input": "x"}), "messages.1.content.0.input"),
        (assistant({**USE, "input": {"x": float("nan")}}), "messages.1.content.0.input"),
        (assistant({**USE, "id": None}), "messages.1.content.0.id"),
        (assistant({**USE, "caller": {"type": "code_execution_20260120"}}), "messages.1.content.0.caller"),
    ],
)
@pytest.mark.proves("/v1/messages", "messages.content.document", "speed", backend="openai", refused=True)
@pytest.mark.proves("/v1/messages", "messages.content.redacted_thinking", backend="openai", refused=True)
@pytest.mark.proves("/v1/messages", "messages.content.search_result", backend="openai", refused=True)
def test_what_is_wrong_or_cannot_be_is_named(fields: dict[str, Any], param: str) -> None:
    assert refusal(**fields).param == param


def test_each_field_of_the_sdk_is_decided_on() -> None:
    """A field that a new SDK brings is to be looked at, not forwarded unseen."""
    known = set(MessagesRequest.__annotations__) | set(REFUSED)
    for params in (message_create_params.MessageCreateParamsBase, beta_params.MessageCreateParamsBase):
        assert set(params.__annotations__) - {"betas"} <= known  # `betas` is sent as a header


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
KINDS = st.sampled_from(["text", "image", "tool_use", "tool_result", "thinking", "redacted_thinking", "document", "x"])
NAMES = st.sampled_from(
    ["text", "source", "id", "name", "input", "content", "tool_use_id", "is_error", "thinking", "caller"]
)
BLOCKS = st.builds(lambda kind, fields: {**fields, "type": kind}, KINDS, st.dictionaries(NAMES, JSON, max_size=4))
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system"]), "content": st.text() | st.lists(BLOCKS, max_size=4)}
)


@given(
    st.fixed_dictionaries(
        {
            "model": st.text(max_size=10),
            "max_tokens": st.just(10),
            "messages": st.lists(MESSAGES, min_size=1, max_size=3),
        },
        optional=dict.fromkeys(
            sorted(set(MessagesRequest.__annotations__) - {"model", "max_tokens", "messages"}), JSON
        ),
    )
)
def test_any_request_is_a_chat_or_a_named_400(request: dict[str, Any]) -> None:
    try:
        translated = to_chat(parse(json.dumps(request).encode(), REQUEST))
    except ApiError as error:
        assert error.status == 400
        assert error.param or error.code == "invalid_json"
    else:
        assert {message["role"] for message in translated["messages"]} <= {"system", "user", "assistant", "tool"}
