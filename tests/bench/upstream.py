"""The trivial upstream: answers OpenAI chat requests as cheaply as Python can, so that it is never the limit.

What a request gets is named by its model:

- any other name: an answer of about 400 bytes, or a stream of 33 events, one every 10 ms;
- `bench-hang`: nothing, until `POST /bench/release` answers every request that hangs;
- `bench-endless`: a stream that does not end by itself;
- `bench-stamped`: a stream of `max_tokens` events, one every 20 ms, each with its number and when it was sent, in
  seconds of that clock.

A request whose last message is `I am NAME` is remembered by that name: when it arrived and when its client was seen to
leave, on the clock that all processes of a Linux machine share (CLOCK_MONOTONIC). `GET /bench/log` tells.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any, cast

import orjson
import uvloop

EVENTS = 33
PACE = 0.010  # seconds between two events
STAMPED_PACE = 0.020
I_AM = "I am "
TEXT = "The quick brown fox jumps over the lazy dog while the cat looks on. "

USAGE = {"prompt_tokens": 24, "completion_tokens": EVENTS, "total_tokens": 24 + EVENTS}
HEAD: dict[str, Any] = {"id": "chatcmpl-bench", "created": 1700000000, "model": "bench-model"}
ANSWER = {
    **HEAD,
    "object": "chat.completion",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": TEXT * 2}, "logprobs": None, "finish_reason": "stop"}
    ],
    "usage": USAGE,
}


def framed(body: bytes, status: bytes = b"200 OK") -> bytes:
    """A whole HTTP answer."""
    return b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (status, len(body), body)


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(choices: list[dict[str, Any]], **more: Any) -> bytes:
    """One server-sent event in a chunk of its own."""
    body = {**HEAD, "object": "chat.completion.chunk", "choices": choices, **more}
    return chunked(b"data: %s\n\n" % orjson.dumps(body))


def delta(content: dict[str, Any], finish: str | None = None) -> bytes:
    return event([{"index": 0, "delta": content, "finish_reason": finish}])


MODELS = framed(orjson.dumps({"object": "list", "data": [{"id": "bench-model", "object": "model"}]}))
WHOLE = framed(orjson.dumps(ANSWER))
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
FIRST = delta({"role": "assistant", "content": ""})
TOKENS = [delta({"content": f" token {number}"}) for number in range(64)]  # LiteLLM takes repetition for a fault
LAST = delta({}, "stop")
USAGE_EVENT = event([], usage=USAGE)
DONE = chunked(b"data: [DONE]\n\n") + b"0\r\n\r\n"


class Log:
    """What happened to the requests that give a name, and the requests that hang."""

    def __init__(self) -> None:
        self.requests: dict[str, dict[str, float]] = {}
        self.hanging: set[Connection] = set()

    def note(self, name: str, what: str) -> None:
        if name:
            self.requests.setdefault(name, {}).setdefault(what, time.monotonic())

    def clear(self) -> None:
        self.requests.clear()


class Connection(asyncio.Protocol):
    """One client's connection: requests one after the other, never two at a time."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.loop = asyncio.get_running_loop()
        self.buffer = b""
        self.name = ""
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def eof_received(self) -> None:
        self.left()

    def connection_lost(self, error: Exception | None) -> None:
        self.left()
        self.log.hanging.discard(self)

    def left(self) -> None:
        """The client is gone; what was under way for it is over."""
        self.log.note(self.name, "left")
        if self.timer:
            self.timer.cancel()

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self.buffer[:end].lower()
        start = head.find(b"content-length: ")
        length = int(head[start + 16 :].split(b"\r\n", 1)[0]) if start >= 0 else 0
        if len(self.buffer) < end + 4 + length:
            return
        body = self.buffer[end + 4 : end + 4 + length]
        self.buffer = self.buffer[end + 4 + length :]
        self.answer(head.split(b" ", 2)[1], body)

    def answer(self, path: bytes, body: bytes) -> None:
        if path == b"/v1/chat/completions":
            self.chat(orjson.loads(body))
        elif path == b"/v1/models":
            self.transport.write(MODELS)
        elif path == b"/bench/log":
            self.transport.write(framed(orjson.dumps(self.log.requests)))
        elif path == b"/bench/clear":
            self.log.clear()
            self.transport.write(framed(b"{}"))
        elif path == b"/bench/release":
            for connection in tuple(self.log.hanging):
                connection.release()
            self.transport.write(framed(b"{}"))
        else:
            self.transport.write(framed(b'{"ok": true}'))

    def chat(self, request: dict[str, Any]) -> None:
        said: str = request["messages"][-1]["content"]
        self.name = said.removeprefix(I_AM) if said.startswith(I_AM) else ""
        self.log.note(self.name, "arrived")
        if request["model"] == "bench-hang":
            self.log.hanging.add(self)
        elif request["model"].endswith("stamped"):
            self.transport.write(STREAM_HEAD)
            self.next_stamped(0, int(request["max_tokens"]))
        elif request.get("stream"):
            usage = (request.get("stream_options") or {}).get("include_usage")
            left = -1 if request["model"] == "bench-endless" else EVENTS - 1
            self.transport.write(STREAM_HEAD + FIRST)
            self.timer = self.loop.call_later(PACE, self.next_event, left, bool(usage))
        else:
            self.finish(WHOLE)

    def next_event(self, left: int, usage: bool) -> None:
        if left == 1:
            self.transport.write(LAST)
            self.finish(USAGE_EVENT + DONE if usage else DONE)
        else:
            self.transport.write(TOKENS[left % len(TOKENS)])
            self.timer = self.loop.call_later(PACE, self.next_event, left - 1, usage)

    def next_stamped(self, number: int, count: int) -> None:
        if number == count:
            self.finish(DONE)
            return
        self.transport.write(delta({"content": f" {number} {time.monotonic():.6f}"}))
        self.timer = self.loop.call_later(STAMPED_PACE, self.next_stamped, number + 1, count)

    def release(self) -> None:
        self.log.hanging.discard(self)
        self.finish(WHOLE)

    def finish(self, data: bytes) -> None:
        self.log.note(self.name, "finished")
        self.name = ""
        self.transport.write(data)


async def main() -> None:
    log = Log()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(log), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)  # until whoever started it closes the pipe


if __name__ == "__main__":
    uvloop.run(main())
