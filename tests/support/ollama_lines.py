"""What Ollama says, line by line, and the adapter that its tests share."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from gateway.backends.protocols.base import Adapter
from gateway.backends.protocols.ollama.answer import OllamaAdapter

from tests.support.faces.ollama import go_json
from tests.support.pieces import json_values

Json = dict[str, Any]
ADAPTER: Adapter = OllamaAdapter()
HEAD = {"model": "m", "created_at": "2026-11-21T10:00:00Z"}
COUNTS = {"prompt_eval_count": 7, "eval_count": 5}
LAST = {**HEAD, "message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop", **COUNTS}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}}}
OTHER = {"type": "function", "function": {"name": "g"}}
ANY_JSON = json_values(is_finite=True)


def ndjson(*lines: Json) -> bytes:
    return b"".join(go_json(line) + b"\n" for line in lines)


def delta_line(**message: Any) -> Json:
    return {**HEAD, "message": {"role": "assistant", "content": "", **message}, "done": False}


def recorded_shapes(seed: int) -> Iterator[list[Json]]:
    """Answers as Ollama streams them: a token a line; thinking first; calls one or several a line; empty last lines."""
    chance = random.Random(seed)  # noqa: S311 - repeatable, not secret
    words = ["Hello", " world", "!", "\n\n", " é", "🌍", ' "quoted"', " <b>&amp;</b>", "", "\u2028", "\\n", " naïve"]
    for number in range(100):
        lines = [delta_line(thinking=chance.choice(words)) for _ in range(chance.choice([0, 0, 9]))]
        if number % 3 == 0:
            for _ in range(chance.randint(1, 4)):
                calls = [
                    {
                        "id": f"call_{chance.randrange(10**8):08d}",
                        "function": {
                            "index": index,
                            "name": chance.choice(["get_weather", "get_time"]),
                            "arguments": {"city": chance.choice(words), "days": chance.randrange(2**63), "x": 1e-7},
                        },
                    }
                    for index in range(chance.randint(1, 3))
                ]
                lines.append(delta_line(tool_calls=calls))
        lines += [delta_line(content=chance.choice(words)) for _ in range(chance.randint(20, 60))]
        yield [*lines, LAST | {"done_reason": chance.choice(["stop", "length"])}]
