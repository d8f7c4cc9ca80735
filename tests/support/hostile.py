"""A backend that does harm as it is told by the request's model, and connections that do harm as clients."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from tests.support.sockets import connect
from tests.support.upstream import (
    ANSWER,
    DONE,
    EVENT,
    EVENT_STREAM,
    Seen,
    Upstream,
    _answer,
    _chunk,
    _until_left,
    _write,
)

BLANK_BYTES = 1_800_000
PIECES = 20_000
SLOW_SEC = 0.1
WHOLE_BYTES = 48_000_000
VECTORS, DIMENSIONS = 500, 4096


@dataclass
class Hostile(Upstream):
    """`most` is how many requests for `slow` it had at once."""

    most: int = 0
    _slow: int = 0
    probes: tuple[str, ...] = ("/health", "/models", "/api/version", "/api/tags", "/api/ps")

    async def _answer_probe(self, path: str, writer: asyncio.StreamWriter) -> None:
        data, tags = [{"id": "late", "object": "model"}], [{"name": "late", "model": "late"}]
        await _answer(writer, 200, {"object": "list", "version": "0.12.11", "data": data, "models": tags})

    async def _act(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = seen.json
        self.seen.pop()  # what is sent here is large
        model = request.get("model", "")
        if seen.path.endswith("/api/embed"):
            vector = [number / 7 for number in range(DIMENSIONS)]
            await _answer(writer, 200, {"model": model, "embeddings": [vector] * VECTORS, "prompt_eval_count": 1})
        elif seen.path.endswith("/api/chat"):
            counts = {"prompt_eval_count": 2**62, "eval_count": 2**62}
            message = {"role": "assistant", "content": "Hello"}
            await _answer(writer, 200, {"model": model, "message": message, "done": True, **counts})
        elif model == "dies":
            await _write(writer, b"HTTP/1.1 200 OK\r\nContent-Type: audio/wav\r\nTransfer-Encoding: chunked\r\n\r\n")
            await _chunk(writer, bytes(1000))
            await asyncio.sleep(0.1)
            writer.transport.abort()
        elif model == "hang":
            await _until_left(reader)
        elif model == "slow":
            self._slow += 1
            self.most = max(self.most, self._slow)
            await asyncio.sleep(SLOW_SEC)
            self._slow -= 1
            await _answer(writer, 200, ANSWER)
        elif model == "big":
            half = "x" * (WHOLE_BYTES // 2)
            said: dict[str, Any] = {"role": "assistant", "content": half, "usage": 1, "refusal": half}
            await _answer(writer, 200, ANSWER | {"choices": [{"index": 0, "message": said, "finish_reason": "stop"}]})
        elif model in ("blank", "pieces", "endless"):
            await _write(writer, EVENT_STREAM)
            await self._stream(model, writer)
        else:
            await _answer(writer, 200, ANSWER | {"model": model})

    async def _stream(self, model: str, writer: asyncio.StreamWriter) -> None:
        await _chunk(writer, EVENT % 0)
        if model == "blank":
            for _ in range(BLANK_BYTES // 60_000):
                await _chunk(writer, b"\n" * 60_000)
        elif model == "pieces":
            await _chunk(writer, b"".join(_pieces()))
        while model == "endless":
            await _chunk(writer, EVENT % 1 * 400)
        await _chunk(writer, DONE)
        await _write(writer, b"0\r\n\r\n")


def _pieces() -> Iterator[bytes]:
    """Two calls whose arguments come by turns."""
    for number in range(PIECES):
        index = number % 2
        function: dict[str, Any] = {"arguments": "{" if number < 2 else " "}
        call: dict[str, Any] = {"index": index, "function": function}
        if number < 2:
            call |= {"id": f"call-{index}", "type": "function"}
            function["name"] = "f"
        choice = {"index": 0, "delta": {"tool_calls": [call]}}
        yield b"data: " + json.dumps({"id": "c-1", "object": "chat.completion.chunk", "choices": [choice]}).encode()
        yield b"\n\n"


class Deaf:
    """A backend that answers probes until it is told to hear nothing: then no connection to it comes about."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=0)
        self.port: int = self._listener.getsockname()[1]
        self._is_deaf = False
        self._thread = threading.Thread(target=self._answer)
        self._thread.start()
        self._waiting: list[socket.socket] = []

    def stop_hearing(self) -> None:
        """Returns when its backlog is full."""
        if self._is_deaf:
            return
        self._is_deaf = True
        with suppress(OSError):
            connect(self.port).close()  # the last one that is answered
        self._thread.join()
        for _ in range(8):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", self.port))
            self._waiting.append(one)

    def close(self) -> None:
        self.stop_hearing()
        for one in (self._listener, *self._waiting):
            one.close()

    def _answer(self) -> None:
        while not self._is_deaf:
            one, _ = self._listener.accept()
            with one, suppress(OSError):
                one.settimeout(5)
                one.recv(65536)
                one.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 11\r\n\r\n" + b'{"data":[]}')


@contextmanager
def deaf() -> Iterator[Deaf]:
    """Runs one until the end of the block."""
    one = Deaf()
    try:
        yield one
    finally:
        one.close()


def pour(connection: socket.socket, block: bytes, most: int) -> tuple[int, bytes]:
    """Sends `block` again and again until the peer ends the connection; how many bytes it took, and its answer.

    Ends after `most` bytes too: then the peer has no bound.
    """
    sent, answer = 0, bytearray()
    with suppress(OSError):
        while sent < most:
            sent += connection.send(block)
    with suppress(OSError):
        while sent < most and (data := connection.recv(65536)):
            answer += data
    return sent, bytes(answer)


def reply(port: int, request: bytes) -> bytes:
    """All that comes for it until the peer ends the connection."""
    with connect(port) as connection:
        connection.sendall(request)
        answer = bytearray()
        with suppress(ConnectionResetError):
            while data := connection.recv(262_144):
                answer += data
        return bytes(answer)
