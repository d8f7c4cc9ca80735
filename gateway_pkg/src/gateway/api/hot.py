"""The hot routes: chat, completions, embeddings. Parse, decide, admit, send, pass on as it came."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from pydantic import TypeAdapter, ValidationError

from gateway.api.schemas import ChatRequest, CompletionRequest, EmbeddingRequest
from gateway.http.errors import ApiError
from gateway.http.exchange import ClientGone, Exchange
from gateway.routing.registry import Registry, Route, Slots
from gateway.settings import Settings
from gateway.upstream.failures import failure, refused
from gateway.upstream.http1 import ProtocolViolation, Response, UpstreamError
from gateway.upstream.sse import EventCutter, EventTooLong


@dataclass(frozen=True, slots=True)
class HotRoute:
    """One declaration: what the OpenAPI page shows of the route, and what its handler needs."""

    path: str
    capability: str
    op: str
    summary: str
    request: TypeAdapter[Any]


HOT_ROUTES = (
    HotRoute("/v1/chat/completions", "chat", "chat.completions", "Answer a conversation", TypeAdapter(ChatRequest)),
    HotRoute("/v1/completions", "completions", "completions", "Continue a text", TypeAdapter(CompletionRequest)),
    HotRoute("/v1/embeddings", "embeddings", "embeddings", "Embed texts as vectors", TypeAdapter(EmbeddingRequest)),
)


class HotHandler:
    """Answers the hot routes. One request holds one slot of admission until its last byte is out."""

    def __init__(self, registry: Registry, settings: Settings) -> None:
        self._registry = registry
        self._max_request_bytes = settings.max_request_bytes
        self._max_response_bytes = settings.upstream_max_response_bytes

    async def __call__(self, exchange: Exchange, hot: HotRoute) -> None:
        """Raises ApiError, also after the stream has begun; ClientGone."""
        body = await exchange.body(self._max_request_bytes, "MAX_REQUEST_BYTES")
        request = parse(body, hot)
        model = request.get("model") or ""
        exchange.has_tools = bool(request.get("tools"))
        route = self._registry.route(model, exchange.headers.get(b"x-backend", b""), hot.capability)
        exchange.route = route
        if route.rename is not None:
            body = route.rename.apply(body)
        slots = self._registry.take(route)
        exchange.slots = slots
        exchange.cancel_when_left()
        try:
            await self._relay(exchange, route, slots, body)
        except UpstreamError as error:
            raise failure(error, slots.backend) from error
        except asyncio.CancelledError:
            if not exchange.was_left():
                raise
            raise ClientGone from None
        finally:
            exchange.finished()
            slots.inflight -= 1

    async def _relay(self, exchange: Exchange, route: Route, slots: Slots, body: bytes) -> None:
        backend = slots.backend
        sent_at = perf_counter()
        response = await backend.pool.request(b"POST", slots.target, backend.request_headers, body)
        try:
            content_type = response.header(b"content-type") or b""
            if response.status == 200 and content_type.startswith(b"application/json"):
                await exchange.relay(await response.read(self._max_response_bytes), route)
            elif response.status == 200 and content_type.startswith(b"text/event-stream"):
                await _pass_stream(exchange, response, content_type)
            elif response.status == 200:
                quoted = content_type[:100].decode("latin-1")
                raise ProtocolViolation(f"content type '{quoted}' instead of JSON", sent_first_byte=True)
            else:
                raise refused(response.status, await response.read(self._max_response_bytes), backend)
        finally:
            response.close()
            exchange.upstream_ms = (perf_counter() - sent_at) * 1000


async def _pass_stream(exchange: Exchange, response: Response, content_type: bytes) -> None:
    cutter = EventCutter()
    await exchange.start_stream(content_type)
    try:
        while chunk := await response.next_chunk():
            if events := cutter.feed(chunk):
                await exchange.stream(events)
    except UpstreamError:
        # What a backend does after its terminator is of no interest to the client.
        if not cutter.is_done:
            raise
    except EventTooLong:
        raise ApiError(502, "The backend sent an event without end", code="upstream_protocol_error") from None
    if rest := cutter.rest():
        await exchange.stream(rest + b"\n\n")
    if not cutter.is_done:
        await exchange.stream(b"data: [DONE]\n\n")
    await exchange.end_stream()


def parse(body: bytes, hot: HotRoute) -> dict[str, Any]:
    """The body as parsed and checked; raises ApiError 400 that names the field."""
    try:
        request: dict[str, Any] = hot.request.validator.validate_json(body)
        return request
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        param = ".".join(str(part) for part in problem["loc"] if not _is_union_tag(part)) or None
        where = f"'{param}': " if param else ""
        code = "invalid_json" if problem["type"] == "json_invalid" else "invalid_value"
        raise ApiError(400, f"Invalid request: {where}{problem['msg']}", param=param, code=code) from None


def _is_union_tag(part: int | str) -> bool:
    return isinstance(part, str) and (part in ("str", "int") or part.startswith(("list[", "dict[")))
