"""A server on a real socket that answers every POST with the very bytes that a test lays down for it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from tests.support.upstream import Seen, Upstream, _answer, running
from tests.support.waiting import until

Ending = Literal["keep", "close", "reset", "hang"]
JSON, EVENTS, NDJSON = "application/json", "text/event-stream", "application/x-ndjson"


@dataclass(frozen=True)
class Script:
    """What is written, with pauses in seconds between; then the connection is kept for the next request, closed, reset,
    or held open in silence until the gateway leaves. `repeats` has the last piece written until then.
    """

    pieces: tuple[bytes | float, ...]
    ending: Ending = "keep"
    repeats: bool = False


@dataclass
class Wire(Upstream):
    """Speaks OpenAI's protocol and Ollama's as far as probes are concerned; `written` counts bytes of repetition."""

    script: Script = Script(())
    written: int = 0

    def _is_probe(self, request: str) -> bool:
        return request.startswith("GET ")

    async def _answer_probe(self, path: str, writer: asyncio.StreamWriter) -> None:
        await _answer(writer, 200, _probed(path))

    async def _act(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not await self._play(self.script, reader, writer):
            raise ConnectionResetError

    async def _play(self, script: Script, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection is kept."""
        for piece in script.pieces:
            if isinstance(piece, float):
                await asyncio.sleep(piece)
                continue
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)  # what reads in the same process may do so
        last = script.pieces[-1] if script.repeats else b""
        while isinstance(last, bytes) and last:
            writer.write(last)
            self.written += len(last)
            await writer.drain()
        if script.ending == "reset":
            writer.transport.abort()
        elif script.ending == "hang":
            await reader.read(1)
        return script.ending == "keep"


def _probed(path: str) -> dict[str, Any]:
    if path.startswith("/api/"):
        return {"version": "0.12.11", "models": [{"name": "echo", "model": "echo"}]}
    return {"object": "list", "data": [{"id": "echo", "object": "model"}]}


def head(content_type: str | None, *lines: str, status: str = "200 OK") -> bytes:
    """The head of an answer; `lines` frame its body."""
    typed = [f"Content-Type: {content_type}"] if content_type is not None else []
    return "\r\n".join([f"HTTP/1.1 {status}", *typed, *lines, "", ""]).encode("latin-1")


def framed(content_type: str | None, body: bytes, status: str = "200 OK") -> bytes:
    """A whole answer."""
    return head(content_type, f"Content-Length: {len(body)}", status=status) + body


def chunked(content_type: str, pieces: Iterable[bytes], *, is_whole: bool = True) -> tuple[bytes, ...]:
    """An answer in chunks, the last one too where it `is_whole`."""
    chunks = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece]
    return head(content_type, "Transfer-Encoding: chunked"), *chunks, *([b"0\r\n\r\n"] if is_whole else [])


def event(content: Any) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def line(content: Any) -> bytes:
    return json.dumps(content).encode() + b"\n"


@contextmanager
def wire() -> Iterator[Wire]:
    """Runs one until the end of the block."""
    with running(Wire()) as double:
        yield double


@pytest.fixture(scope="module")
def server() -> Iterator[Wire]:
    with wire() as running:
        yield running


def by_ollama(server: Wire) -> dict[str, str]:
    """The record of the same server by Ollama's protocol."""
    return {"protocol": "ollama", "base_url": server.url.removesuffix("/v1")}


def settle(count: Callable[[], int]) -> int:
    """What `count` gives once that was the same ten times in a row, a tenth of a second apart.

    Not twice, a second apart: in between the machine itself may have stood still.
    """
    seen = [count()]

    def is_settled() -> bool:
        time.sleep(0.1)
        seen.append(count())
        return len(seen) > 10 and len(set(seen[-10:])) == 1

    until(is_settled, "it goes on growing")
    return seen[-1]
