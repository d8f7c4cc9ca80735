"""A conversation about the weather of cities, in which a small model calls a tool since it has seen calls."""

from __future__ import annotations

import json
from typing import Any

from openai.types.chat import ChatCompletionMessage

CITIES = {"Rome": "21", "Oslo": "4", "Lima": "19"}
QUESTION: Any = {"role": "user", "content": "What is the weather in Paris?"}
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


def conversation() -> list[Any]:
    messages: list[Any] = []
    for number, (city, degrees) in enumerate(CITIES.items()):
        function = {"name": "get_weather", "arguments": json.dumps({"city": city})}
        call = {"id": f"call_{number}", "type": "function", "function": function}
        messages += [
            {"role": "user", "content": f"What is the weather in {city}?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": call["id"], "content": f"{degrees} degrees"},
            {"role": "assistant", "content": f"It is {degrees} degrees in {city}."},
        ]
    return messages


EARLIER = conversation()


def city_called(message: ChatCompletionMessage) -> str:
    """The city that the message's one call asks about."""
    (call,) = message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "get_weather"
    arguments = json.loads(call.function.arguments)
    assert list(arguments) == ["city"]
    city: str = arguments["city"]
    return city
