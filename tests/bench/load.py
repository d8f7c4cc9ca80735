"""The load generator: HTTP/1.1 at the level of bytes, so that the core it runs on is never the limit.

It understands only what it meets here: answers with a content-length, and chunked streams of server-sent events.
"""

from __future__ import annotations

import asyncio
import re
import socket
import statistics
import time
from dataclasses import dataclass, field
from typing import cast

import orjson

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
END_OF_STREAM = b"0\r\n\r\n"


@dataclass(frozen=True)
class Target:
    """Where requests go, and the token they carry."""

    port: int
    token: str = ""

    def request(
        self,
        *,
        model: str = "default",
        stream: bool = False,
        name: str = "",
        prompt: str = "",
        max_tokens: int = 64,
    ) -> bytes:
        """The bytes of one chat request; the upstream remembers it by `name`."""
        question = prompt or "What does the fox do while the cat looks on? Answer from the text."
        body: dict[str, object] = {
            "model": model,
            "messages": [
                {"role": "system", "content": "You are a helpful assistant that answers in one short sentence."},
                {"role": "user", "content": f"I am {name}" if name else question},
            ],
            "max_tokens": max_tokens,
            "temperature": 0.2,
        }
        if stream:
            body["stream"] = True
        return self.post("/v1/chat/completions", orjson.dumps(body))

    def post(self, path: str, body: bytes = b"") -> bytes:
        head = (
            f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{self.port}\r\nauthorization: Bearer {self.token}\r\n"
            f"user-agent: bench\r\naccept: */*\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


class BadAnswer(Exception):
    """The gateway under measurement answered something other than a 200."""


@dataclass
class Budget:
    """So many requests, but no longer than so many seconds; shared by all clients of a run."""

    requests: int
    seconds: float
    sent: int = 0
    done: int = 0
    latencies: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.deadline = time.monotonic() + self.seconds

    def take(self) -> bool:
        """Whether another request may be sent; counts it."""
        if self.sent >= self.requests or self.errors or time.monotonic() >= self.deadline:
            return False
        self.sent += 1
        return True

    def median_latency(self) -> float:
        return statistics.median(self.latencies)


class Client(asyncio.Protocol):
    """One keep-alive connection that sends a request as soon as the answer before it is complete.

    With `abort_every`, each so many requests it sends `stream` instead and leaves after that stream's third event.
    """

    def __init__(self, budget: Budget, request: bytes, stream: bytes = b"", abort_every: int = 0) -> None:
        self.budget, self.request, self.stream, self.abort_every = budget, request, stream, abort_every
        self.finished: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.busy = self.aborting = False
        self.buffer = b""
        self.missing = 0  # bytes of a length-framed answer that have not come yet; -1 in a chunked one

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.next()

    def next(self) -> None:
        self.busy = self.budget.take()
        if not self.busy:
            self.transport.close()
            return
        self.aborting = bool(self.abort_every) and self.budget.sent % self.abort_every == 0
        self.began = time.perf_counter()
        self.transport.write(self.stream if self.aborting else self.request)

    def data_received(self, data: bytes) -> None:
        if self.buffer:
            data = self.buffer + data
        if self.missing == 0:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self.buffer = data
                return
            if data[9:12] != b"200":
                self.budget.errors.append(data[:600].decode(errors="replace"))
                self.transport.abort()
                return
            length = LENGTH.search(data, 0, end + 4)
            self.missing = int(length[1]) - (len(data) - end - 4) if length else -1
        elif self.missing > 0:
            self.missing -= len(data)
        if self.missing >= 0:
            self.buffer = b""
            if self.missing == 0:
                self.complete()
        elif self.aborting:
            self.buffer = data
            if data.count(b"data: ") >= 3:
                self.budget.done += 1
                self.busy = False
                self.transport.abort()
        else:
            self.buffer = data[-len(END_OF_STREAM) :]
            if data.endswith(END_OF_STREAM):
                self.buffer = b""
                self.missing = 0
                self.complete()

    def complete(self) -> None:
        self.budget.done += 1
        self.budget.latencies.append(time.perf_counter() - self.began)
        self.next()

    def connection_lost(self, error: Exception | None) -> None:
        if self.busy:
            self.budget.errors.append("the connection was closed before the answer was complete")
        self.finished.set_result(self.aborting)


async def keep_busy(
    target: Target,
    budget: Budget,
    clients: int,
    *,
    model: str = "default",
    stream: bool = False,
    abort_every: int = 0,
    prompt: str = "",
) -> float:
    """Send until the budget is used up; wall-clock seconds. Raises BadAnswer when an answer is not a 200."""
    request = target.request(model=model, stream=stream, prompt=prompt)
    aborted = target.request(model=model, stream=True)
    loop = asyncio.get_running_loop()

    async def one() -> None:
        again = True
        while again:
            _, client = await loop.create_connection(
                lambda: Client(budget, request, aborted, abort_every), "127.0.0.1", target.port
            )
            again = await client.finished

    began = time.monotonic()
    await asyncio.gather(*(one() for _ in range(clients)))
    if budget.errors:
        raise BadAnswer(budget.errors[0])
    return time.monotonic() - began


def once(target: Target, request: bytes, timeout: float = 30) -> bytes:
    """One request on a connection of its own; the whole length-framed answer. Raises OSError."""
    with socket.create_connection(("127.0.0.1", target.port), timeout) as connection:
        connection.sendall(request)
        data = b""
        while True:
            end = data.find(b"\r\n\r\n")
            length = LENGTH.search(data, 0, end + 4) if end >= 0 else None
            if length and len(data) >= end + 4 + int(length[1]):
                return data
            more = connection.recv(65536)
            if not more:
                raise ConnectionError("the connection was closed before the answer was complete")
            data += more
