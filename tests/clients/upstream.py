"""A small OpenAI-speaking server for what the small model cannot do: it answers every chat with two tool calls.

The deltas are those of a real stream with parallel calls: names first, then the arguments in pieces that cut words,
escapes and a character outside ASCII, the two calls mixed.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "tool-caller"
NAMES = ("get_weather", "get_time")
ARGUMENTS = ('{"city": "Zürich", "note": "a \\"quoted\\" word"}', '{"zone":"Europe/Zurich"}')
PIECE = 5  # characters of arguments in one delta
HEAD = {"id": "chatcmpl-tools", "created": 1700000000, "model": MODEL}
USAGE = {"prompt_tokens": 31, "completion_tokens": 17, "total_tokens": 48}


def whole() -> dict[str, Any]:
    calls = [
        {"id": f"call_{index}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for index, (name, arguments) in enumerate(zip(NAMES, ARGUMENTS, strict=True))
    ]
    message = {"role": "assistant", "content": None, "tool_calls": calls}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    return {**HEAD, "object": "chat.completion", "choices": [choice], "usage": USAGE}


def deltas() -> Iterator[dict[str, Any]]:
    yield {"role": "assistant", "content": None}
    for index, name in enumerate(NAMES):
        function = {"name": name, "arguments": ""}
        yield {"tool_calls": [{"index": index, "id": f"call_{index}", "type": "function", "function": function}]}
    for start in range(0, max(map(len, ARGUMENTS)), PIECE):
        for index, arguments in enumerate(ARGUMENTS):
            if piece := arguments[start : start + PIECE]:
                yield {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}


@dataclass
class ToolCaller:
    """The running server; `requests` are the bodies of the chats that it was sent."""

    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    caller: ToolCaller

    def do_GET(self) -> None:
        self.answer({"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.caller.requests.append(request)
        if request.get("stream"):
            self.stream()
        else:
            self.answer(whole())

    def answer(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        choices: list[dict[str, Any]] = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas()]
        choices.append({"index": 0, "delta": {}, "finish_reason": "tool_calls"})
        for choice in choices:
            self.event(json.dumps({**HEAD, "object": "chat.completion.chunk", "choices": [choice]}))
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
