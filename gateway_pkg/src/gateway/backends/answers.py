"""The answer of a backend to a chat-like request, read as OpenAI's whatever the backend speaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.backends.failures import wrong_type
from gateway.backends.protocols.base import (
    AnswerError,
    ErrorStatus,
    check_inside,
    event,
    json_object,
    json_object_in_steps,
)
from gateway.backends.request import Request
from gateway.backends.slots import Slots
from gateway.backends.usage import usage_of
from gateway.wire.connection import Response
from gateway.wire.errors import UpstreamClosed, UpstreamError
from gateway.wire.sse import EventCutter, EventTooLong, UnsoundEvent, is_sound, read_events, split_events
from gateway.wire.stepwise import TURN_BYTES, LongTexts, run

JSON_TYPE = b"application/json"
EVENTS_TYPE = b"text/event-stream"
CheckEnd = Callable[[Response, EventCutter, bytes], None]


@dataclass(slots=True, eq=False)
class Answer:
    """An answer under way. `request` is what it answers, as the client sent it; `model` is the upstream model.

    What is read tells the exchange its usage. All that reads raises UpstreamError and AnswerError.
    """

    _exchange: Request
    _slots: Slots
    _request: Mapping[str, Any]
    _model: str
    _response: Response
    _limit: int

    async def completion(self) -> dict[str, Any]:
        """The whole answer to a chat or a completion."""
        body = await self._body()
        adapter = self._slots.adapter
        if adapter is not None:
            content = adapter.answer(self._slots.capability, self._request, self._model, body)
        else:
            content = json_object(body)
        self._exchange.usage = usage_of(content.get("usage"))
        return content

    async def embeddings(self) -> tuple[dict[str, Any], LongTexts]:
        """The whole answer, as `json_object_in_steps` has it."""
        body = await self._body()
        adapter = self._slots.adapter
        if adapter is not None:
            content, lists = await run(adapter.embeddings(self._request, self._model, body))
        else:
            content, lists = await run(json_object_in_steps(body))
        self._exchange.usage = usage_of(content.get("usage"))
        return content, lists

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The chunks of a chat's stream, the usage in one of the last."""
        content_type = self._response.header(b"content-type") or b""
        if self._slots.adapter is not None or content_type.startswith(JSON_TYPE):
            self._request = {**self._request, "stream_options": {"include_usage": True}}
            stream = self.events()
        elif content_type.startswith(EVENTS_TYPE):
            stream = whole_events(self._response, check_end)
        else:
            raise wrong_type(content_type, "events or JSON")
        try:
            async for events in stream:
                for chunk in read_events(events):
                    check_inside(chunk)
                    self._exchange.usage = usage_of(chunk.get("usage")) or self._exchange.usage
                    yield chunk
        except UnsoundEvent:
            raise AnswerError("an event that is not a JSON object") from None

    async def events(self) -> AsyncIterator[bytes]:
        """The whole events of a stream that cannot pass on as it came.

        An adapter translates it; or a backend that does not stream has answered whole, and that is the one chunk.
        """
        adapter = self._slots.adapter
        if adapter is None:
            content = await self.completion()
            chunk = as_chunk(content) if self._slots.capability == "chat" else content
            yield event(chunk) + b"data: [DONE]\n\n"
            return
        translator = adapter.stream(self._slots.capability, self._request, self._model)
        try:
            async for data in pieces(self._response):
                events = translator.feed(data)
                self._response.is_over = translator.is_done
                if events:
                    yield b"".join(events)
        except UpstreamError:
            # What a backend does after its last event is of no interest to the client.
            if not translator.is_done:
                raise
        if not translator.is_done and (events := translator.end()):
            yield b"".join(events)
        self._exchange.usage = usage_of(translator.usage)

    async def _body(self) -> bytes:
        if self._slots.adapter is None:
            return await read_json(self._response, self._limit)
        return await self._response.read(self._limit)


async def read_json(response: Response, limit: int) -> bytes:
    """The whole body of an answer that is JSON; raises AnswerError for another type, else as `Response.read`."""
    content_type = response.header(b"content-type") or b""
    if not content_type.startswith(JSON_TYPE):
        raise wrong_type(content_type, "JSON")
    return await response.read(limit)


async def refusal(response: Response, limit: int) -> ErrorStatus:
    """The error of an answer whose status is no good one; raises UpstreamError."""
    return ErrorStatus(response.status, await response.read(limit), response.header(b"retry-after"))


async def pieces(response: Response) -> AsyncIterator[bytes]:
    """The body of an answer in pieces of at most TURN_BYTES; the event loop has its turn between them."""
    data = b""
    while data := data[TURN_BYTES:] or await response.next_chunk():
        yield data[:TURN_BYTES]
        if len(data) > TURN_BYTES:
            await asyncio.sleep(0)


async def whole_events(response: Response, check: CheckEnd) -> AsyncIterator[bytes]:
    """A backend's own events as they come, cut at their ends.

    `check` looks at the clean end of the stream, and at what then is left: an event without its blank line.
    """
    cutter = EventCutter()
    try:
        async for data in pieces(response):
            events = cutter.feed(data)
            response.is_over = cutter.is_done
            if events:
                yield events
    except UpstreamError:
        if not cutter.is_done:
            raise
    except EventTooLong:
        raise AnswerError("an event without end") from None
    rest = cutter.rest()
    check(response, cutter, rest)
    if rest:
        yield rest + (b"\n" if rest.endswith(b"\n") else b"\n\n")


def check_end(response: Response, cutter: EventCutter, _rest: bytes) -> None:
    """Call it at the clean end of a chat's stream; raises UpstreamClosed when the stream is incomplete."""
    if cutter.is_done:
        return
    if not cutter.last or response.ends_unframed or not all(map(is_sound, split_events(cutter.last))):
        raise UpstreamClosed("the stream ended without its terminator", sent_first_byte=True)


def as_chunk(completion: dict[str, Any]) -> dict[str, Any]:
    """A whole chat completion as the one chunk of a stream; raises AnswerError."""
    try:
        choices = [_as_delta(choice) for choice in completion.get("choices") or ()]
    except (AttributeError, TypeError):
        raise AnswerError("malformed choices") from None
    return {**completion, "object": "chat.completion.chunk", "choices": choices}


def _as_delta(choice: dict[str, Any]) -> dict[str, Any]:
    message = choice.pop("message", None) or {}
    calls = [{"index": index, **call} for index, call in enumerate(message.get("tool_calls") or ())]
    return {**choice, "delta": {**message, "tool_calls": calls} if calls else message}
