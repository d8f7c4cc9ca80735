"""A request's whole conversation as a chat: what is stored, what is sealed, and what the client sends now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from uuid import uuid4

from pydantic import TypeAdapter

from gateway.dialects.responses.answer import make_ids, response_of_item
from gateway.dialects.responses.chat import to_chat
from gateway.dialects.responses.items import Item, NewId, read_items, with_own_ids
from gateway.dialects.responses.request import ResponsesRequest, check
from gateway.dialects.responses.tools import Tools
from gateway.errors import ApiError
from gateway.features.conversations.feature import Conversations
from gateway.features.conversations.seal import Seals
from gateway.features.conversations.store import Sized
from gateway.features.conversations.stored import store_errors
from gateway.web.endpoint import parse
from gateway.web.exchange import Exchange
from gateway.wire import stepwise
from gateway.wire.collector import turn

REQUEST = TypeAdapter(ResponsesRequest)
ENCRYPTED = "reasoning.encrypted_content"


class Conversation(NamedTuple):
    """`chat` is OpenAI's request for all `items`; `new_id` makes the ids of the response's own."""

    request: Mapping[str, Any]
    response_id: str
    new_id: NewId
    tools: Tools
    items: list[Item]
    chat: dict[str, Any]


class Reader:
    """Reads requests; `max_bytes` bounds a conversation, which is sent whole with each response."""

    def __init__(self, conversations: Conversations, max_bytes: int) -> None:
        self._store = conversations.store
        self._sealer = conversations.sealer
        self._max_bytes = max_bytes

    async def read(self, exchange: Exchange) -> Conversation:
        """Raises ApiError 400 that names a field, 404 for an item that is not kept, 503 without the store."""
        request = parse(await exchange.body(), REQUEST)
        size = exchange.bytes_in
        await turn(size)
        ignored: set[str] = set()
        check(request, ignored)
        tools = Tools(request.get("tools") or (), ignored)
        response_id = f"resp_{uuid4().hex}"
        new_id = make_ids(response_id)
        items = await stepwise.run(read_items(request, new_id, ignored))
        items = await self._conversation(exchange.owner, request, items, size)
        items = with_own_ids(items, new_id)
        exchange.ignore(ignored)
        await turn(size)
        has_sealed = any(item.get("encrypted_content") for item in items)
        unseal = (await self.seals(exchange)).open if has_sealed else lambda _: None
        chat = await stepwise.run(to_chat(request, items, tools, unseal))
        await turn(size)
        return Conversation(request, response_id, new_id, tools, items, chat)

    async def seals(self, exchange: Exchange) -> Seals:
        """Raises ApiError 503."""
        with store_errors():
            return await self._sealer.of(exchange.owner)

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
        if size > self._max_bytes:
            raise self._too_long("previous_response_id" if previous_id else "input")
        return before + items

    async def _referenced(self, owner: str, item_ids: Sequence[str]) -> dict[str, Sized]:
        by_response: dict[str, set[str]] = {}
        for item_id in item_ids:
            by_response.setdefault(response_of_item(item_id), set()).add(item_id)
        with store_errors():
            known = await self._store.items(owner, by_response, self._max_bytes)
        if sum(sized.bytes for sized in known.values()) > self._max_bytes:
            raise self._too_long("input")
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

    def _too_long(self, param: str) -> ApiError:
        return ApiError(
            400,
            f"The conversation would be more than {self._max_bytes} bytes; begin a new one with what matters of it",
            param=param,
            code="conversation_too_long",
        )
