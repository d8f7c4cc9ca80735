"""Anthropic's Messages API: the unmodified SDK and plain HTTP, through a real gateway to a scripted backend."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic.types import ToolParam, ToolUseBlock

from tests.support.chat_script import ChatScript
from tests.support.gateways import TOKEN, Gateway, gateway, write_files
from tests.support.sockets import send

ROUTE = "/v1/messages"
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
SCHEMA: dict[str, object] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: list[ToolParam] = [
    {"name": name, "description": "Tells it", "input_schema": SCHEMA, "strict": True} for name in ("weather", "time")
]
FUNCTIONS = [
    {
        "type": "function",
        "function": {"name": name, "parameters": SCHEMA, "description": "Tells it", "strict": True},
    }
    for name in ("weather", "time")
]
FORMAT = {"type": "json_schema", "schema": SCHEMA}
ARGUMENTS = ('{"city": "Zürich", "note": "a \\"quoted\\" word"}', '{ "city":"Genève" }')
CALLS = [
    {"id": f"call_{index}", "type": "function", "function": {"name": name, "arguments": arguments}}
    for index, (name, arguments) in enumerate(zip(("weather", "time"), ARGUMENTS, strict=True))
]
MIXED: tuple[dict[str, Any], ...] = (
    {"role": "assistant", "content": None},
    {"tool_calls": [{**call, "index": 0, "function": {"name": "weather", "arguments": ""}} for call in CALLS[:1]]},
    {"tool_calls": [{**call, "index": 1, "function": {"name": "time", "arguments": ""}} for call in CALLS[1:]]},
    *(
        {"tool_calls": [{"index": index, "function": {"arguments": arguments[start : start + 7]}}]}
        for start in range(0, 49, 7)
        for index, arguments in enumerate(ARGUMENTS)
    ),
)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, script: ChatScript) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("messages")
    write_files(home, script.url)
    with gateway(home) as running:
        yield running


@pytest.fixture
def told(script: ChatScript) -> ChatScript:
    """The backend with nothing seen yet, answering as it does by itself."""
    port = script.port
    script.__init__()  # type: ignore[misc]  # every field as at first
    script.port = port
    return script


@pytest.fixture
def sdk(served: Gateway) -> Iterator[anthropic.Anthropic]:
    """The SDK sends its key as `x-api-key`."""
    url = f"http://127.0.0.1:{served.port}"
    with anthropic.Anthropic(base_url=url, api_key=TOKEN, max_retries=0, timeout=20) as client:
        yield client


def blocks(message: anthropic.types.Message) -> list[dict[str, object]]:
    return [block.to_dict() for block in message.content]


def sent(script: ChatScript) -> dict[str, Any]:
    content: dict[str, Any] = script.wait_for(1)[0].json
    return content


@pytest.mark.proves(ROUTE, "model", "max_tokens", "messages", backend="openai")
def test_a_message(sdk: anthropic.Anthropic, told: ChatScript) -> None:
    answer = sdk.messages.with_raw_response.create(model="fast", max_tokens=64, messages=HELLO)
    message = answer.parse()
    assert blocks(message) == [{"type": "text", "text": "Hello"}]
    assert (message.model, message.role, message.type) == ("told", "assistant", "message")
    assert message.id.startswith("msg_")
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert (message.usage.input_tokens, message.usage.output_tokens) == (31, 17)
    assert sent(told) == {"model": "echo", "max_tokens": 64, "messages": HELLO}
    assert answer.headers["x-backend-used"] == "test"
    assert answer.headers["x-router-reason"] == "alias:model"
    assert answer.headers["request-id"] == answer.headers["x-request-id"] == message._request_id


@pytest.mark.proves(
    ROUTE,
    "system",
    "temperature",
    "top_p",
    "top_k",
    "stop_sequences",
    "metadata.user_id",
    "service_tier",
    "thinking",
    "output_config.effort",
    "output_config.format",
    "cache_control",
    backend="openai",
)
def test_every_field_reaches_the_backend(sdk: anthropic.Anthropic, told: ChatScript) -> None:
    sdk.messages.create(
        model="echo",
        max_tokens=2000,
        messages=HELLO,
        system=[{"type": "text", "text": "Be brief", "cache_control": {"type": "ephemeral"}}],
        stop_sequences=["END"],
        metadata={"user_id": "u-1"},
        service_tier="standard_only",
        thinking={"type": "enabled", "budget_tokens": 1500},
        output_config={"format": {"type": "json_schema", "schema": SCHEMA}},
        extra_body={"temperature": 0.5, "top_p": 0.9, "top_k": 40, "seed": 7},
    )
    assert sent(told) == {
        "model": "echo",
        "max_tokens": 2000,
        "messages": [{"role": "system", "content": "Be brief"}, *HELLO],
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "seed": 7,
        "stop": ["END"],
        "user": "u-1",
        "service_tier": "default",
        "reasoning_effort": "low",
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True},
        },
    }


@pytest.mark.proves(ROUTE, "stream", backend="openai")
def test_a_stream(sdk: anthropic.Anthropic, told: ChatScript) -> None:
    with sdk.messages.stream(model="fast", max_tokens=64, messages=HELLO) as stream:
        assert list(stream.text_stream) == ["Hel", "lo"]
        message = stream.get_final_message()
    assert blocks(message) == [{"type": "text", "text": "Hello"}]
    assert message.stop_reason == "end_turn"
    assert (message.usage.input_tokens, message.usage.output_tokens) == (31, 17)
    assert stream.response.headers["content-type"] == "text/event-stream"
    assert stream.response.headers["x-accel-buffering"] == "no"
    assert stream.response.headers["request-id"] == stream.response.headers["x-request-id"]


@pytest.mark.proves(ROUTE, "tools", "tool_choice", "tool_choice.disable_parallel_tool_use", backend="openai")
@pytest.mark.parametrize("is_stream", [False, True])
def test_a_whole_round_of_parallel_tools(sdk: anthropic.Anthropic, told: ChatScript, is_stream: bool) -> None:
    def ask(messages: list[Any]) -> anthropic.types.Message:
        choice = {"type": "any", "disable_parallel_tool_use": False}
        common: Any = {"model": "echo", "max_tokens": 64, "messages": messages, "tools": TOOLS, "tool_choice": choice}
        if not is_stream:
            answer: anthropic.types.Message = sdk.messages.create(**common)
            return answer
        with sdk.messages.stream(**common) as stream:
            return stream.get_final_message()

    told.message = {"role": "assistant", "content": None, "tool_calls": CALLS}
    told.deltas, told.finish_reason = MIXED, "tool_calls"
    first = ask(HELLO)
    assert first.stop_reason == "tool_use"
    uses = [block for block in first.content if isinstance(block, ToolUseBlock)]
    assert [(use.id, use.name, use.input) for use in uses] == [
        ("call_0", "weather", json.loads(ARGUMENTS[0])),
        ("call_1", "time", json.loads(ARGUMENTS[1])),
    ]

    told.finish_reason = "stop"
    told.message, told.deltas = {"role": "assistant", "content": "It rains"}, ({"content": "It rains"},)
    results = [{"type": "tool_result", "tool_use_id": use.id, "content": f"of {use.name}"} for use in uses]
    history = [*HELLO, first.to_param(), {"role": "user", "content": results}]
    assert blocks(ask(history)) == [{"type": "text", "text": "It rains"}]

    asked, again = (seen.json for seen in told.wait_for(2))
    assert asked["tools"] == FUNCTIONS
    assert (asked["tool_choice"], asked["parallel_tool_calls"]) == ("required", True)
    compact = [json.dumps(json.loads(a), ensure_ascii=False, separators=(",", ":")) for a in ARGUMENTS]
    assert [call["function"]["arguments"] for call in again["messages"][1]["tool_calls"]] == compact
    assert again["messages"][2:] == [
        {"role": "tool", "tool_call_id": "call_0", "content": "of weather"},
        {"role": "tool", "tool_call_id": "call_1", "content": "of time"},
    ]


@pytest.mark.proves(ROUTE, "thinking", "thinking.display", backend="openai")
def test_thinking(sdk: anthropic.Anthropic, told: ChatScript) -> None:
    told.message = {"role": "assistant", "reasoning_content": "Hm", "content": "Yes"}
    told.deltas = ({"reasoning_content": "H"}, {"reasoning_content": "m"}, {"content": "Yes"})
    shown = [{"type": "thinking", "thinking": "Hm", "signature": ""}, {"type": "text", "text": "Yes"}]
    common: Any = {"model": "echo", "max_tokens": 64, "messages": HELLO}
    message = sdk.messages.create(**common, thinking={"type": "adaptive"})
    assert blocks(message) == shown
    with sdk.messages.stream(**common, thinking={"type": "adaptive"}) as stream:
        assert blocks(stream.get_final_message()) == shown
    assert blocks(sdk.messages.create(**common)) == shown[1:]
    omitted = sdk.messages.create(**common, thinking={"type": "adaptive", "display": "omitted"})
    assert blocks(omitted) == shown[1:]
    sdk.messages.create(**{**common, "messages": [*HELLO, message.to_param(), *HELLO]})
    assert told.seen[-1].json["messages"][1] == {"role": "assistant", "reasoning_content": "Hm", "content": "Yes"}


@pytest.mark.parametrize(
    ("model", "status", "error", "kind"),
    [
        ("nonsuch", 404, anthropic.NotFoundError, "not_found_error"),
        ("test:status-400", 400, anthropic.BadRequestError, "invalid_request_error"),
        ("test:status-422", 422, anthropic.UnprocessableEntityError, "invalid_request_error"),
        ("test:status-429", 429, anthropic.RateLimitError, "rate_limit_error"),
        ("test:status-500", 502, anthropic.InternalServerError, "api_error"),
        ("test:status-503", 503, anthropic.ServiceUnavailableError, "overloaded_error"),
        ("test:html", 502, anthropic.InternalServerError, "api_error"),
        ("test:cut", 502, anthropic.InternalServerError, "api_error"),
    ],
)
@pytest.mark.parametrize("is_stream", [False, True])
def test_failures_are_the_sdks_own_exceptions(
    sdk: anthropic.Anthropic,
    told: ChatScript,
    model: str,
    status: int,
    error: type[anthropic.APIStatusError],
    kind: str,
    is_stream: bool,
) -> None:
    with pytest.raises(error) as raised:
        sdk.messages.create(model=model, max_tokens=64, messages=HELLO, stream=is_stream)
    assert raised.value.status_code == status
    assert raised.value.type == kind
    body: Any = raised.value.body
    assert set(body) == {"type", "error", "request_id"}
    assert body["request_id"] == raised.value.request_id
    assert raised.value.error_code == body["error"]["details"]["error_code"]


@pytest.mark.proves(ROUTE, "container", backend="openai", refused=True)
def test_a_refusal_names_the_field(sdk: anthropic.Anthropic, told: ChatScript) -> None:
    with pytest.raises(anthropic.BadRequestError, match="container"):
        sdk.messages.create(model="echo", max_tokens=64, messages=HELLO, container={"skills": []})
    with pytest.raises(anthropic.BadRequestError, match=r"tools\.0\.type"):
        search: Any = {"type": "web_search_20250305", "name": "web_search"}
        sdk.messages.create(model="echo", max_tokens=64, messages=HELLO, tools=[search])
    with pytest.raises(anthropic.BadRequestError, match=r"messages\.0\.content\.0"):
        document: Any = {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "x"}}
        sdk.messages.create(model="echo", max_tokens=64, messages=[{"role": "user", "content": [document]}])
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        sdk.messages.create(model="echo", max_tokens=0, messages=HELLO)
    assert told.seen == []


def test_a_key_that_is_wrong(served: Gateway) -> None:
    with (
        anthropic.Anthropic(base_url=f"http://127.0.0.1:{served.port}", api_key="wrong", max_retries=0) as stranger,
        pytest.raises(anthropic.AuthenticationError) as raised,
    ):
        stranger.messages.create(model="echo", max_tokens=64, messages=HELLO)
    assert raised.value.type == "authentication_error"


def test_a_token_as_bearer(served: Gateway, told: ChatScript) -> None:
    url = f"http://127.0.0.1:{served.port}"
    with anthropic.Anthropic(base_url=url, auth_token=TOKEN, api_key=None, max_retries=0) as client:
        assert client.messages.create(model="echo", max_tokens=64, messages=HELLO).type == "message"


def test_a_backend_that_dies_in_a_stream_is_an_error_event(served: Gateway, told: ChatScript) -> None:
    told.is_cut = True
    body = {"model": "echo", "max_tokens": 64, "messages": HELLO, "stream": True}
    answer = served.client.post(ROUTE, json=body)
    assert answer.status_code == 200
    *events, last = answer.text.removesuffix("\n\n").split("\n\n")
    assert [event.split("\n")[0] for event in events] == [
        "event: message_start",
        "event: content_block_start",
        "event: content_block_delta",
        "event: content_block_delta",
    ]
    name, data = last.split("\n")
    error = json.loads(data.removeprefix("data: "))
    assert name == "event: error"
    assert (error["type"], error["error"]["type"]) == ("error", "api_error")
    assert error["request_id"] == answer.headers["x-request-id"]


def test_the_sdk_raises_what_a_stream_breaks_off_with(sdk: anthropic.Anthropic, told: ChatScript) -> None:
    told.is_cut = True
    with (
        sdk.messages.stream(model="echo", max_tokens=64, messages=HELLO) as stream,
        pytest.raises(anthropic.APIStatusError, match="broke off"),
    ):
        stream.until_done()


def test_arguments_that_are_no_json_are_a_502(sdk: anthropic.Anthropic, told: ChatScript) -> None:
    call = {"id": "call_0", "type": "function", "function": {"name": "weather", "arguments": "{city: Paris}"}}
    told.message = {"role": "assistant", "content": None, "tool_calls": [call]}
    with pytest.raises(anthropic.InternalServerError, match="weather"):
        sdk.messages.create(model="echo", max_tokens=64, messages=HELLO, tools=TOOLS)


@pytest.mark.parametrize("is_stream", [False, True])
def test_the_clients_leaving_cancels_the_backends_work(served: Gateway, told: ChatScript, is_stream: bool) -> None:
    body = {"model": "test:hang", "max_tokens": 64, "messages": HELLO, "stream": is_stream}
    with send(served.port, ROUTE, body):
        told.wait_for(1)
    assert told.wait_for(1, left=True)


@pytest.mark.proves(ROUTE, "context_management", "output_format", backend="openai")
def test_the_sdks_beta_side(sdk: anthropic.Anthropic, told: ChatScript) -> None:
    """As agents use it: `?beta=true`, a header of betas, an edit that keeps everything."""
    message = sdk.beta.messages.create(
        model="echo",
        max_tokens=64,
        messages=HELLO,
        betas=["context-management-2025-06-27"],
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        extra_body={"output_format": {"type": "json_schema", "schema": SCHEMA}},
    )
    assert message.content[0].to_dict() == {"type": "text", "text": "Hello"}
    request = sent(told)
    assert set(request) == {"model", "max_tokens", "messages", "response_format"}
    with pytest.raises(anthropic.BadRequestError, match="mcp_servers"):
        server: Any = {"type": "url", "url": "https://example.org/mcp", "name": "x"}
        sdk.beta.messages.create(model="echo", max_tokens=64, messages=HELLO, mcp_servers=[server])


def test_a_405_is_of_its_own_shape(served: Gateway) -> None:
    answer = served.client.get(ROUTE)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.proves("/v1/messages/count_tokens", "model", "messages", "system", "tools", backend="openai")
def test_tokens_are_counted_by_the_backend(sdk: anthropic.Anthropic, told: ChatScript) -> None:
    told.paths["/v1/chat/completions/input_tokens"] = lambda _: {"input_tokens": 12}
    counted = sdk.messages.count_tokens(model="fast", messages=HELLO, system="Be brief", tools=TOOLS)
    assert counted.input_tokens == 12
    assert sent(told) == {
        "model": "echo",
        "messages": [{"role": "system", "content": "Be brief"}, *HELLO],
        "tools": FUNCTIONS,
    }


@pytest.mark.proves(
    "/v1/messages/count_tokens",
    *("tool_choice", "thinking", "output_config.effort", "output_config.format", "output_format"),
    *("cache_control", "context_management", "speed", "max_tokens", "stop_sequences", "metadata", "service_tier"),
    backend="openai",
)
@pytest.mark.parametrize(
    "fields",
    [
        {"output_config": {"effort": "medium", "format": FORMAT}, "thinking": {"type": "adaptive"}},
        {"output_format": FORMAT, "thinking": {"type": "enabled", "budget_tokens": 5_000}},
    ],
)
def test_the_prompt_that_is_counted_is_the_chats(served: Gateway, told: ChatScript, fields: dict[str, Any]) -> None:
    told.paths["/v1/chat/completions/input_tokens"] = lambda _: {"input_tokens": 12}
    body = {
        "model": "fast",
        "messages": HELLO,
        "tools": TOOLS,
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "cache_control": {"type": "ephemeral"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "speed": "standard",
        "max_tokens": 9_000,
        "stop_sequences": ["end"],
        "metadata": {"user_id": "me"},
        "service_tier": "auto",
        **fields,
    }
    assert served.client.post(f"{ROUTE}/count_tokens", json=body).json() == {"input_tokens": 12}
    assert sent(told) == {
        "model": "echo",
        "messages": HELLO,
        "tools": FUNCTIONS,
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "reasoning_effort": "medium",
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}},
        "max_tokens": 9_000,
        "stop": ["end"],
        "user": "me",
        "service_tier": "auto",
    }


@pytest.mark.proves("/v1/messages/count_tokens", "tool_choice", "thinking", "speed", backend="openai", refused=True)
@pytest.mark.parametrize(
    ("field", "value"),
    [("tool_choice", {"type": "some"}), ("thinking", {"type": "enabled"}), ("speed", "fast")],
)
def test_a_count_of_what_cannot_be_asked_is_refused(served: Gateway, told: ChatScript, field: str, value: Any) -> None:
    answer = served.client.post(f"{ROUTE}/count_tokens", json={"model": "fast", "messages": HELLO, field: value})
    assert answer.status_code == 400
    assert field in answer.json()["error"]["message"]
    assert told.seen == []


@pytest.mark.proves("/v1/messages/count_tokens", "model", backend="openai", refused=True)
def test_a_backend_without_a_tokenizer_says_so(sdk: anthropic.Anthropic, told: ChatScript) -> None:
    with pytest.raises(anthropic.BadRequestError, match="no route to count tokens") as raised:
        sdk.messages.count_tokens(model="fast", messages=HELLO)
    assert raised.value.error_code == "capability_not_supported"


def test_a_count_that_is_none_is_a_502(sdk: anthropic.Anthropic, told: ChatScript) -> None:
    told.paths["/v1/chat/completions/input_tokens"] = lambda _: {"tokens": []}
    with pytest.raises(anthropic.InternalServerError, match="input_tokens"):
        sdk.messages.count_tokens(model="fast", messages=HELLO)


def test_the_page_describes_it(served: Gateway) -> None:
    page = served.client.get("/openapi.json").json()
    assert page["components"]["schemas"]["AnthropicError"]["properties"]["type"] == {"const": "error"}
    assert "text/event-stream" in page["paths"]["/v1/messages"]["post"]["responses"]["200"]["content"]
