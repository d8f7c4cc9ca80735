"""Tool calls of a real model: SmolLM2 in llama.cpp, through the gateway, whole and as a stream.

A model of 135 million parameters calls when it has seen calls: the conversation holds a few. That a call of the named
function comes is llama.cpp's grammar (`tool_choice: required`); which city it names is the model's own.
"""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from tests.clients.weather import EARLIER, QUESTION, TOOLS, city_called

MODEL = "real"
REQUEST: dict[str, Any] = {"model": MODEL, "tools": TOOLS, "temperature": 0, "max_tokens": 60}


@pytest.mark.proves("/v1/chat/completions", "messages", "tools", "tool_choice", backend="llamacpp")
def test_a_call(fleet_client: openai.OpenAI) -> None:
    answer = fleet_client.chat.completions.create(messages=[*EARLIER, QUESTION], tool_choice="required", **REQUEST)
    assert answer.choices[0].finish_reason == "tool_calls"
    assert city_called(answer.choices[0].message) == "Paris"


@pytest.mark.proves("/v1/chat/completions", "tools", "tool_choice", "stream", backend="llamacpp")
def test_a_whole_round_as_streams(fleet_client: openai.OpenAI) -> None:
    """The model calls, the client runs the tool, the model says what came of it."""
    messages: list[Any] = [*EARLIER, QUESTION]
    with fleet_client.chat.completions.stream(messages=messages, tool_choice="required", **REQUEST) as stream:
        pieces = [event.arguments_delta for event in stream if event.type == "tool_calls.function.arguments.delta"]
        message = stream.get_final_completion().choices[0].message
    assert len(pieces) > 2, "the arguments came in one piece"
    assert json.loads("".join(pieces)) == {"city": city_called(message)}
    (call,) = message.tool_calls or []
    result = {"role": "tool", "tool_call_id": call.id, "content": "18 degrees"}
    messages += [message.to_dict(), result]
    said: Any = fleet_client.chat.completions.create(messages=messages, stream=True, **REQUEST)
    chunks = list(said)
    words = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert "18 degrees" in words
    assert chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.proves("/v1/chat/completions", "tool_choice", "tools", backend="llamacpp")
@pytest.mark.parametrize("name", ["get_weather", "get_time"])
def test_a_call_of_the_function_that_is_named(fleet_client: openai.OpenAI, name: str) -> None:
    """llama.cpp itself takes the object for `auto`; the conversation's calls are all of get_weather."""
    other = {"type": "function", "function": {**TOOLS[0]["function"], "name": "get_time"}}
    request = {**REQUEST, "tools": [*TOOLS, other]}
    choice: Any = {"type": "function", "function": {"name": name}}
    answer = fleet_client.chat.completions.create(messages=[*EARLIER, QUESTION], tool_choice=choice, **request)
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == name


@pytest.mark.proves("/v1/chat/completions", "tool_choice", backend="llamacpp", refused=True)
@pytest.mark.parametrize(
    "choice",
    [
        {"type": "function", "function": {"name": "other"}},
        {"type": "function"},
        {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": TOOLS}},
    ],
)
def test_a_choice_that_names_no_function_is_refused(fleet_client: openai.OpenAI, choice: Any) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        fleet_client.chat.completions.create(messages=[QUESTION], tool_choice=choice, **REQUEST)
    assert raised.value.param == "tool_choice"


def test_no_call_where_none_is_wanted(fleet_client: openai.OpenAI) -> None:
    answer = fleet_client.chat.completions.create(messages=[*EARLIER, QUESTION], tool_choice="none", **REQUEST)
    assert not answer.choices[0].message.tool_calls
