"""The hot routes: chat, completions, embeddings. Parse, decide, admit, send, pass on as it came."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from time import perf_counter
from typing import Any

from pydantic import TypeAdapter

from gateway.backends.answers import EVENTS_TYPE, JSON_TYPE, Answer, check_end, refusal
from gateway.backends.call import Dispatcher, asks_for_usage, failed
from gateway.backends.failures import wrong_type
from gateway.backends.protocols.base import (
    AnswerError,
    check_inside,
    embeddings_written,
    json_object_in_steps,
    written,
)
from gateway.backends.registry import Route
from gateway.backends.slots import Slots
from gateway.backends.usage import usage_in, usage_of
from gateway.errors import ClientDisconnected
from gateway.features.face import Core, Feature
from gateway.routing.body import dump
from gateway.routing.caps import within_limits
from gateway.web.endpoint import Endpoint
from gateway.web.exchange import JSON, Exchange
from gateway.web.known import known_fields
from gateway.web.schemas import COUNT, ChatRequest, CompletionRequest, EmbeddingRequest, events, record
from gateway.wire.collector import LARGE_BYTES, turn
from gateway.wire.connection import Response
from gateway.wire.errors import ConnectFailed, UpstreamClosed, UpstreamError
from gateway.wire.sse import EventCutter, EventTooLong, EventWatch
from gateway.wire.stepwise import TURN_BYTES, run

STREAM = events("`data:` lines, each with a chunk; the last one is `data: [DONE]`.")
CHAT_REQUEST: TypeAdapter[Any] = TypeAdapter(ChatRequest)
COMPLETION_REQUEST: TypeAdapter[Any] = TypeAdapter(CompletionRequest)
EMBEDDING_REQUEST: TypeAdapter[Any] = TypeAdapter(EmbeddingRequest)
_LIST = {"type": "array", "items": {"type": "object"}}


def _answer(kind: str, **required: Any) -> dict[str, Any]:
    """What the gateway vouches for of an answer: backends fill in the rest."""
    counts = dict.fromkeys(("prompt_tokens", "completion_tokens", "total_tokens"), COUNT)
    usage = {"type": "object", "properties": counts}
    return record({"object": {"type": "string", "examples": [kind]}, "usage": usage}, **required)


CHAT = Endpoint(
    "/v1/chat/completions",
    "chat",
    "Answer a conversation",
    CHAT_REQUEST,
    answers={200: {"application/json": _answer("chat.completion", choices=_LIST), **STREAM}},
)
COMPLETIONS = Endpoint(
    "/v1/completions",
    "completions",
    "Continue a text",
    COMPLETION_REQUEST,
    answers={200: {"application/json": _answer("text_completion", choices=_LIST), **STREAM}},
)
EMBEDDINGS = Endpoint(
    "/v1/embeddings",
    "embeddings",
    "Embed texts as vectors",
    EMBEDDING_REQUEST,
    answers={200: {"application/json": _answer("list", data=_LIST)}},
)


class Chat(Feature):
    name = "chat"

    def __init__(self, core: Core) -> None:
        requests = (CHAT, CHAT_REQUEST), (COMPLETIONS, COMPLETION_REQUEST), (EMBEDDINGS, EMBEDDING_REQUEST)
        self.endpoints = [(endpoint, HotHandler(core.dispatcher, request).answer) for endpoint, request in requests]


class HotHandler:
    """Answers a hot route. One request holds one slot of admission until its last byte is out."""

    def __init__(self, dispatcher: Dispatcher, request: TypeAdapter[Any]) -> None:
        self._parse = known_fields(request).parse
        self._dispatcher = dispatcher
        self._known_route = dispatcher.routes.known
        self._take = dispatcher.registry.take
        self._max_response_bytes = dispatcher.max_response_bytes

    async def answer(self, exchange: Exchange, endpoint: Endpoint) -> None:
        """Raises ApiError, also after the stream has begun; ClientDisconnected."""
        body = exchange.body_at_once()
        if body is None:
            body = await exchange.body()
        request = self._parse(body)
        is_large = len(body) >= LARGE_BYTES
        if is_large:
            await turn(len(body))
        if request.get("tools"):
            exchange.has_tools = True
        model = request.get("model") or ""
        route = self._known_route(exchange, endpoint.capability, model)
        if route is None:
            route = await self._dispatcher.routes.chat(exchange, endpoint.capability, model, request)
        if route.limits is not None:
            request = request | within_limits(route.limits, request)
            # Written anew: of a field that the body has twice, a backend reads the one that is bounded.
            body = dump({**request, "model": route.decision.model})
            if is_large:
                await turn(len(body))
        elif route.rename is not None:
            body = route.rename.apply(body)
        # As `dispatcher.call`, but for its frames.
        exchange.cancel_on_disconnect()
        try:
            slots = exchange.slots = self._take(route)
            if slots is None:
                slots = await self._dispatcher.admit(exchange, route)
            await self._pass_on(exchange, route, slots, request, body)
        except (UpstreamError, AnswerError) as error:
            if exchange.slots is not None:
                raise failed(error, exchange.slots.backend) from error
            raise
        except asyncio.CancelledError:
            if exchange.has_disconnected():
                raise ClientDisconnected from None
            raise
        finally:
            exchange.finished()
            if exchange.slots is not None:
                exchange.slots.release()

    async def _pass_on(
        self, exchange: Exchange, route: Route, slots: Slots, request: Mapping[str, Any], body: bytes
    ) -> None:
        is_streamed = request.get("stream")
        sent_at = perf_counter()
        response: Response | None = None
        try:
            try:
                response = await self._dispatcher.send(exchange, slots, request, body)
            except (ConnectFailed, UpstreamClosed) as error:
                slots = await self._dispatcher.other(exchange, route, slots, error)
                response = await self._dispatcher.send(exchange, slots, request, body)
            if response.status != 200:
                raise await refusal(response, self._max_response_bytes)
            content_type = response.header(b"content-type") or b""
            if slots.adapter is None and not is_streamed and content_type.startswith(JSON_TYPE):
                answer = response.read_at_once(self._max_response_bytes)
                if answer is None:
                    answer = await response.read(self._max_response_bytes)
                # An object that holds no error; to look is cheaper than to parse. In a string the quotes are escaped.
                looks_sound = answer[:1] == b"{" and answer[-1:] == b"}" and answer.find(b'"error"') < 0
                if response.ends_unframed or not looks_sound:
                    await run(json_object_in_steps(answer))
                exchange.usage = usage_in(answer)
                if not exchange.answer_at_once(route.head, answer):
                    await exchange.answer(200, answer, [JSON])
            elif slots.adapter is None and is_streamed and content_type.startswith(EVENTS_TYPE):
                await _pass_stream(exchange, response, content_type, EventWatch(takes_out=not asks_for_usage(request)))
            elif slots.adapter is None and not content_type.startswith(JSON_TYPE):
                raise wrong_type(content_type, "events or JSON" if is_streamed else "JSON")
            else:
                told = Answer(exchange, slots, request, route.decision.model, response, self._max_response_bytes)
                await _translate(exchange, slots, request, told)
            if slots.backend.circuit_failures:
                slots.backend.close_circuit()
        finally:
            if response is not None:
                response.close()
            exchange.upstream_ms = (perf_counter() - sent_at) * 1000


async def _translate(exchange: Exchange, slots: Slots, request: Mapping[str, Any], answer: Answer) -> None:
    """An answer that cannot pass on as it came. A stream begins with its first event: until then a failure has a
    status of its own."""
    if request.get("stream"):
        async for events in answer.events():
            if not exchange.status:
                await exchange.start_stream(EVENTS_TYPE)
            await exchange.stream(events)
        await exchange.end_stream()
        return
    if slots.capability == "embeddings":
        content, lists = await answer.embeddings()
        body = await run(embeddings_written(content, lists, request.get("encoding_format")))
    else:
        body = written(await answer.completion())
    await exchange.answer(200, body, [JSON])


async def _pass_stream(exchange: Exchange, response: Response, content_type: bytes, watch: EventWatch) -> None:
    cutter, chunk = EventCutter(), b""
    await exchange.start_stream(content_type)
    try:
        while chunk := chunk[TURN_BYTES:] or await response.next_chunk():
            events = cutter.feed(chunk[:TURN_BYTES])
            response.is_over = cutter.is_done
            if events and (events := watch.look(events)):
                await exchange.stream(events)
            if watch.failure is not None:
                check_inside(watch.failure)
            if len(chunk) > TURN_BYTES:
                await asyncio.sleep(0)
    except UpstreamError:
        # What a backend does after its terminator is of no interest to the client.
        if not cutter.is_done:
            raise
    except EventTooLong:
        raise AnswerError("an event without end") from None
    finally:
        exchange.usage = usage_of(watch.usage)
    rest = cutter.rest()
    check_end(response, cutter, rest)
    if rest and (events := watch.look(rest + (b"\n" if rest.endswith(b"\n") else b"\n\n"))):
        await exchange.stream(events)
    if watch.failure is not None:
        check_inside(watch.failure)
    exchange.usage = usage_of(watch.usage)
    if not cutter.is_done:
        await exchange.stream(b"data: [DONE]\n\n")
    await exchange.end_stream()
