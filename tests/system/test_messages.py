"""Anthropic's Messages API through a real gateway to a scripted backend: the unmodified SDK, and its own errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic.types import ToolParam

from tests.support.chat_script import ChatScript
from tests.support.gateways import TOKEN, Gateway, gateway, write_files
from tests.support.sockets import send

ROUTE = "/v1/messages"
COUNT = f"{ROUTE}/count_tokens"
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
ASKED: dict[str, Any] = {"model": "echo", "max_tokens": 64, "messages": HELLO}
SCHEMA: dict[str, object] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL: ToolParam = {"name": "weather", "description": "Tells it", "input_schema": SCHEMA, "strict": True}
FORMAT = {"type": "json_schema", "schema": SCHEMA}
COUNTING = "/v1/chat/completions/input_tokens"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, script: ChatScript) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("messages")
    write_files(home, script.url)
    with gateway(home) as running:
        yield running


@pytest.fixture
def told(script: ChatScript) -> ChatScript:
    """The backend with nothing seen yet, answering as it does by itself."""
    script.seen.clear()
    script.paths.clear()
    script.choice = {}
    return script


@pytest.fixture(scope="module")
def sdk(served: Gateway) -> Iterator[anthropic.Anthropic]:
    """The SDK sends its key as `x-api-key`."""
    url = f"http://127.0.0.1:{served.port}"
    with anthropic.Anthropic(base_url=url, api_key=TOKEN, max_retries=0, timeout=20) as client:
        yield client


@pytest.mark.proves(ROUTE, "model", "max_tokens", "messages", backend="openai")
def test_a_message(sdk: anthropic.Anthropic, told: ChatScript) -> None:
    answer = sdk.messages.with_raw_response.create(model="fast", max_tokens=64, messages=HELLO)
    message = answer.parse()
    assert [block.to_dict() for block in message.content] == [{"type": "text", "text": "Hello"}]
    assert message.id.startswith("msg_")
    assert (message.usage.input_tokens, message.usage.output_tokens) == (31, 17)
    assert told.requests == [{"model": "echo", "max_tokens": 64, "messages": HELLO}]
    assert answer.headers["x-backend-used"] == "test"
    assert answer.headers["x-router-reason"] == "alias:model"
    assert answer.headers["request-id"] == answer.headers["x-request-id"] == message._request_id


@pytest.mark.proves(ROUTE, "stream", backend="openai")
def test_a_stream(sdk: anthropic.Anthropic, told: ChatScript) -> None:
    with sdk.messages.stream(model="fast", max_tokens=64, messages=HELLO) as stream:
        assert list(stream.text_stream) == ["Hel", "lo"]
        assert stream.get_final_message().stop_reason == "end_turn"
    assert stream.response.headers["content-type"] == "text/event-stream"
    assert stream.response.headers["x-accel-buffering"] == "no"
    assert stream.response.headers["request-id"] == stream.response.headers["x-request-id"]


def test_an_answer_is_read_with_its_request(sdk: anthropic.Anthropic, told: ChatScript) -> None:
    """Words of the client's are not said again, and a sequence that it named is told."""
    told.choice = {"stop_reason": "END"}
    messages = [*HELLO, {"role": "assistant", "content": "Hel"}]
    message = sdk.messages.create(**{**ASKED, "messages": messages}, stop_sequences=["END"])
    assert [block.to_dict() for block in message.content] == [{"type": "text", "text": "lo"}]
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "END")


def test_a_stream_that_breaks_off_raises(sdk: anthropic.Anthropic, told: ChatScript) -> None:
    with (
        sdk.messages.stream(**{**ASKED, "model": "die-mid"}) as stream,
        pytest.raises(anthropic.APIStatusError, match="broke off") as raised,
    ):
        stream.until_done()
    body: Any = raised.value.body
    assert (body["type"], body["error"]["type"]) == ("error", "api_error")
    assert body["request_id"] == stream.response.headers["x-request-id"]


@pytest.mark.parametrize(
    ("model", "status", "error", "kind"),
    [
        ("nonsuch", 404, anthropic.NotFoundError, "not_found_error"),
        ("test:status-422", 422, anthropic.UnprocessableEntityError, "invalid_request_error"),
        ("test:status-429", 429, anthropic.RateLimitError, "rate_limit_error"),
        ("test:status-500", 502, anthropic.InternalServerError, "api_error"),
        ("test:status-503", 503, anthropic.ServiceUnavailableError, "overloaded_error"),
    ],
)
def test_failures_are_the_sdks_own_exceptions(
    sdk: anthropic.Anthropic,
    told: ChatScript,
    model: str,
    status: int,
    error: type[anthropic.APIStatusError],
    kind: str,
) -> None:
    with pytest.raises(error) as raised:
        sdk.messages.create(**{**ASKED, "model": model})
    assert (raised.value.status_code, raised.value.type) == (status, kind)
    body: Any = raised.value.body
    assert set(body) == {"type", "error", "request_id"}
    assert body["request_id"] == raised.value.request_id == raised.value.response.headers["x-request-id"]
    assert raised.value.error_code == body["error"]["details"]["error_code"]


