"""Where the programs here find their models, and how they say what they got: one JSON object on standard output."""

from __future__ import annotations

import json
import os
from typing import Any

APPLIANCE: dict[str, Any] = {"base_url": os.environ["APPLIANCE_URL"], "api_key": os.environ["APPLIANCE_TOKEN"]}
TOOLS: dict[str, Any] = {"base_url": os.environ["TOOLS_URL"], "api_key": os.environ["TOOLS_TOKEN"]}
REAL = "default"  # the appliance's own small model
CALLER = "tool-caller-in-turn"  # the scripted model that calls tools, one after the other
EMBEDDER = "all-minilm-l6-v2"
QUESTION = "What is the weather in Zürich?"


def say(**found: Any) -> None:
    print(json.dumps(found))


def get_weather(city: str, note: str) -> str:
    """The weather of a city."""
    return f"18 degrees in {city} ({note})"


def get_time(zone: str) -> str:
    """The time in a zone."""
    return f"noon in {zone}"
