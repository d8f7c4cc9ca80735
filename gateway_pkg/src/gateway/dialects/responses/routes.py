"""OpenAI's Responses API: always a chat to the backend, kept for its caller unless that is not wanted.

A response is kept before its last event goes out, so that whoever has seen it can go on with it. One whose client
left, or whose backend failed, is not kept. A store that cannot write loses no answer: the response says `store: false`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any
from uuid import uuid4

from pydantic import TypeAdapter

from gateway.backends.answers import EVENTS_TYPE, Answer
from gateway.backends.overflow import CODE
from gateway.dialects.responses.answer import ResponseBuilder, begin, make_ids, response_of_item
from gateway.dialects.responses.chat import to_chat
from gateway.dialects.responses.items import Item, read_items, with_own_ids
from gateway.dialects.responses.request import ResponsesRequest, check
from gateway.dialects.responses.tools import Tools
from gateway.dialects.responses.truncation import shortened
from gateway.errors import ApiError
from gateway.features.conversations.feature import Conversations
from gateway.features.conversations.store import Sized
from gateway.features.conversations.stored import OF_STORED, RESPONSE, store_errors
from gateway.features.face import Core, Feature
from gateway.routing.body import dump
from gateway.storage import StorageError
from gateway.web.endpoint import JSON_TYPE, Endpoint, parse
from gateway.web.exchange import JSON, Exchange
from gateway.web.schemas import events
from gateway.wire import stepwise
from gateway.wire.collector import turn
from gateway.wire.stepwise import PARSED_MAX_BYTES

log = logging.getLogger(__name__)

REQUEST = TypeAdapter(ResponsesRequest)
EVENTS = "OpenAI's events, `response.created` to `response.completed` or `.incomplete` and `[DONE]`, or to `.failed`."
UNKNOWN = "Unknown model; the message has the nearest names. Or an item that is referred to, and not kept"
_ID = {"response_id": "$response.body#/id"}
LINKS: dict[str, Any] = {"show": {"operationId": "get_response", "parameters": _ID}, **OF_STORED}
ENCRYPTED = "reasoning.encrypted_content"
# A conversation is sent whole with each response: what goes on beyond this would only make it slow.
CONVERSATION_MAX_BYTES = 4_000_000


RESPONSES = Endpoint(
    "/v1/responses",
    "chat",
    "Answer a conversation that may be stored",
    REQUEST,
    answers={200: {JSON_TYPE: RESPONSE, **events(EVENTS)}},
    openapi_extra={"responses": {"200": {"links": LINKS}, "404": {"description": UNKNOWN}}},
)


class Responses(Feature):
    name = "responses"

    def __init__(self, core: Core) -> None:
        self._dispatcher = core.dispatcher
        conversations = core.find(Conversations)
        self._store, self._sealer = conversations.store, conversations.sealer
        self.endpoints = ((RESPONSES, self.create),)

    async def create(self, exchange: Exchange, endpoint: Endpoint) -> None:
        request = parse(await exchange.body(), REQUEST)
        size = exchange.bytes_in
        await turn(size)
        ignored: set[str] = set()
        check(request, ignored)
        tools = Tools(request.get("tools") or (), ignored)
        response = begin(request, f"resp_{uuid4().hex}", tools)
        new_id = make_ids(response["id"])
        owner = exchange.owner
        items = await stepwise.run(read_items(request, new_id, ignored))
        items = await self._conversation(owner, request, items, size)
        items = with_own_ids(items, new_id)
        exchange.ignore(ignored)
        await turn(size)
        wants_sealed = ENCRYPTED in (request.get("include") or ())
        seals = None
        if wants_sealed or any(item.get("encrypted_content") for item in items):
            with store_errors():
                seals = await self._sealer.of(owner)
        unseal = seals.open if seals is not None else lambda _: None
        chat = await stepwise.run(to_chat(request, items, tools, unseal))
        await turn(size)
        limit = min(self._dispatcher.max_response_bytes, PARSED_MAX_BYTES)
        seal = seals.seal if seals is not None and wants_sealed else None
        builder = ResponseBuilder(request, response, tools, new_id, limit, seal)
        try:
            async with self._ask(exchange, request, chat) as answer:
                if chat.get("stream"):
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
            await self._keep(owner, response, items)
        if exchange.status:
            await exchange.stream(closing)
            await asyncio.sleep(0)  # both tell all that was said
            await exchange.stream(builder.finish())
            await exchange.end_stream()
        else:
            await exchange.answer(200, dump(response), [JSON])

    @asynccontextmanager
    async def _ask(self, exchange: Exchange, request: Mapping[str, Any], chat: dict[str, Any]) -> AsyncIterator[Answer]:
        """As `Dispatcher.ask`; with `truncation: auto` once more, shortened, where the conversation is too long."""
        async with AsyncExitStack() as stack:
            try:
                answer = await stack.enter_async_context(self._dispatcher.ask(exchange, "chat", chat))
            except ApiError as error:
                shorter = shortened(chat, error) if error.code == CODE and request.get("truncation") == "auto" else None
                if shorter is None:
                    raise
                answer = await stack.enter_async_context(self._dispatcher.ask(exchange, "chat", shorter))
            yield answer

    async def _conversation(self, owner: str, request: Mapping[str, Any], items: list[Item], size: int) -> list[Item]:
        """What came before, and the request's own items with what they refer to; `size` is the request's, in bytes.

        Raises:
            ApiError: 400 for a response that is not there or would become too long, 404 for such an item, 503.
        """
        previous_id = request.get("previous_response_id")
        before: list[Item] = []
        if previous_id:
            with store_errors():
                previous = await self._store.find(owner, previous_id)
            if previous is None:
                raise ApiError(  # in OpenAI's words, status and code: clients then send the whole conversation
                    400,
                    f"Previous response with id '{previous_id}' not found.",
                    param="previous_response_id",
                    code="previous_response_not_found",
                )
            size += previous.bytes
            before = previous.input + previous.response["output"]
        referenced = [item["id"] for item in items if item["type"] == "item_reference"]
        if referenced:
            known = await self._referenced(owner, referenced)
            size += sum(known[item_id].bytes for item_id in referenced)
            items = [known[item["id"]].item if item["type"] == "item_reference" else item for item in items]
        if size > CONVERSATION_MAX_BYTES:
            raise _too_long("previous_response_id" if previous_id else "input")
        return before + items

    async def _referenced(self, owner: str, item_ids: Sequence[str]) -> dict[str, Sized]:
        by_response: dict[str, set[str]] = {}
        for item_id in item_ids:
            by_response.setdefault(response_of_item(item_id), set()).add(item_id)
        with store_errors():
            known = await self._store.items(owner, by_response, CONVERSATION_MAX_BYTES)
        if sum(sized.bytes for sized in known.values()) > CONVERSATION_MAX_BYTES:
            raise _too_long("input")
        for item_id in item_ids:
            if item_id not in known:
                raise ApiError(
                    404,
                    f"Item with id '{item_id}' not found. Items are not persisted when `store` is set to false. Send "
                    "the item itself instead of the reference.",
                    param="input",
                    code="item_not_found",
                )
        return known

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


def _too_long(param: str) -> ApiError:
    return ApiError(
        400,
        f"The conversation would be more than {CONVERSATION_MAX_BYTES} bytes; begin a new one with what matters of it",
        param=param,
        code="conversation_too_long",
    )
