"""A small model server that the gateway's tests share: it speaks HTTP on a real socket and does as it is told.

What it does is chosen by the request's `model`: `echo` answers, `die-…` breaks off, and so on; see `Upstream._act`.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tests.support.waiting import until

EVENT = b'data: {"id":"c-1","object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"%d"}}]}\n\n'
DONE = b"data: [DONE]\n\n"
EVENT_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
USAGE = (
    b'data: {"id":"c-1","object":"chat.completion.chunk","choices":[],'
    b'"usage":{"prompt_tokens":5,"completion_tokens":3,"total_tokens":8}}\n\n'
)
MODELS = (
    "echo",
    "hang",
    "hang-head",
    "hang-mid",
    "die-before",
    "die-mid",
    "die-in-event",
    "no-done",
    "no-blank-line",
)
ANSWER = {
    "id": "c-1",
    "object": "chat.completion",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}

AnyUpstream = TypeVar("AnyUpstream", bound="Upstream")


@dataclass
class Seen:
    """A request as it came, and when its connection was found closed (time.monotonic seconds)."""

    path: str
    headers: dict[str, str]
    body: bytes
    left_at: float | None = None
    method: str = "POST"

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Upstream:
    port: int = 0
    seen: list[Seen] = field(default_factory=list)
    healthy: bool = True
    always: str = ""  # what it does whatever model is asked for
    probes: tuple[str, ...] = ("/health", "/models")
    _stop_listening: Callable[[], None] = field(default=lambda: None)

    def refuse(self) -> None:
        """From now on its port refuses connections, and those that are open are cut."""
        self._stop_listening()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def wait_for(self, count: int, *, left: bool = False) -> list[Seen]:
        """The requests, once there are `count` of them (whose connections are closed, with `left`)."""

        def found() -> list[Seen]:
            some = [seen for seen in self.seen if not left or seen.left_at is not None]
            return some if len(some) >= count else []

        return until(found, f"not {count} requests{' that were left' if left else ''}")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                request, *lines = head.decode().split("\r\n")
                headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines if line)}
                body = await reader.readexactly(int(headers.get("content-length", "0")))
                method, path, _ = request.split(" ")
                seen = Seen(path, headers, body, method=method)
                if self._is_probe(f"{method} {path}"):
                    await self._answer_probe(path, writer)
                else:
                    self.seen.append(seen)
                    try:
                        await self._act(seen, reader, writer)
                    except ConnectionError:
                        seen.left_at = time.monotonic()
                        raise
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    def _is_probe(self, request: str) -> bool:
        return request.endswith(self.probes)

    async def _answer_probe(self, path: str, writer: asyncio.StreamWriter) -> None:
        models = {"object": "list", "data": [{"id": model, "object": "model"} for model in MODELS]}
        await _answer(writer, 200 if self.healthy else 503, models)

    async def _act(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        model = self.always or seen.json.get("model", "")
        if model == "hang":
            await _until_left(reader)
        elif model == "die-before":
            writer.transport.abort()
        elif model.startswith("status-"):
            await _answer(
                writer, int(model.removeprefix("status-")), {"error": {"message": "upstream says no", "code": "x"}}
            )
        elif model == "html":
            await _write(writer, b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>")
        elif model == "cut":
            await _write(writer, b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{")
            writer.transport.abort()
        elif model == "garbage":
            await _write(writer, b"\x00\x01 nonsense\r\n\r\n")
        elif seen.json.get("stream"):
            has_usage = bool((seen.json.get("stream_options") or {}).get("include_usage"))
            await _stream(model, has_usage, reader, writer)
        elif seen.path.endswith("/embeddings"):
            vector = {"object": "embedding", "index": 0, "embedding": [0.5, 0.5]}
            await _answer(writer, 200, {"object": "list", "data": [vector], "model": model})
        else:
            await _answer(writer, 200, ANSWER | {"model": model})


async def _stream(model: str, has_usage: bool, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await _write(writer, EVENT_STREAM)
    for number in range(0 if model == "hang-head" else 3):
        await _chunk(writer, EVENT % number)
        await asyncio.sleep(0.01)
    if model == "die-in-event":
        await _chunk(writer, b'data: {"id":"half an ev')
        await asyncio.sleep(0.01)
    if model.startswith("die-"):
        writer.transport.abort()
        return
    if model in ("hang-head", "hang-mid"):
        await _until_left(reader)
        return
    if has_usage:
        await _chunk(writer, USAGE)
    if model == "no-blank-line":
        await _chunk(writer, DONE.rstrip())
    elif model != "no-done":
        await _chunk(writer, DONE)
    await _write(writer, b"0\r\n\r\n")


async def _until_left(reader: asyncio.StreamReader) -> None:
    await reader.read(1)
    raise ConnectionResetError


async def _answer(writer: asyncio.StreamWriter, status: int, content: Any) -> None:
    body = json.dumps(content).encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    await _write(writer, head.encode() + body)


async def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    await _write(writer, b"%x\r\n%b\r\n" % (len(data), data))


async def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


@contextmanager
def upstream(port: int = 0) -> Iterator[Upstream]:
    """Runs one until the end of the block."""
    with running(Upstream(), port) as double:
        yield double


@contextmanager
def running(double: AnyUpstream, port: int = 0) -> Iterator[AnyUpstream]:
    """Runs a model server, also one of another kind, in a thread of its own until the end of the block."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start() -> asyncio.Server:
        return await asyncio.start_server(double._serve, "127.0.0.1", port)

    server = asyncio.run_coroutine_threadsafe(start(), loop).result()
    double.port = server.sockets[0].getsockname()[1]
    double._stop_listening = lambda: asyncio.run_coroutine_threadsafe(_close(server), loop).result()
    try:
        yield double
    finally:
        asyncio.run_coroutine_threadsafe(_close(server), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _close(server: asyncio.Server) -> None:
    server.close()
    me = asyncio.current_task()
    tasks = [task for task in asyncio.all_tasks() if task is not me]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
