"""The hot routes: chat, completions, embeddings. Parse, decide, admit, send, pass on as it came."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import orjson
from pydantic import TypeAdapter, ValidationError

from gateway.api.schemas import ChatRequest, CompletionRequest, EmbeddingRequest
from gateway.http.errors import ApiError
from gateway.http.exchange import JSON, Exchange, Headers
from gateway.routing.policy import Decision, decide
from gateway.routing.registry import Backend, Registry
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

_MODEL = re.compile(rb'"model"\s*:\s*"(?:[^"\\]|\\.)*"')
_SAFE_IN_HEADER = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")


class HotHandler:
    """Answers the hot routes. One request holds one slot of admission until its last byte is out."""

    def __init__(self, registry: Registry, settings: Settings) -> None:
        self._registry = registry
        self._max_request_bytes = settings.max_request_bytes
        self._max_response_bytes = settings.upstream_max_response_bytes

    async def __call__(self, exchange: Exchange, route: HotRoute) -> None:
        """Raises ApiError, also after the stream has begun."""
        body = await exchange.body(self._max_request_bytes, "MAX_REQUEST_BYTES")
        request = parse(body, route)
        model = request.get("model") or ""
        backend_header = exchange.headers.get(b"x-backend", b"").decode("latin-1")
        decision = decide(model, backend_header, self._registry.names)
        exchange.route_headers = _headers(decision)
        exchange.facts = facts = {
            "op": route.op,
            "backend": decision.backend_class,
            "backend_class": decision.backend_class,
            "upstream_model": decision.model,
            "router_reason": decision.reason,
            "has_tools": bool(request.get("tools")),
        }
        if decision.model != model:
            body = with_model(body, decision.model, bool(model))
        backend = self._registry.take(decision.backend_class, route.capability)
        facts["backend"] = backend.name
        try:
            exchange.cancel_when_client_leaves()
            await self._relay(exchange, route, backend, body)
        except UpstreamError as error:
            raise failure(error, backend) from error
        finally:
            self._registry.give_back(backend, route.capability)

    async def _relay(self, exchange: Exchange, route: HotRoute, backend: Backend, body: bytes) -> None:
        sent_at = time.perf_counter()
        target = backend.targets[route.op]
        response = await backend.pool.request(b"POST", target, backend.request_headers, body)
        try:
            content_type = response.header(b"content-type") or b""
            if response.status == 200 and content_type.startswith(b"text/event-stream"):
                await _pass_stream(exchange, response, content_type)
            else:
                await self._pass_answer(exchange, response, content_type, backend)
        finally:
            response.close()
            exchange.facts["upstream_ms"] = round((time.perf_counter() - sent_at) * 1000, 3)

    async def _pass_answer(self, exchange: Exchange, response: Response, content_type: bytes, backend: Backend) -> None:
        answer = await response.read(self._max_response_bytes)
        if response.status != 200:
            raise refused(response.status, answer, backend)
        if not content_type.startswith(b"application/json"):
            raise ProtocolViolation(f"content type '{content_type[:100].decode('latin-1')}' instead of JSON")
        await exchange.answer(200, answer, [JSON])


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


def parse(body: bytes, route: HotRoute) -> dict[str, Any]:
    """The body as parsed and checked; raises ApiError 400 that names the field."""
    try:
        request: dict[str, Any] = route.request.validator.validate_python(orjson.loads(body))
        return request
    except orjson.JSONDecodeError as error:
        raise ApiError(400, f"The body is not valid JSON: {error}", code="invalid_json") from None
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        param = ".".join(str(part) for part in problem["loc"] if not _is_union_tag(part)) or None
        where = f"'{param}': " if param else ""
        raise ApiError(400, f"Invalid request: {where}{problem['msg']}", param=param, code="invalid_value") from None


def with_model(body: bytes, model: str, is_named: bool) -> bytes:
    """The JSON object `body` with `model` as its model, every other byte as it came; `is_named`: it has one now."""
    named = b'"model":' + orjson.dumps(model)
    # No \u00 escape and one "model" alone: then the match can only be the object's own key.
    if is_named and body.count(b'"model"') == 1 and b"\\u00" not in body and (match := _MODEL.search(body)):
        return b"%b%b%b" % (body[: match.start()], named, body[match.end() :])
    # The standard library's numbers are exact where orjson's are 64 bits wide.
    content = json.loads(body)
    content["model"] = model
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def _is_union_tag(part: int | str) -> bool:
    return isinstance(part, str) and (part in ("str", "int") or part.startswith(("list[", "dict[")))


def _headers(decision: Decision) -> Headers:
    model = decision.model
    if not (model.isascii() and model.isprintable()):
        model = quote(model, safe=_SAFE_IN_HEADER)
    return [
        (b"x-backend-used", decision.backend_class.encode()),
        (b"x-model-used", model.encode()),
        (b"x-router-reason", decision.reason.encode()),
    ]