def test_a_refusal_names_the_field(sdk: anthropic.Anthropic, told: ChatScript) -> None:
    with pytest.raises(anthropic.BadRequestError, match=r"'tools\.0\.type' is not supported"):
        sdk.messages.create(**{**ASKED, "tools": [{"type": "functoin", "name": "f"}]})
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        sdk.messages.create(**{**ASKED, "max_tokens": 0})
    assert told.seen == []


def test_the_token_as_bearer_or_a_wrong_one(sdk: anthropic.Anthropic, told: ChatScript) -> None:
    with anthropic.Anthropic(base_url=sdk.base_url, auth_token=TOKEN, max_retries=0) as client:
        assert client.messages.create(**ASKED).type == "message"
    with pytest.raises(anthropic.AuthenticationError) as raised:
        sdk.with_options(api_key="wrong").messages.create(**ASKED)
    assert raised.value.type == "authentication_error"


@pytest.mark.parametrize("is_stream", [False, True])
def test_the_clients_leaving_cancels_the_backends_work(served: Gateway, told: ChatScript, is_stream: bool) -> None:
    with send(served.port, ROUTE, {**ASKED, "model": "test:hang", "stream": is_stream}):
        told.wait_for(1)
    assert told.wait_for(1, left=True)


@pytest.mark.proves(ROUTE, "context_management", "output_format", backend="openai")
def test_the_sdks_beta_side(sdk: anthropic.Anthropic, told: ChatScript) -> None:
    """As agents use it: `?beta=true`, a header of betas, an edit that keeps everything."""
    sdk.beta.messages.create(
        **ASKED,
        betas=["context-management-2025-06-27"],
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        extra_body={"output_format": FORMAT},
    )
    assert set(told.requests[0]) == {*ASKED, "response_format"}


def test_a_405_is_of_its_own_shape(served: Gateway) -> None:
    answer = served.client.get(ROUTE)
    assert (answer.status_code, answer.headers["allow"]) == (405, "OPTIONS, POST")
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.proves(
    COUNT,
    *("model", "messages", "system", "tools", "tool_choice", "thinking", "output_config.effort"),
    *("output_config.format", "output_format", "cache_control", "context_management", "speed", "max_tokens"),
    *("stop_sequences", "metadata", "service_tier"),
    backend="openai",
)
@pytest.mark.parametrize(
    "fields",
    [
        {"output_config": {"effort": "medium", "format": FORMAT}, "thinking": {"type": "adaptive"}},
        {"output_format": FORMAT, "thinking": {"type": "enabled", "budget_tokens": 5_000}},
    ],
)
def test_the_prompt_that_is_counted_is_the_chats(
    sdk: anthropic.Anthropic, told: ChatScript, fields: dict[str, Any]
) -> None:
    told.paths[COUNTING] = lambda _: {"input_tokens": 12}
    more = {
        **fields,
        "cache_control": {"type": "ephemeral"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "speed": "standard",
        "max_tokens": 9_000,
        "stop_sequences": ["end"],
        "metadata": {"user_id": "me"},
        "service_tier": "auto",
    }
    choice: Any = {"type": "any", "disable_parallel_tool_use": True}
    common: Any = {"model": "fast", "messages": HELLO, "system": "Be brief", "tools": [TOOL], "tool_choice": choice}
    assert sdk.messages.count_tokens(**common, extra_body=more).input_tokens == 12
    sdk.messages.create(**common, max_tokens=9_000, extra_body=more)
    counted, chat = told.requests
    assert counted == chat
    assert chat["messages"] == [{"role": "system", "content": "Be brief"}, *HELLO]


@pytest.mark.proves(COUNT, "tool_choice", "thinking", "speed", backend="openai", refused=True)
@pytest.mark.parametrize(
    ("field", "value"), [("tool_choice", {"type": "some"}), ("thinking", {"type": "enabled"}), ("speed", "fast")]
)
def test_a_count_of_what_cannot_be_asked_is_refused(served: Gateway, told: ChatScript, field: str, value: Any) -> None:
    answer = served.client.post(COUNT, json={"model": "fast", "messages": HELLO, field: value})
    assert answer.status_code == 400
    assert field in answer.json()["error"]["message"]
    assert told.seen == []


@pytest.mark.proves(COUNT, "model", backend="openai", refused=True)
def test_a_backend_that_does_not_count_says_so(sdk: anthropic.Anthropic, told: ChatScript) -> None:
    with pytest.raises(anthropic.BadRequestError, match="no route to count tokens") as raised:
        sdk.messages.count_tokens(model="fast", messages=HELLO)
    assert raised.value.error_code == "capability_not_supported"
    told.paths[COUNTING] = lambda _: {"tokens": []}
    with pytest.raises(anthropic.InternalServerError, match="input_tokens"):
        sdk.messages.count_tokens(model="fast", messages=HELLO)
