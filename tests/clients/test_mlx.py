"""The real mlx_lm.server as a backend. Its model says what tests/clients/mlx_model.py tells it to."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from tests.clients.appliance import Appliance
from tests.clients.fidelity import check_stream, payload, post, sent
from tests.clients.recorder import Recorder

MODEL = "apple"
WORDS, ANSWER = "Hello from Zürich.", "It is 18 degrees there!"
ASK: list[Any] = [{"role": "user", "content": "What is the weather?"}]
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}
    for name in ("get_weather", "get_time")
]
CALLS = [("get_weather", {"city": "Zürich"}), ("get_time", {"zone": "Europe/Zurich"})]


@pytest.mark.proves("/v1/chat/completions", "messages", "max_tokens", backend="mlx")
def test_chat(fleet_client: openai.OpenAI) -> None:
    raw = fleet_client.chat.completions.with_raw_response.create(model=MODEL, messages=ASK)
    answer = raw.parse()
    assert raw.headers["x-backend-used"] == "mlx"
    assert answer.choices[0].message.content == WORDS
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    cut = fleet_client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=2)
    assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == ("Hello from", "length")


@pytest.mark.proves("/v1/chat/completions", "stream", "stream_options.include_usage", backend="mlx")
def test_chat_streams_byte_for_byte(fleet: Appliance, mlx: Recorder) -> None:
    events = check_stream(fleet, mlx, "/chat/completions", {"model": MODEL, "messages": ASK})
    assert events[0].startswith(b": "), "this server's streams begin with a comment"
    choices = [choice for event in events for choice in payload(event).get("choices", [])]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == WORDS


@pytest.mark.proves("/v1/completions", "prompt", "max_tokens", "stream", "stream_options.include_usage", backend="mlx")
def test_completions(fleet: Appliance, mlx: Recorder, fleet_client: openai.OpenAI) -> None:
    answer = fleet_client.completions.create(model=MODEL, prompt="Say", max_tokens=2)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("Hello from", "length")
    check_stream(fleet, mlx, "/completions", {"model": MODEL, "prompt": "Say"})
    pieces = fleet_client.completions.create(model=MODEL, prompt="Say", stream=True)
    assert "".join(piece.choices[0].text for piece in pieces) == WORDS


def test_answers_pass_byte_for_byte(fleet: Appliance, mlx: Recorder) -> None:
    for path, body in (("/chat/completions", {"messages": ASK}), ("/completions", {"prompt": "Say"})):
        received = post(fleet, path, {"model": MODEL, **body})
        assert received == sent(mlx, received)


@pytest.mark.proves("/v1/chat/completions", "logprobs", "top_logprobs", "seed", "temperature", backend="mlx")
def test_logprobs(fleet_client: openai.OpenAI) -> None:
    answer = fleet_client.chat.completions.create(
        model=MODEL, messages=ASK, logprobs=True, top_logprobs=2, seed=1, temperature=0.5
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert logprobs.content[0].token == "Hello"
    assert len(logprobs.content[0].top_logprobs) == 2


@pytest.mark.proves("/v1/chat/completions", "stop", backend="mlx")
def test_stop(fleet_client: openai.OpenAI) -> None:
    answer = fleet_client.chat.completions.create(model=MODEL, messages=ASK, stop=".")
    assert answer.choices[0].message.content == WORDS.removesuffix(".")


@pytest.mark.proves("/v1/chat/completions", "tools", "stream", backend="mlx")
def test_tool_calls(fleet: Appliance, mlx: Recorder, fleet_client: openai.OpenAI) -> None:
    answer = fleet_client.chat.completions.create(model=MODEL, messages=ASK, tools=TOOLS)
    calls = answer.choices[0].message.tool_calls or []
    made = [(call.function.name, json.loads(call.function.arguments)) for call in calls if call.type == "function"]
    assert made == CALLS
    with fleet_client.chat.completions.stream(model=MODEL, messages=ASK, tools=TOOLS) as stream:
        choice = stream.get_final_completion().choices[0]
    assert [json.loads(call.function.arguments) for call in choice.message.tool_calls or []] == [a for _, a in CALLS]
    assert choice.finish_reason == "tool_calls"
    check_stream(fleet, mlx, "/chat/completions", {"model": MODEL, "messages": ASK, "tools": TOOLS})


def test_a_tools_result_is_answered(fleet_client: openai.OpenAI) -> None:
    """The whole round: a call, its result, words; the client runs the tool."""
    message = fleet_client.chat.completions.create(model=MODEL, messages=ASK, tools=TOOLS).choices[0].message
    call = (message.tool_calls or [])[0]
    result = {"role": "tool", "tool_call_id": call.id, "content": "18"}
    messages = [*ASK, message.to_dict(), result]
    stream = fleet_client.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == ANSWER


def test_what_mlx_refuses(fleet_client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature") as error:
        fleet_client.chat.completions.create(model=MODEL, messages=ASK, temperature=-1)
    assert error.value.type == "invalid_request_error"


def test_a_model_that_mlx_does_not_have(fleet_client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="snapshot"):  # MLX's own words
        fleet_client.chat.completions.create(model="mlx:no-such-model", messages=ASK)
