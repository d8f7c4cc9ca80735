"""OpenAI's Responses API: always a chat to the backend, kept for its caller unless that is not wanted.

A response is kept before its last event goes out, so that whoever has seen it can go on with it. One whose client
left, or whose backend failed, is not kept. A store that cannot write loses no answer: the response says `store: false`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, TypeAdapter

from gateway.backends.answers import EVENTS_TYPE, Answer
from gateway.backends.call import Dispatcher
from gateway.dialects.responses.answer import ResponseBuilder, begin, make_ids, new_response_id, response_of_item
from gateway.dialects.responses.chat import translating
from gateway.dialects.responses.items import Item, reading, unsupported, with_own_ids
from gateway.dialects.responses.request import INCLUDABLE, ResponsesRequest, check
from gateway.errors import ApiError
from gateway.features.conversations.store import ResponseStore, Sized
from gateway.routing.body import dump
from gateway.storage import StorageError
from gateway.web.endpoint import JSON_TYPE, Endpoint, Endpoints, parse
from gateway.web.exchange import JSON, Exchange
from gateway.web.schemas import events
from gateway.wire import stepwise
from gateway.wire.collector import turn
from gateway.wire.stepwise import PARSED_MAX_BYTES

log = logging.getLogger(__name__)

REQUEST = TypeAdapter(ResponsesRequest)
RESPONSE = {
    "type": "object",
    "required": ["id", "object", "created_at", "status", "model", "output", "usage", "error", "incomplete_details"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "response"},
        "status": {"enum": ["completed", "incomplete"]},
        "output": {"type": "array", "items": {"type": "object"}},
        "store": {"type": "boolean", "description": "Whether it is kept."},
    },
}
EVENTS = "OpenAI's events, `response.created` to `response.completed` or `.incomplete` and `[DONE]`, or to `.failed`."
UNKNOWN = "Unknown model; the message has the nearest names. Or an item that is referred to, and not kept"
_ID = {"response_id": "$response.body#/id"}
OF_STORED: dict[str, Any] = {
    "delete": {"operationId": "delete_response", "parameters": _ID},
    "input_items": {"operationId": "list_input_items", "parameters": _ID},
    "continue": {"operationId": "responses", "requestBody": {"previous_response_id": "$response.body#/id"}},
}
LINKS: dict[str, Any] = {"show": {"operationId": "get_response", "parameters": _ID}, **OF_STORED}
INCLUDE: dict[str, Any] = {"items": {"type": "string", "enum": list(INCLUDABLE)}}
# A conversation is sent whole with each response: what goes on beyond this would only make it slow.
CONVERSATION_MAX_BYTES = 4_000_000
ERRORS: dict[int | str, dict[str, Any]] = {
    404: {"description": "The caller has no such response: never, no longer, or not kept"},
    503: {"description": "The store cannot be read or written; the gateway's log says why"},
}


class InputItems(BaseModel):
    """A page of what a response was made from, all that came before it included."""

    object: Literal["list"] = "list"
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(BaseModel):
    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


def make_endpoints(dispatcher: Dispatcher, store: ResponseStore) -> Endpoints:
    """`POST /v1/responses`."""
    endpoint = Endpoint(
        "/v1/responses",
        "chat",
        "responses",
        "Answer a conversation that may be stored",
        REQUEST,
        answers={200: {JSON_TYPE: RESPONSE, **events(EVENTS)}},
        openapi_extra={"responses": {"200": {"links": LINKS}, "404": {"description": UNKNOWN}}},
    )
    return ((endpoint, _Handler(dispatcher, store).create),)


def make_router(store: ResponseStore) -> APIRouter:
    """What there is of stored responses; a caller sees its own alone."""
    router = APIRouter(prefix="/v1/responses/{response_id}", tags=["openai"], responses=ERRORS)

    @router.get(
        "",
        summary="Show a stored response",
        response_class=Response,
        responses={200: {**_json(RESPONSE), "links": OF_STORED}},
    )
    async def get_response(
        response_id: str,
        request: Request,
        include: Annotated[list[str] | None, Query(json_schema_extra=INCLUDE)] = None,
        include_: Annotated[list[str] | None, Query(alias="include[]", json_schema_extra=INCLUDE)] = None,
        stream: Annotated[bool, Query(json_schema_extra={"enum": [False]})] = False,
    ) -> Response:
        _check_include(include, include_)
        if stream:
            raise unsupported("stream", "a stored response is given whole; leave it out")
        with _store_errors():
            found = await store.response(_owner(request), response_id)
        if found is None:
            raise _not_found(response_id)
        return Response(found, media_type=JSON_TYPE)

    @router.delete("", summary="Delete a stored response")
    async def delete_response(response_id: str, request: Request) -> Deleted:
        with _store_errors():
            is_gone = await store.delete(_owner(request), response_id)
        if not is_gone:
            raise _not_found(response_id)
        return Deleted(id=response_id)

    @router.get("/input_items", summary="List what a response was made from")
    async def list_input_items(
        response_id: str,
        request: Request,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
        after: str | None = None,
        include: Annotated[list[str] | None, Query(json_schema_extra=INCLUDE)] = None,
        include_: Annotated[list[str] | None, Query(alias="include[]", json_schema_extra=INCLUDE)] = None,
    ) -> InputItems:
        _check_include(include, include_)
        with _store_errors():
            found = await store.find(_owner(request), response_id)
        if found is None:
            raise _not_found(response_id)
        return _page(found.input if order == "asc" else found.input[::-1], limit, after)

    return router


class _Handler:
    def __init__(self, dispatcher: Dispatcher, store: ResponseStore) -> None:
        self._dispatcher = dispatcher
        self._store = store

    async def create(self, exchange: Exchange, endpoint: Endpoint) -> None:
        request = parse(await exchange.body(), REQUEST)
        size = exchange.bytes_in
        await turn(size)
        check(request)
        response = begin(request, new_response_id())
        new_id = make_ids(response["id"])
        owner = exchange.caller.key if exchange.caller is not None else ""
        items = await stepwise.run(reading(request, new_id))
        items = await self._conversation(owner, request, items, size)
        items = with_own_ids(items, new_id)
        await turn(size)
        chat = await stepwise.run(translating(request, items))
        await turn(size)
        limit = min(self._dispatcher.max_response_bytes, PARSED_MAX_BYTES)
        builder = ResponseBuilder(request, response, new_id, limit)
        try:
            async with self._dispatcher.ask(exchange, "chat", chat) as answer:
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

    async def _conversation(self, owner: str, request: Mapping[str, Any], items: list[Item], size: int) -> list[Item]:
        """What came before, and the request's own items with what they refer to; `size` is the request's, in bytes.

        Raises:
            ApiError: 400 for a response that is not there or would become too long, 404 for such an item, 503.
        """
        previous_id = request.get("previous_response_id")
        before: list[Item] = []
        if previous_id:
            with _store_errors():
                previous = await self._store.find(owner, previous_id)
            if previous is None:
                raise _no_previous(previous_id)
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
        with _store_errors():
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


def _page(items: Sequence[Item], limit: int, after: str | None) -> InputItems:
    start = 0
    if after is not None:
        start = next((index + 1 for index, item in enumerate(items) if item["id"] == after), 0)
        if not start:
            raise ApiError(400, f"'after': there is no item '{after}'", param="after", code="invalid_value")
    page = list(items[start : start + limit])
    ids = [item["id"] for item in page] or [None]
    return InputItems(data=page, first_id=ids[0], last_id=ids[-1], has_more=start + limit < len(items))


def _check_include(*given: list[str] | None) -> None:
    for name in (name for names in given for name in names or ()):
        if name not in INCLUDABLE:
            raise unsupported("include", f"there is no '{name}' here; it may be {', '.join(INCLUDABLE)}")


@contextmanager
def _store_errors() -> Iterator[None]:
    try:
        yield
    except StorageError as error:
        log.warning("stored responses cannot be used: %s", error)
        words = "Stored responses cannot be used now; the gateway's log says why"
        raise ApiError(503, words, code="storage_unavailable") from error


def _owner(request: Request) -> str:
    key: str = request.scope["gateway.exchange"].caller.key
    return key


def _json(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"content": {JSON_TYPE: {"schema": schema}}}


def _not_found(response_id: str) -> ApiError:
    return ApiError(404, f"Response with id '{response_id}' not found.", param="response_id", code="not_found")


def _no_previous(response_id: str) -> ApiError:
    """In OpenAI's words, status and code: clients look for them and send the whole conversation instead."""
    return ApiError(
        400,
        f"Previous response with id '{response_id}' not found.",
        param="previous_response_id",
        code="previous_response_not_found",
    )


def _too_long(param: str) -> ApiError:
    return ApiError(
        400,
        f"The conversation would be more than {CONVERSATION_MAX_BYTES} bytes; begin a new one with what matters of it",
        param=param,
        code="conversation_too_long",
    )
