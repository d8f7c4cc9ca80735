"""Anthropic's Messages API: always a chat to the backend, whatever it speaks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any
from uuid import uuid4

import orjson
from pydantic import TypeAdapter

from gateway.backends.answers import EVENTS_TYPE, Answer
from gateway.backends.overflow import CODE
from gateway.dialects.counting import input_tokens
from gateway.dialects.messages.answer import Facts, MessageStream, message
from gateway.dialects.messages.request import CountRequest, MessagesRequest, prefill, shows_thinking, to_chat
from gateway.errors import ApiError, ErrorShape
from gateway.features.face import Core, Feature
from gateway.web.endpoint import JSON_TYPE, Endpoint, parse
from gateway.web.exchange import JSON, Exchange
from gateway.web.schemas import COUNT, TEXT, events, record
from gateway.wire.collector import paused, turn

REQUEST = TypeAdapter(MessagesRequest)
CONVERSATION = TypeAdapter(CountRequest)
# Anthropic's error types by status; others are `invalid_request_error` below 500, else `api_error`.
ERROR_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
EVENTS = "Anthropic's events, `message_start` to `message_stop`; `error` where it fails."
REQUEST_ID = {
    "responses": {"200": {"headers": {"request-id": {"description": "The same as `X-Request-Id`", "schema": TEXT}}}}
}
INTERLEAVED = b"interleaved-thinking-2025-05-14"  # of `anthropic-beta`

_ERROR = record(
    type={"const": "error"},
    request_id=TEXT,
    error=record({"details": {"type": "object", "properties": {"error_code": TEXT}}}, type=TEXT, message=TEXT),
)
_COUNT = COUNT | {"type": ["integer", "null"]}
_USAGE = record(input_tokens=_COUNT, output_tokens=_COUNT)
_MESSAGE = record(
    id=TEXT,
    type={"const": "message"},
    role={"const": "assistant"},
    model=TEXT,
    content={"type": "array", "items": {"type": "object", "required": ["type"]}},
    stop_reason={"enum": ["end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal"]},
    stop_sequence={"type": ["string", "null"]},
    usage=_USAGE | {"description": "Null when the backend reports no usage."},
)


def _error_body(error: ApiError, request_id: str) -> bytes:
    """Anthropic's error object; `details.error_code` is the gateway's own code, the message names the field."""
    kind = ERROR_TYPES.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
    message = error.message
    if error.code == CODE:  # in Anthropic's words: by these its clients know to shorten the conversation
        asked, limit = error.more.get("n_prompt_tokens"), error.more.get("n_ctx")
        message = f"prompt is too long: {f'{asked} tokens > {limit} maximum' if asked and limit else message}"
    if error.param is not None and error.param not in message:
        message = f"{error.param}: {message}"
    told: dict[str, Any] = {"type": kind, "message": message}
    if error.code is not None:
        told["details"] = {**error.more, "error_code": error.code}
    return orjson.dumps({"type": "error", "error": told, "request_id": request_id})


def _error_event(error: ApiError, request_id: str) -> bytes:
    return b"event: error\ndata: " + _error_body(error, request_id) + b"\n\n"


ERRORS = ErrorShape(_error_body, _error_event, "AnthropicError", _ERROR, id_header=b"request-id")
_endpoint = partial(Endpoint, capability="chat", tag="anthropic", errors=ERRORS, openapi_extra=REQUEST_ID)
MESSAGES = _endpoint(
    "/v1/messages",
    summary="Answer a conversation, as Anthropic's API",
    request=REQUEST,
    answers={200: {JSON_TYPE: _MESSAGE, **events(EVENTS)}},
)
COUNT_TOKENS = _endpoint(
    "/v1/messages/count_tokens",
    summary="Count a conversation's tokens, by the backend's own tokenizer",
    request=CONVERSATION,
    answers={200: {JSON_TYPE: record(input_tokens={"type": "integer"})}},
)


class Messages(Feature):
    name = "messages"

    def __init__(self, core: Core) -> None:
        self._dispatcher = core.dispatcher
        self.endpoints = (MESSAGES, self.create), (COUNT_TOKENS, self.count_tokens)

    async def create(self, exchange: Exchange, endpoint: Endpoint) -> None:
        request, chat = await _read(exchange, REQUEST)
        stops = request.get("stop_sequences") or ()
        facts = Facts(f"msg_{uuid4().hex}", request["model"], stops, shows_thinking(request), prefill(chat))
        async with self._dispatcher.ask(exchange, "chat", chat) as answer:
            if chat.get("stream"):
                await _stream(exchange, answer, facts)
            else:
                body = message(await answer.completion(), facts)
                await exchange.answer(200, body, [JSON, _request_id(exchange)])

    async def count_tokens(self, exchange: Exchange, endpoint: Endpoint) -> None:
        """Counts what the chat would be, so that the answer is that of the same tokenizer and template."""
        _, chat = await _read(exchange, CONVERSATION)
        tokens = await input_tokens(self._dispatcher, exchange, chat)
        await exchange.answer(200, orjson.dumps({"input_tokens": tokens}), [JSON, _request_id(exchange)])


async def _read(exchange: Exchange, adapter: TypeAdapter[Any]) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """The request as it came, and as a chat."""
    request = parse(await exchange.body(), adapter)
    size = exchange.bytes_in
    await turn(size)
    ignored: set[str] = set()
    with paused(size):
        chat = to_chat(request, ignored, INTERLEAVED in exchange.headers.get(b"anthropic-beta", b""))
    exchange.ignore(ignored)
    await turn(size)
    return request, chat


async def _stream(exchange: Exchange, answer: Answer, facts: Facts) -> None:
    """The stream begins with the first chunk: until then a failure has a status of its own."""
    stream = MessageStream(facts)
    async for chunk in answer.chunks():
        events = stream.feed(chunk)
        if not exchange.status:
            await exchange.start_stream(EVENTS_TYPE, [_request_id(exchange)])
        if events:
            await exchange.stream(events)
    await exchange.stream(stream.end())
    await exchange.end_stream()


def _request_id(exchange: Exchange) -> tuple[bytes, bytes]:
    return b"request-id", exchange.request_id.encode()
