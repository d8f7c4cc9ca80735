"""OpenAI's Agents SDK with its two kinds of models: chat completions and responses."""

from __future__ import annotations

import asyncio
from typing import Any

from agents import (
    Agent,
    Model,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from pydantic import BaseModel

from tests.clients.programs import where

TOOLS = [function_tool(where.get_weather), function_tool(where.get_time)]


class Place(BaseModel):
    city: str
    degrees: int


async def rounds(model: Model) -> dict[str, Any]:
    """A whole round of call, result and words, at once and as a stream; then a structured answer."""
    agent = Agent(name="weather", instructions="Answer shortly.", model=model, tools=TOOLS)
    answer = await Runner.run(agent, where.QUESTION)
    streamed = Runner.run_streamed(agent, where.QUESTION)
    kinds = [event.data.type async for event in streamed.stream_events() if event.type == "raw_response_event"]
    placer = Agent(name="place", model=model, output_type=Place)
    return {
        "results": [item.output for item in answer.new_items if item.type == "tool_call_output_item"],
        "final": answer.final_output,
        "streamed": streamed.final_output,
        "events": sorted(set(kinds)),
        "structured": (await Runner.run(placer, "Name a place.")).final_output.model_dump(),
    }


async def real(model: Model) -> str:
    answer = await Runner.run(Agent(name="greeter", model=model), "Say hello.")
    return str(answer.final_output)


async def main() -> None:
    set_tracing_disabled(True)
    appliance, tools = AsyncOpenAI(max_retries=0, **where.APPLIANCE), AsyncOpenAI(max_retries=0, **where.TOOLS)
    where.say(
        real_chat=await real(OpenAIChatCompletionsModel(where.REAL, appliance)),
        real_responses=await real(OpenAIResponsesModel(where.REAL, appliance)),
        chat=await rounds(OpenAIChatCompletionsModel(where.CALLER, tools)),
        responses=await rounds(OpenAIResponsesModel(where.CALLER, tools)),
    )


asyncio.run(main())
