"""The real LiteLLM proxy as a backend, itself in front of the real llama.cpp."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from tests.clients.appliance import Appliance
from tests.clients.fidelity import check_stream, payload, post, sent
from tests.clients.recorder import Recorder
from tests.clients.servers import LITELLM_KEY, LITELLM_MODEL
from tests.clients.weather import EARLIER, QUESTION, TOOLS, city_called

MODEL = "proxied"
HELLO: list[Any] = [{"role": "user", "content": "Say hello to the world."}]
BODY: dict[str, Any] = {"model": MODEL, "messages": HELLO, "max_tokens": 8, "temperature": 0}
SCHEMA: dict[str, object] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


@pytest.mark.proves("/v1/chat/completions", "messages", "max_tokens", "temperature", backend="litellm")
def test_chat(fleet_client: openai.OpenAI) -> None:
    raw = fleet_client.chat.completions.with_raw_response.create(**BODY)
    answer = raw.parse()
    assert raw.headers["x-backend-used"] == "litellm"
    assert raw.headers["x-model-used"] == LITELLM_MODEL
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == BODY["max_tokens"]


def test_models_are_listed(fleet_client: openai.OpenAI) -> None:
    assert f"litellm:{LITELLM_MODEL}" in [model.id for model in fleet_client.models.list()]


@pytest.mark.proves("/v1/chat/completions", "stream", "stream_options.include_usage", backend="litellm")
def test_chat_streams_byte_for_byte(fleet: Appliance, litellm: Recorder) -> None:
    events = check_stream(fleet, litellm, "/chat/completions", BODY)
    usage = next(payload(event)["usage"] for event in events if payload(event).get("usage"))
    assert usage["completion_tokens"] == BODY["max_tokens"]


def test_answers_pass_byte_for_byte(fleet: Appliance, litellm: Recorder) -> None:
    received = post(fleet, "/chat/completions", BODY)
    assert received == sent(litellm, received)


@pytest.mark.proves("/v1/completions", "prompt", "max_tokens", "stream", backend="litellm")
def test_completions(fleet_client: openai.OpenAI) -> None:
    answer = fleet_client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=8)
    assert answer.choices[0].text
    assert answer.usage is not None and answer.usage.completion_tokens == 8
    pieces = fleet_client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=8, stream=True)
    assert "".join(piece.choices[0].text or "" for piece in pieces if piece.choices)


@pytest.mark.proves("/v1/chat/completions", "response_format", backend="litellm")
def test_structured_output(fleet_client: openai.OpenAI) -> None:
    answer = fleet_client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Name a city."}],
        max_tokens=100,
        response_format={"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}},
    )
    assert isinstance(json.loads(answer.choices[0].message.content or "")["city"], str)


@pytest.mark.proves("/v1/chat/completions", "tools", "tool_choice", backend="litellm")
def test_tool_calls(fleet_client: openai.OpenAI) -> None:
    with fleet_client.chat.completions.stream(
        model=MODEL, messages=[*EARLIER, QUESTION], tools=TOOLS, tool_choice="required", temperature=0, max_tokens=60
    ) as stream:
        choice = stream.get_final_completion().choices[0]
    assert choice.finish_reason == "tool_calls"
    assert city_called(choice.message) == "Paris"


def test_what_litellm_refuses(fleet_client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="no-such-model") as error:
        fleet_client.chat.completions.create(model="litellm:no-such-model", messages=HELLO)
    assert LITELLM_KEY not in str(error.value)
