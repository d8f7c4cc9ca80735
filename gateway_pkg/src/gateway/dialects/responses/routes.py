"""OpenAI's Responses API: always a chat to the backend, kept for its caller unless that is not wanted.

A response is kept before its last event goes out, so that whoever has seen it can go on with it. One whose client
left, or whose backend failed, is not kept. A store that cannot write loses no answer: the response says `store: false`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from gateway.backends.answers import EVENTS_TYPE, Answer
from gateway.backends.overflow import CODE
from gateway.dialects.counting import input_tokens
from gateway.dialects.responses.answer import ResponseBuilder, begin
from gateway.dialects.responses.compaction import COMPACTED, compacted_response, to_summary
from gateway.dialects.responses.conversation import ENCRYPTED, REQUEST, Conversation, Reader
from gateway.dialects.responses.items import Item
from gateway.dialects.responses.truncation import shortened
from gateway.errors import ApiError
from gateway.features.conversations.feature import Conversations
from gateway.features.conversations.stored import OF_STORED, RESPONSE
from gateway.features.face import Core, Feature
from gateway.routing.body import dump
from gateway.storage import StorageError
from gateway.web.endpoint import JSON_TYPE, Endpoint
from gateway.web.exchange import JSON, Exchange
from gateway.web.schemas import events, record
from gateway.web.settings import RequestSettings
from gateway.wire.stepwise import PARSED_MAX_BYTES

log = logging.getLogger(__name__)

EVENTS = "OpenAI's events, `response.created` to `response.completed` or `.incomplete` and `[DONE]`, or to `.failed`."
UNKNOWN = "Unknown model; the message has the nearest names. Or an item that is referred to, and not kept"
_ID = {"response_id": "$response.body#/id"}
LINKS: dict[str, Any] = {"show": {"operationId": "get_response", "parameters": _ID}, **OF_STORED}
# The least that a conversation may have, whatever MAX_UPLOAD_BYTES allows a request.
CONVERSATION_MAX_BYTES = 4_000_000

RESPONSES = Endpoint(
    "/v1/responses",
    "chat",
    "Answer a conversation that may be stored",
    REQUEST,
    answers={200: {JSON_TYPE: RESPONSE, **events(EVENTS)}},
    openapi_extra={"responses": {"200": {"links": LINKS}, "404": {"description": UNKNOWN}}},
)


INPUT_TOKENS = Endpoint(
    "/v1/responses/input_tokens",
    "chat",
    "Count a conversation's tokens, by the backend's own tokenizer",
    REQUEST,
    answers={200: {JSON_TYPE: record(object={"const": "response.input_tokens"}, input_tokens={"type": "integer"})}},
)
COMPACT = Endpoint(
    "/v1/responses/compact",
    "chat",
    "Replace a conversation by the user's messages and the model's own summary, sealed",
    REQUEST,
    answers={200: {JSON_TYPE: COMPACTED}},
)


class Responses(Feature):
    name = "responses"

    def __init__(self, core: Core) -> None:
        self._dispatcher = core.dispatcher
        conversations = core.find(Conversations)
        self._store = conversations.store
        upload = core.settings[RequestSettings].max_upload_bytes
        self._reader = Reader(conversations, max(upload, CONVERSATION_MAX_BYTES))
        self.endpoints = (RESPONSES, self.create), (INPUT_TOKENS, self.count), (COMPACT, self.compact)

    async def create(self, exchange: Exchange, endpoint: Endpoint) -> None:
        asked = await self._reader.read(exchange)
        response = begin(asked.request, asked.response_id, asked.tools)
        wants_sealed = ENCRYPTED in (asked.request.get("include") or ())
        seal = (await self._reader.seals(exchange)).seal if wants_sealed else None
        limit = min(self._dispatcher.max_response_bytes, PARSED_MAX_BYTES)
        builder = ResponseBuilder(asked.request, response, asked.tools, asked.new_id, limit, seal)
        try:
            async with self._ask(exchange, asked) as answer:
                if asked.chat.get("stream"):
                    await _stream(exchange, answer, builder)
                else:
                    builder.feed_completion(await answer.completion())
                    await asyncio.sleep(0)  # it may be megabytes
                closing = builder.end()
        except ApiError as error:
            if not exchange.status:
                raise
            exchange.abort_reason = error.code or "error"
            await exchange.stream(builder.fail(error))
            await exchange.end_stream()
            return
        if response["store"]:
            await self._keep(exchange.owner, response, asked.items)
        if exchange.status:
            await exchange.stream(closing)
            await asyncio.sleep(0)  # both tell all that was said
            await exchange.stream(builder.finish())
            await exchange.end_stream()
        else:
            await exchange.answer(200, dump(response), [JSON])

    async def count(self, exchange: Exchange, endpoint: Endpoint) -> None:
        asked = await self._reader.read(exchange)
        tokens = await input_tokens(self._dispatcher, exchange, asked.chat)
        await exchange.answer(200, dump({"object": "response.input_tokens", "input_tokens": tokens}), [JSON])

    async def compact(self, exchange: Exchange, endpoint: Endpoint) -> None:
        asked = await self._reader.read(exchange)
        seals = await self._reader.seals(exchange)
        async with self._dispatcher.ask(exchange, "chat", to_summary(asked.chat)) as answer:
            completion = await answer.completion()
        compacted = compacted_response(asked.response_id, asked.new_id, asked.items, completion, seals.seal)
        await exchange.answer(200, dump(compacted), [JSON])

    @asynccontextmanager
    async def _ask(self, exchange: Exchange, asked: Conversation) -> AsyncIterator[Answer]:
        """As `Dispatcher.ask`; with `truncation: auto` once more, shortened, where the conversation is too long."""
        chat, truncates = asked.chat, asked.request.get("truncation") == "auto"
        async with AsyncExitStack() as stack:
            try:
                answer = await stack.enter_async_context(self._dispatcher.ask(exchange, "chat", chat))
            except ApiError as error:
                shorter = shortened(chat, error) if truncates and error.code == CODE else None
                if shorter is None:
                    raise
                answer = await stack.enter_async_context(self._dispatcher.ask(exchange, "chat", shorter))
            yield answer

    async def _keep(self, owner: str, response: dict[str, Any], items: Sequence[Item]) -> None:
        try:
            await self._store.put(owner, response, items)
        except StorageError as error:
            log.warning("response %s is not kept: %s", response["id"], error)
            response["store"] = False


async def _stream(exchange: Exchange, answer: Answer, builder: ResponseBuilder) -> None:
    """The stream begins with the first chunk: until then a failure has a status of its own."""
    opening = builder.start()
    async for chunk in answer.chunks():
        events = builder.feed(chunk)
        if not exchange.status:
            await exchange.start_stream(EVENTS_TYPE)
            events = opening + events
        if events:
            await exchange.stream(events)
