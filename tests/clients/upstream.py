"""A small OpenAI-speaking server for what small models cannot do at will: tool calls, structured answers, edits.

What it answers follows from the request alone: a JSON schema is answered by fitting JSON, a tool's result by words,
the model `editor` by an edit of a file, the model `agent` by a call of the shell that a coding agent offers, anything
else by two tool calls at once. The deltas of those are as of a real
stream with parallel calls: names first, then the arguments in pieces that cut words, escapes and a character outside
ASCII, the two calls mixed.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from tests.support.chat_script import ChatScript, completion, delta, stream, usage_chunk
from tests.support.upstream import Seen, _answer

MODEL = "tool-caller"
IN_TURN = "tool-caller-in-turn"  # the deltas of one call after those of the other: what some clients rely on
EDITOR = "editor"
AGENT = "agent"
NAMES = ("get_weather", "get_time")
ARGUMENTS = ('{"city": "Zürich", "note": "a \\"quoted\\" word"}', '{"zone":"Europe/Zurich"}')
CALLS = list(zip(NAMES, ARGUMENTS, strict=True))
FINAL = "It is 18 degrees in Zürich."  # what is said when a tool's result is there
STRUCTURED = '{"city": "Zürich", "degrees": 18}'
PIECE = 5  # characters of arguments or text in one delta
MAKES_A_FILE = "echo made by the agent > made.txt"
# The shells of Codex, Claude Code and opencode, with what they are given.
SHELLS = {
    "exec_command": {"cmd": MAKES_A_FILE},
    "Bash": {"command": MAKES_A_FILE, "description": "Makes a file"},
    "bash": {"command": MAKES_A_FILE, "description": "Makes a file"},
}
DONE = "The file is made."
EDITED = "greeting.py"
BEFORE, AFTER = 'print("hello")\n', 'print("hello, world")\n'
COMMIT = "Greet the world"
EDIT = f"{EDITED}\n```python\n<<<<<<< SEARCH\n{BEFORE}=======\n{AFTER}>>>>>>> REPLACE\n```\n"


def chosen_calls(request: dict[str, Any]) -> list[tuple[str, str]]:
    """The functions to call, with their arguments."""
    if request["model"] != AGENT:
        return CALLS
    names = {tool["function"]["name"] for tool in request["tools"]}
    return [next((name, json.dumps(given)) for name, given in SHELLS.items() if name in names)]


def whole(called: list[tuple[str, str]]) -> dict[str, Any]:
    """The answer with these tool calls."""
    calls = [
        {"id": f"call_{index}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for index, (name, arguments) in enumerate(called)
    ]
    return completion({"content": None, "tool_calls": calls}, "tool_calls")


def deltas(called: list[tuple[str, str]], model: str = MODEL) -> Iterator[dict[str, Any]]:
    """The same as a stream."""
    yield {"role": "assistant", "content": None}
    functions = [{"name": name, "arguments": ""} for name, _ in called]
    heads: list[dict[str, Any]] = [
        {"id": f"call_{index}", "type": "function", "function": one} for index, one in enumerate(functions)
    ]
    pieces = [[{"function": {"arguments": piece}} for piece in cut(arguments)] for _, arguments in called]
    if model == IN_TURN:
        order = [(index, call) for index, head in enumerate(heads) for call in (head, *pieces[index])]
    else:
        rounds = [heads, *zip_longest(*pieces)]
        order = [(index, call) for calls in rounds for index, call in enumerate(calls) if call]
    for index, call in order:
        yield {"tool_calls": [{"index": index, **call}]}


def text_deltas(text: str) -> Iterator[dict[str, Any]]:
    yield {"role": "assistant", "content": ""}
    for piece in cut(text):
        yield {"content": piece}


def cut(text: str) -> list[str]:
    return [text[start : start + PIECE] for start in range(0, len(text), PIECE)]


def chosen_text(request: dict[str, Any]) -> str | None:
    """What is to be said; None when tools are to be called."""
    if request["model"] == EDITOR:
        return COMMIT if "commit messages" in request["messages"][0]["content"] else EDIT
    if (request.get("response_format") or {}).get("type") == "json_schema":
        return STRUCTURED
    if request["model"] == AGENT:  # which also asks for a title, without tools
        is_done = not request.get("tools") or any(message["role"] == "tool" for message in request["messages"])
        return DONE if is_done else None
    return FINAL if request["messages"][-1]["role"] == "tool" else None


def told(request: dict[str, Any]) -> dict[str, Any] | list[dict[str, Any]]:
    """The answer, whole or as the chunks of a stream."""
    text = chosen_text(request)
    if not request.get("stream"):
        return whole(chosen_calls(request)) if text is None else completion({"content": text})
    pieces = deltas(chosen_calls(request), request["model"]) if text is None else text_deltas(text)
    chunks = [*map(delta, pieces), delta({}, "tool_calls" if text is None else "stop")]
    return [*chunks, usage_chunk()] if (request.get("stream_options") or {}).get("include_usage") else chunks


@dataclass
class ToolCaller(ChatScript):
    """`requests` are the bodies of the chats that it was sent."""

    models: tuple[str, ...] = (MODEL, IN_TURN, EDITOR, AGENT)

    async def _act(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer = told(seen.json)
        if isinstance(answer, dict):
            await _answer(writer, 200, answer)
        else:
            await stream(answer, reader, writer)
