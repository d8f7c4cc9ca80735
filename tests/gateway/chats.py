"""A chat server on a real socket that answers what a test lays down for it, whole or as a stream of chunks."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Chunk = dict[str, Any]
MODEL = "echo"
DIE, HANG = "die", "hang"  # in a stream: break off; wait until the gateway leaves
USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}


def delta(content: Chunk, finish_reason: str | None = None, **fields: Any) -> Chunk:
    """A chunk of a stream."""
    choice = {"index": 0, "delta": content, "finish_reason": finish_reason, **fields}
    return {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": MODEL, "choices": [choice]}


def usage_chunk(usage: Chunk = USAGE) -> Chunk:
    return {**delta({}), "choices": [], "usage": usage}


def words(*texts: str, finish_reason: str = "stop") -> list[Chunk]:
    """A stream that says something."""
    said = [delta({"role": "assistant", "content": ""}), *(delta({"content": text}) for text in texts)]
    return [*said, delta({}, finish_reason), usage_chunk()]


def completion(message: Chunk, finish_reason: str = "stop", **fields: Any) -> Chunk:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish_reason}
    head = {"id": "c-1", "object": "chat.completion", "created": 1, "model": MODEL}
    return {**head, "choices": [choice], "usage": USAGE, **fields}


@dataclass
class Chats:
    """`answers`: for each request the next, a dict for a whole one, a list of chunks; without any it says Hello.

    `requests` are the bodies that came, `left` is set when a stream that hangs was left.
    """

    url: str = ""
    answers: list[Chunk | list[Chunk | str] | int] = field(default_factory=list)
    requests: list[Chunk] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    chats: Chats

    def do_GET(self) -> None:
        self._answer(200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.chats.requests.append(request)
        answer = self.chats.answers.pop(0) if self.chats.answers else None
        if isinstance(answer, int):
            self._answer(answer, {"error": {"message": "no such thing", "param": "messages", "code": "x"}})
        elif isinstance(answer, list) or (answer is None and request.get("stream")):
            self._stream(answer if answer is not None else list(words("Hel", "lo")))
        else:
            self._answer(200, answer or completion({"content": "Hello"}))

    def _answer(self, status: int, content: Chunk) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, chunks: list[Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for chunk in [*map(_data, chunks), "[DONE]"]:
            if chunk == DIE:
                self.close_connection = True
                return
            if chunk == HANG:
                self.rfile.read(1)
                self.chats.left.set()
                self.close_connection = True
                return
            event = f"data: {chunk}\n\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
        self.wfile.write(b"0\r\n\r\n")

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Quiet: a test that fails shows what was received."""


def _data(chunk: Chunk | str) -> str:
    return chunk if isinstance(chunk, str) else json.dumps(chunk)


@contextmanager
def chat_server() -> Iterator[Chats]:
    """Runs one in a thread until the end of the block."""
    chats = Chats()
    handler = type("Handler", (_Handler,), {"chats": chats})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        chats.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield chats
        finally:
            server.shutdown()
            thread.join()
