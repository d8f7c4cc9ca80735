"""The hot routes: chat, completions, embeddings. Parse, decide, admit, send, pass on as it came."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from time import perf_counter
from typing import Any

from pydantic import TypeAdapter

from gateway.backends.call import (
    EVENTS_TYPE,
    JSON_TYPE,
    Dispatcher,
    as_chunk,
    asks_for_usage,
    check_end,
    explain,
)
from gateway.backends.failures import refused, told_in_200
from gateway.backends.protocols.base import (
    Adapter,
    AnswerError,
    embeddings_written,
    json_object,
    json_object_in_steps,
    written,
)
from gateway.backends.registry import Route
from gateway.backends.slots import Backend, Slots
from gateway.backends.usage import usage_in, usage_of
from gateway.routing.body import dump
from gateway.routing.caps import within_limits
from gateway.web.endpoint import Endpoint, Endpoints
from gateway.web.exchange import JSON, ClientDisconnected, Exchange
from gateway.web.known import known_fields
from gateway.web.schemas import (
    CHAT_ANSWER,
    COMPLETION_ANSWER,
    EMBEDDING_ANSWER,
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    events,
)
from gateway.wire.collector import LARGE_BYTES, turn
from gateway.wire.errors import ConnectFailed, ProtocolViolation, UpstreamClosed, UpstreamError
from gateway.wire.http1 import Response
from gateway.wire.sse import EventCutter, EventTooLong, EventWatch
from gateway.wire.stepwise import TURN_BYTES, run

STREAM = events("`data:` lines, each with a chunk; the last one is `data: [DONE]`.")
CHAT_REQUEST: TypeAdapter[Any] = TypeAdapter(ChatRequest)
COMPLETION_REQUEST: TypeAdapter[Any] = TypeAdapter(CompletionRequest)
EMBEDDING_REQUEST: TypeAdapter[Any] = TypeAdapter(EmbeddingRequest)

CHAT = Endpoint(
    "/v1/chat/completions",
    "chat",
    "chat.completions",
    "Answer a conversation",
    CHAT_REQUEST,
    answers={200: {"application/json": CHAT_ANSWER, **STREAM}},
)
COMPLETIONS = Endpoint(
    "/v1/completions",
    "completions",
    "completions",
    "Continue a text",
    COMPLETION_REQUEST,
    answers={200: {"application/json": COMPLETION_ANSWER, **STREAM}},
)
EMBEDDINGS = Endpoint(
    "/v1/embeddings",
    "embeddings",
    "embeddings",
    "Embed texts as vectors",
    EMBEDDING_REQUEST,
    answers={200: {"application/json": EMBEDDING_ANSWER}},
)


def make_endpoints(dispatcher: Dispatcher) -> Endpoints:
    requests = (CHAT, CHAT_REQUEST), (COMPLETIONS, COMPLETION_REQUEST), (EMBEDDINGS, EMBEDDING_REQUEST)
    return [(endpoint, HotHandler(dispatcher, request).answer) for endpoint, request in requests]


class HotHandler:
    """Answers a hot route. One request holds one slot of admission until its last byte is out."""

    def __init__(self, dispatcher: Dispatcher, request: TypeAdapter[Any]) -> None:
        self._parse = known_fields(request).parse
        self._dispatcher = dispatcher
        self._take = dispatcher.registry.take
        self._max_response_bytes = dispatcher.max_response_bytes

    async def answer(self, exchange: Exchange, endpoint: Endpoint) -> None:
        """Raises ApiError, also after the stream has begun; ClientDisconnected."""
        body = await exchange.body()
        request = self._parse(body)
        is_large = len(body) >= LARGE_BYTES
        if is_large:
            await turn(len(body))
        exchange.has_tools = bool(request.get("tools"))
        model = request.get("model") or ""
        route = self._dispatcher.known_route(exchange, endpoint.capability, model, request)
        if route is None:
            route = await self._dispatcher.chat_route(exchange, endpoint.capability, model, request)
        if route.limits is not None:
            request = request | within_limits(route.limits, request)
            # Written anew: of a field that the body has twice, a backend reads the one that is bounded.
            body = dump({**request, "model": route.decision.model})
            if is_large:
                await turn(len(body))
        elif route.rename is not None:
            body = route.rename.apply(body)
        # As `with Work(exchange)`, but for its frames.
        exchange.cancel_on_disconnect()
        try:
            slots = exchange.slots = self._take(route)
            if slots is None:
                slots = await self._dispatcher.admit(exchange, route)
            await self._pass_on(exchange, route, slots, request, body)
        except (UpstreamError, AnswerError) as error:
            if exchange.slots is not None:
                explain(error, exchange.slots)
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
                raise refused(response.status, await response.read(self._max_response_bytes), slots.backend)
            content_type = response.header(b"content-type") or b""
            if slots.adapter is not None:
                await self._translate(exchange, route, slots.adapter, request, response)
            elif content_type.startswith(JSON_TYPE):
                relay = self._relay_as_stream if is_streamed else self._relay
                await relay(exchange, route, slots.backend, response)
            elif content_type.startswith(EVENTS_TYPE) and is_streamed:
                watch = EventWatch(takes_out=not asks_for_usage(request))
                await _pass_stream(exchange, response, content_type, watch, slots.backend)
            else:
                quoted = content_type[:100].decode("latin-1")
                wanted = "events or JSON" if is_streamed else "JSON"
                raise ProtocolViolation(f"content type '{quoted}' instead of {wanted}", sent_first_byte=True)
            if slots.backend.circuit_failures:
                slots.backend.close_circuit()
        finally:
            if response is not None:
                response.close()
            exchange.upstream_ms = (perf_counter() - sent_at) * 1000

    async def _relay(self, exchange: Exchange, route: Route, backend: Backend, response: Response) -> None:
        body = await response.read(self._max_response_bytes)
        if response.ends_unframed or not _is_sound(body):
            content, _ = await run(json_object_in_steps(body))
            told_in_200(content, backend)
        exchange.usage = usage_in(body)
        await exchange.relay(body, route)

    async def _relay_as_stream(self, exchange: Exchange, route: Route, backend: Backend, response: Response) -> None:
        """A backend that does not stream has answered whole: its answer is the one chunk."""
        content = json_object(await response.read(self._max_response_bytes))
        told_in_200(content, backend)
        exchange.usage = usage_of(content.get("usage"))
        chunk = as_chunk(content) if route.capability == "chat" else content
        event = b"data: " + written(chunk) + b"\n\ndata: [DONE]\n\n"
        await exchange.start_stream(EVENTS_TYPE)
        await exchange.stream(event)
        await exchange.end_stream()

    async def _translate(
        self, exchange: Exchange, route: Route, adapter: Adapter, request: Mapping[str, Any], response: Response
    ) -> None:
        capability, model = route.capability, route.decision.model
        if not request.get("stream"):
            body = await response.read(self._max_response_bytes)
            if capability == "embeddings":
                content, lists = await run(adapter.embeddings(request, model, body))
                body = await run(embeddings_written(content, lists, request.get("encoding_format")))
            else:
                content = adapter.answer(capability, request, model, body)
                body = written(content)
            exchange.usage = usage_of(content.get("usage"))
            await exchange.answer(200, body, [JSON])
            return
        translator = adapter.stream(capability, request, model)
        await exchange.start_stream(EVENTS_TYPE)
        chunk = b""
        try:
            while chunk := chunk[TURN_BYTES:] or await response.next_chunk():
                events = translator.feed(chunk[:TURN_BYTES])
                response.is_over = translator.is_done
                if events:
                    await exchange.stream(b"".join(events))
                if len(chunk) > TURN_BYTES:
                    await asyncio.sleep(0)
        except UpstreamError:
            if not translator.is_done:
                raise
        if not translator.is_done and (events := translator.end()):
            await exchange.stream(b"".join(events))
        exchange.usage = usage_of(translator.usage)
        await exchange.end_stream()


async def _pass_stream(
    exchange: Exchange, response: Response, content_type: bytes, watch: EventWatch, backend: Backend
) -> None:
    cutter, chunk = EventCutter(), b""
    await exchange.start_stream(content_type)
    try:
        while chunk := chunk[TURN_BYTES:] or await response.next_chunk():
            events = cutter.feed(chunk[:TURN_BYTES])
            response.is_over = cutter.is_done
            if events and (events := watch.look(events)):
                await exchange.stream(events)
            if watch.failure is not None:
                told_in_200(watch.failure, backend)
            if len(chunk) > TURN_BYTES:
                await asyncio.sleep(0)
    except UpstreamError:
        # What a backend does after its terminator is of no interest to the client.
        if not cutter.is_done:
            raise
    except EventTooLong:
        raise ProtocolViolation("an event without end") from None
    finally:
        exchange.usage = usage_of(watch.usage)
    rest = cutter.rest()
    check_end(response, cutter)
    if rest and (events := watch.look(rest + (b"\n" if rest.endswith(b"\n") else b"\n\n"))):
        await exchange.stream(events)
    if watch.failure is not None:
        told_in_200(watch.failure, backend)
    exchange.usage = usage_of(watch.usage)
    if not cutter.is_done:
        await exchange.stream(b"data: [DONE]\n\n")
    await exchange.end_stream()


def _is_sound(body: bytes) -> bool:
    """Whether it looks like an object that holds no error, which is cheaper than to parse it.

    Within a string the word's quotes would be escaped.
    """
    return body[:1] == b"{" and body[-1:] == b"}" and body.find(b'"error"') < 0
