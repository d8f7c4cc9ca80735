"""A model server that answers as a test tells it, so that a test shows both sides of a translation."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.support.upstream import (
    DONE,
    EVENT_STREAM,
    MODELS,
    Seen,
    Upstream,
    _answer,
    _chunk,
    _until_left,
    _write,
    running,
)

Chunk = dict[str, Any]
HEAD = {"id": "chatcmpl-1", "created": 1_700_000_000, "model": "told"}
USAGE = {"prompt_tokens": 31, "completion_tokens": 17, "total_tokens": 48}
DIE, HANG = "die", "hang"  # in a stream: break off; wait until the gateway leaves


def delta(content: Chunk, finish_reason: str | None = None, **fields: Any) -> Chunk:
    """A chunk of a stream."""
    choice = {"index": 0, "delta": content, "finish_reason": finish_reason, **fields}
    return {**HEAD, "object": "chat.completion.chunk", "choices": [choice]}


def usage_chunk(usage: Chunk = USAGE) -> Chunk:
    return {**delta({}), "choices": [], "usage": usage}


def words(*texts: str, finish_reason: str = "stop") -> list[Chunk]:
    """A stream that says something."""
    said = [delta({"role": "assistant", "content": ""}), *(delta({"content": text}) for text in texts)]
    return [*said, delta({}, finish_reason), usage_chunk()]


def completion(message: Chunk, finish_reason: str = "stop", **fields: Any) -> Chunk:
    """A whole answer."""
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish_reason, **fields}
    return {**HEAD, "object": "chat.completion", "choices": [choice], "usage": USAGE}


@dataclass
class ChatScript(Upstream):
    """`message` and `finish_reason` are the answer; `deltas` are the same for streams, all in choice 0.

    `answers` come before that, one for each request: a whole one, the chunks of a stream, the status of a refusal.
    `paths` answer what is no chat: a request's JSON with other JSON, or HANG; a path that is not there, with a 404.
    Models such as `hang` and `status-…` do as in Upstream.
    """

    message: Chunk = field(default_factory=lambda: {"role": "assistant", "content": "Hello"})
    deltas: tuple[Chunk, ...] = ({"role": "assistant", "content": ""}, {"content": "Hel"}, {"content": "lo"})
    finish_reason: str = "stop"
    choice: Chunk = field(default_factory=dict)
    usage: Chunk | None = field(default_factory=lambda: dict(USAGE))
    answers: list[Chunk | Sequence[Chunk | str] | int] = field(default_factory=list)
    paths: dict[str, Callable[[Any], Any]] = field(default_factory=dict)
    models: tuple[str, ...] = MODELS

    @property
    def requests(self) -> list[Any]:
        return [seen.json for seen in self.seen]

    async def _answer_probe(self, path: str, writer: asyncio.StreamWriter) -> None:
        await _answer(writer, 200, {"object": "list", "data": [{"id": model} for model in self.models]})

    async def _act(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if seen.json.get("model") not in ("echo", "", None):
            await super()._act(seen, reader, writer)
        elif seen.path.endswith("/chat/completions"):
            answer = self.answers.pop(0) if self.answers else self._told(seen.json)
            if isinstance(answer, int):
                error = {"message": "no such thing", "param": "messages", "code": "x"}
                await _answer(writer, answer, {"error": error})
            elif isinstance(answer, dict):
                await _answer(writer, 200, answer)
            else:
                await stream(answer, reader, writer)
        else:
            told = self.paths.get(seen.path)
            content = None if told is None else told(seen.json)
            if content == HANG:
                await _until_left(reader)
            missing = {"error": {"message": f"no {seen.path} here"}}
            await _answer(writer, 404 if content is None else 200, missing if content is None else content)

    def _told(self, request: Chunk) -> Chunk | list[Chunk | str]:
        if not request.get("stream"):
            whole = completion(self.message, self.finish_reason, **self.choice)
            return {key: value for key, value in {**whole, "usage": self.usage}.items() if value is not None}
        chunks: list[Chunk | str] = [delta(content) for content in self.deltas]
        chunks.append(delta({}, self.finish_reason, **self.choice))
        if self.usage is not None and (request.get("stream_options") or {}).get("include_usage"):
            chunks.append(usage_chunk(self.usage))
        return chunks


async def stream(chunks: Sequence[Chunk | str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await _write(writer, EVENT_STREAM)
    for chunk in chunks:
        if chunk == DIE:
            writer.transport.abort()
            return
        if chunk == HANG:
            await _until_left(reader)
        data = chunk if isinstance(chunk, str) else json.dumps(chunk)
        await _chunk(writer, f"data: {data}\n\n".encode())
    await _chunk(writer, DONE)
    await _write(writer, b"0\r\n\r\n")


@contextmanager
def chat_script() -> Iterator[ChatScript]:
    with running(ChatScript()) as script:
        yield script


@pytest.fixture(scope="module")
def script() -> Iterator[ChatScript]:
    with chat_script() as script:
        yield script
