"""A small OpenAI-speaking server for what small models cannot do at will: tool calls, structured answers, edits.

What it answers follows from the request alone: a JSON schema is answered by fitting JSON, a tool's result by words,
the model `editor` by an edit of a file, anything else by two tool calls at once. The deltas of those are as of a real
stream with parallel calls: names first, then the arguments in pieces that cut words, escapes and a character outside
ASCII, the two calls mixed.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import zip_longest
from typing import Any

MODEL = "tool-caller"
IN_TURN = "tool-caller-in-turn"  # the deltas of one call after those of the other: what some clients rely on
EDITOR = "editor"
NAMES = ("get_weather", "get_time")
ARGUMENTS = ('{"city": "Zürich", "note": "a \\"quoted\\" word"}', '{"zone":"Europe/Zurich"}')
FINAL = "It is 18 degrees in Zürich."  # what is said when a tool's result is there
STRUCTURED = '{"city": "Zürich", "degrees": 18}'
PIECE = 5  # characters of arguments or text in one delta
HEAD = {"id": "chatcmpl-tools", "created": 1700000000, "model": MODEL}
USAGE = {"prompt_tokens": 31, "completion_tokens": 17, "total_tokens": 48}
EDITED = "greeting.py"
BEFORE, AFTER = 'print("hello")\n', 'print("hello, world")\n'
COMMIT = "Greet the world"
EDIT = f"{EDITED}\n```python\n<<<<<<< SEARCH\n{BEFORE}=======\n{AFTER}>>>>>>> REPLACE\n```\n"


def whole() -> dict[str, Any]:
    """The answer with two tool calls."""
    calls = [
        {"id": f"call_{index}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for index, (name, arguments) in enumerate(zip(NAMES, ARGUMENTS, strict=True))
    ]
    return completion({"role": "assistant", "content": None, "tool_calls": calls}, "tool_calls")


def deltas(model: str = MODEL) -> Iterator[dict[str, Any]]:
    """The same as a stream."""
    yield {"role": "assistant", "content": None}
    functions = [{"name": name, "arguments": ""} for name in NAMES]
    heads: list[dict[str, Any]] = [
        {"id": f"call_{index}", "type": "function", "function": one} for index, one in enumerate(functions)
    ]
    pieces = [[{"function": {"arguments": piece}} for piece in cut(arguments)] for arguments in ARGUMENTS]
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


def completion(message: dict[str, Any], finish_reason: str) -> dict[str, Any]:
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    return {**HEAD, "object": "chat.completion", "choices": [choice], "usage": USAGE}


def chosen_text(request: dict[str, Any]) -> str | None:
    """What is to be said; None when tools are to be called."""
    if request["model"] == EDITOR:
        return COMMIT if "commit messages" in request["messages"][0]["content"] else EDIT
    if (request.get("response_format") or {}).get("type") == "json_schema":
        return STRUCTURED
    return FINAL if request["messages"][-1]["role"] == "tool" else None


@dataclass
class ToolCaller:
    """The running server; `requests` are the bodies of the chats that it was sent."""

    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    caller: ToolCaller

    def do_GET(self) -> None:
        self.answer(
            {"object": "list", "data": [{"id": model, "object": "model"} for model in (MODEL, IN_TURN, EDITOR)]}
        )

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.caller.requests.append(request)
        text = chosen_text(request)
        if request.get("stream"):
            self.stream(request, text)
        elif text is None:
            self.answer(whole())
        else:
            self.answer(completion({"role": "assistant", "content": text}, "stop"))

    def answer(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self, request: dict[str, Any], text: str | None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        pieces = deltas(request["model"]) if text is None else text_deltas(text)
        choices: list[dict[str, Any]] = [{"index": 0, "delta": delta, "finish_reason": None} for delta in pieces]
        choices.append({"index": 0, "delta": {}, "finish_reason": "tool_calls" if text is None else "stop"})
        head = {**HEAD, "object": "chat.completion.chunk"}
        for choice in choices:
            self.event(json.dumps({**head, "choices": [choice]}))
        if (request.get("stream_options") or {}).get("include_usage"):
            self.event(json.dumps({**head, "choices": [], "usage": USAGE}))
        self.event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def event(self, data: str) -> None:
        event = f"data: {data}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Quiet: a test that fails shows what was received."""


@contextmanager
def tool_caller() -> Iterator[ToolCaller]:
    """Runs one in a thread until the end of the block."""
    caller = ToolCaller()
    handler = type("Handler", (_Handler,), {"caller": caller})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        caller.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield caller
        finally:
            server.shutdown()
            thread.join()
