"""OpenAI's Python SDK, unmodified, over `/v1/responses`: tools in streams, structure, stored conversations."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest
from openai.types.responses import FunctionToolParam, ParsedResponse, ResponseFunctionToolCall, ResponseInputParam
from pydantic import BaseModel

from tests.clients import upstream
from tests.clients.appliance import Appliance
from tests.clients.upstream import ToolCaller
from tests.support import chat_script

PATH = "/v1/responses"
QUESTION = "What is the weather in Zürich?"
TOOLS: list[FunctionToolParam] = [
    {
        "type": "function",
        "name": name,
        "description": "d",
        "parameters": {"type": "object", "properties": {}},
        "strict": False,
    }
    for name in upstream.NAMES
]


class Weather(BaseModel):
    city: str
    degrees: int


def calls_of(response: Any) -> list[ResponseFunctionToolCall]:
    return [item for item in response.output if item.type == "function_call"]


def results(calls: list[ResponseFunctionToolCall]) -> ResponseInputParam:
    return [{"type": "function_call_output", "call_id": call.call_id, "output": "18 degrees"} for call in calls]


@pytest.mark.proves(PATH, "tools", "previous_response_id", "input", backend="openai")
def test_a_round_of_tools(sdk: openai.OpenAI, caller: ToolCaller) -> None:
    caller.seen.clear()
    asked = sdk.responses.create(model=upstream.MODEL, input=QUESTION, tools=TOOLS)
    calls = calls_of(asked)
    assert [(call.name, call.arguments) for call in calls] == list(zip(upstream.NAMES, upstream.ARGUMENTS, strict=True))
    answered = sdk.responses.create(model=upstream.MODEL, input=results(calls), previous_response_id=asked.id)
    assert answered.output_text == upstream.FINAL
    assert answered.status == "completed"
    assert answered.usage is not None
    assert answered.usage.total_tokens == chat_script.USAGE["total_tokens"]
    roles = [message["role"] for message in caller.requests[-1]["messages"]]
    assert roles == ["user", "assistant", "tool", "tool"]
    # As libraries do that keep the conversation themselves: what came goes back whole.
    history: list[Any] = [{"role": "user", "content": QUESTION}, *asked.output, *results(calls)]
    again = sdk.responses.create(model=upstream.MODEL, input=history, store=False)
    assert again.output_text == upstream.FINAL
    assert caller.requests[-1]["messages"] == caller.requests[-2]["messages"]


@pytest.mark.proves(PATH, "stream", "tools", backend="openai")
def test_tools_in_a_stream_keep_every_byte(sdk: openai.OpenAI) -> None:
    arguments = dict.fromkeys((1, 2), "")
    with sdk.responses.stream(model=upstream.MODEL, input=QUESTION, tools=TOOLS) as stream:
        for event in stream:
            if event.type == "response.function_call_arguments.delta":
                arguments[event.output_index + 1] += event.delta
                assert event.snapshot == arguments[event.output_index + 1]
        final = stream.get_final_response()
    assert tuple(arguments.values()) == upstream.ARGUMENTS
    assert [call.arguments for call in calls_of(final)] == list(upstream.ARGUMENTS)
    with sdk.responses.stream(
        model=upstream.MODEL, input=results(calls_of(final)), previous_response_id=final.id
    ) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    assert text == upstream.FINAL


@pytest.mark.proves(PATH, "stream", backend="openai")
def test_a_stream_by_create_ends_with_the_response_that_is_stored(sdk: openai.OpenAI) -> None:
    events = list(sdk.responses.create(model=upstream.MODEL, input=QUESTION, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last = events[-1]
    assert last.type == "response.completed"
    assert sdk.responses.retrieve(last.response.id) == last.response


@pytest.mark.proves(PATH, "text.format", backend="openai")
def test_structured_output(sdk: openai.OpenAI, caller: ToolCaller) -> None:
    caller.seen.clear()
    parsed: ParsedResponse[Weather] = sdk.responses.parse(model=upstream.MODEL, input=QUESTION, text_format=Weather)
    assert parsed.output_parsed == Weather(city="Zürich", degrees=18)
    schema = caller.requests[0]["response_format"]["json_schema"]
    assert (schema["name"], schema["strict"]) == ("Weather", True)
    assert schema["schema"]["required"] == ["city", "degrees"]
    with sdk.responses.stream(model=upstream.MODEL, input=QUESTION, text_format=Weather) as stream:
        assert stream.get_final_response().output_parsed == Weather(city="Zürich", degrees=18)


@pytest.mark.proves(PATH, "store", "instructions", "metadata", backend="openai")
def test_stored_responses(sdk: openai.OpenAI) -> None:
    kept = sdk.responses.create(
        model=upstream.MODEL, input=QUESTION, tools=TOOLS, instructions="Be brief.", metadata={"topic": "weather"}
    )
    assert sdk.responses.retrieve(kept.id) == kept
    assert (kept.instructions, kept.metadata) == ("Be brief.", {"topic": "weather"})
    after = sdk.responses.create(model=upstream.MODEL, input=results(calls_of(kept)), previous_response_id=kept.id)
    assert after.previous_response_id == kept.id
    items = list(sdk.responses.input_items.list(after.id, order="asc", limit=2))
    assert [item.type for item in items] == ["message", *["function_call"] * 2, *["function_call_output"] * 2]
    sdk.responses.delete(kept.id)
    with pytest.raises(openai.NotFoundError, match=kept.id):
        sdk.responses.retrieve(kept.id)


@pytest.mark.proves(PATH, "previous_response_id", "tools", "background", backend="openai", refused=True)
def test_refusals_are_the_errors_that_libraries_look_for(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        sdk.responses.create(model=upstream.MODEL, input=QUESTION, previous_response_id="resp_gone")
    assert (error.value.code, error.value.param) == ("previous_response_not_found", "previous_response_id")
    with pytest.raises(openai.BadRequestError) as error:
        sdk.responses.create(model=upstream.MODEL, input=QUESTION, background=True)
    assert error.value.param == "background"


def test_what_home_assistant_sends(sdk: openai.OpenAI) -> None:
    """Its own functions beside a search that OpenAI would do, sealed reasoning, nothing stored."""
    asked = sdk.responses.with_raw_response.create(
        model=upstream.MODEL,
        instructions="You are a voice assistant.",
        input=[{"type": "message", "role": "user", "content": QUESTION}],
        tools=[*TOOLS, {"type": "web_search", "search_context_size": "medium"}],
        include=["reasoning.encrypted_content", "web_search_call.action.sources"],
        reasoning={"effort": "low", "summary": "auto"},
        text={"verbosity": "medium"},
        truncation="auto",
        parallel_tool_calls=True,
        max_output_tokens=3_000,
        store=False,
        user="home",
    )
    assert asked.headers["x-gateway-ignored"] == "include.web_search_call.action.sources, tools.web_search"
    assert tuple(call.arguments for call in calls_of(asked.parse())) == upstream.ARGUMENTS


def test_the_asynchronous_client(alone: Appliance) -> None:
    async def ask() -> tuple[str, ...]:
        async with (
            openai.AsyncOpenAI(base_url=alone.url, api_key=alone.token, max_retries=0, timeout=60) as client,
            client.responses.stream(model=upstream.MODEL, input=QUESTION, tools=TOOLS) as stream,
        ):
            return tuple(call.arguments for call in calls_of(await stream.get_final_response()))

    assert asyncio.run(ask()) == upstream.ARGUMENTS
