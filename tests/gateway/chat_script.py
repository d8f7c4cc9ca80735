"""A model server that answers as a test tells it, so that a test shows both sides of a translation."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.gateway.upstream import DONE, MODELS, Seen, Upstream, _answer, _chunk, _write, running

HEAD = {"id": "chatcmpl-1", "created": 1_700_000_000, "model": "told"}
USAGE = {"prompt_tokens": 31, "completion_tokens": 17, "total_tokens": 48}
EVENT_STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


@dataclass
class ChatScript(Upstream):
    """`message` and `finish_reason` are the answer; `deltas` are the same for streams, all in choice 0.

    `paths` answer what is no chat: a request's JSON with other JSON; a path that is not there, with a 404. Models
    such as `hang` and `status-…` do as in Upstream.
    """

    message: dict[str, Any] = field(default_factory=lambda: {"role": "assistant", "content": "Hello"})
    deltas: tuple[dict[str, Any], ...] = ({"role": "assistant", "content": ""}, {"content": "Hel"}, {"content": "lo"})
    finish_reason: str = "stop"
    choice: dict[str, Any] = field(default_factory=dict)
    usage: dict[str, Any] | None = field(default_factory=lambda: dict(USAGE))
    is_cut: bool = False
    paths: dict[str, Callable[[Any], Any]] = field(default_factory=dict)
    models: tuple[str, ...] = MODELS

    async def _answer_probe(self, writer: asyncio.StreamWriter) -> None:
        await _answer(writer, 200, {"object": "list", "data": [{"id": model} for model in self.models]})

    async def _act(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if seen.json.get("model") not in ("echo", "", None):
            await super()._act(seen, reader, writer)
        elif seen.path.endswith("/chat/completions"):
            await (self._stream(writer, seen.json) if seen.json.get("stream") else self._whole(writer))
        else:
            told = self.paths.get(seen.path)
            answer = None if told is None else told(seen.json)
            missing = {"error": {"message": f"no {seen.path} here"}}
            await _answer(writer, 404 if answer is None else 200, missing if answer is None else answer)

    async def _whole(self, writer: asyncio.StreamWriter) -> None:
        choice = {"index": 0, "message": self.message, "finish_reason": self.finish_reason, **self.choice}
        usage = {} if self.usage is None else {"usage": self.usage}
        await _answer(writer, 200, {**HEAD, "object": "chat.completion", "choices": [choice], **usage})

    async def _stream(self, writer: asyncio.StreamWriter, request: dict[str, Any]) -> None:
        await _write(writer, EVENT_STREAM)
        head = {**HEAD, "object": "chat.completion.chunk"}
        for delta in self.deltas:
            await _event(writer, {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
        if self.is_cut:
            writer.transport.abort()
            return
        last = {"index": 0, "delta": {}, "finish_reason": self.finish_reason, **self.choice}
        await _event(writer, {**head, "choices": [last]})
        if self.usage is not None and (request.get("stream_options") or {}).get("include_usage"):
            await _event(writer, {**head, "choices": [], "usage": self.usage})
        await _chunk(writer, DONE)
        await _write(writer, b"0\r\n\r\n")


async def _event(writer: asyncio.StreamWriter, content: dict[str, Any]) -> None:
    await _chunk(writer, f"data: {json.dumps(content)}\n\n".encode())


@contextmanager
def chat_script() -> Iterator[ChatScript]:
    with running(ChatScript()) as script:
        yield script
