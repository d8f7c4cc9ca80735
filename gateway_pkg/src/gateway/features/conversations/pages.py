"""`/v1/responses/{response_id}…`: the routes of stored responses; a caller sees only its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel

from gateway.errors import ApiError, invalid_value, unsupported_parameter
from gateway.features.conversations.store import Item, ResponseStore
from gateway.features.conversations.stored import INCLUDABLE, OF_STORED, RESPONSE, check_include, store_errors
from gateway.web.endpoint import JSON_TYPE
from gateway.web.exchange import caller_of

INCLUDE: dict[str, Any] = {"items": {"type": "string", "enum": list(INCLUDABLE)}}
ERRORS: dict[int | str, dict[str, Any]] = {
    404: {"description": "The caller has no such response; responses expire, and may not be stored"},
    503: {"description": "The store cannot be read or written; the gateway's log says why"},
}


class InputItems(BaseModel):
    """A page of a response's input items, including the conversation before it."""

    object: Literal["list"] = "list"
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Deleted(BaseModel):
    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


async def _check_query(
    include: Annotated[list[str] | None, Query(json_schema_extra=INCLUDE)] = None,
    include_: Annotated[list[str] | None, Query(alias="include[]", json_schema_extra=INCLUDE)] = None,
) -> None:
    for name in (*(include or ()), *(include_ or ())):
        check_include("include", name)


CHECKED = [Depends(_check_query)]


def make_router(store: ResponseStore) -> APIRouter:
    """The routes of stored responses; a caller sees only its own."""
    router = APIRouter(prefix="/v1/responses/{response_id}", tags=["openai"], responses=ERRORS)

    @router.get(
        "",
        summary="Show a stored response",
        response_class=Response,
        responses={200: {"content": {JSON_TYPE: {"schema": RESPONSE}}, "links": OF_STORED}},
        dependencies=CHECKED,
    )
    async def get_response(
        response_id: str,
        request: Request,
        stream: Annotated[bool, Query(json_schema_extra={"enum": [False]})] = False,
    ) -> Response:
        if stream:
            raise unsupported_parameter("stream", "leave it out: a stored response comes whole")
        with store_errors():
            found = await store.response(caller_of(request).key, response_id)
        if found is None:
            raise _not_found(response_id)
        return Response(found, media_type=JSON_TYPE)

    @router.delete("", summary="Delete a stored response")
    async def delete_response(response_id: str, request: Request) -> Deleted:
        with store_errors():
            is_gone = await store.delete(caller_of(request).key, response_id)
        if not is_gone:
            raise _not_found(response_id)
        return Deleted(id=response_id)

    @router.get("/input_items", summary="List what a response was made from", dependencies=CHECKED)
    async def list_input_items(
        response_id: str,
        request: Request,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
        after: str | None = None,
    ) -> InputItems:
        with store_errors():
            found = await store.find(caller_of(request).key, response_id)
        if found is None:
            raise _not_found(response_id)
        return _page(found.input if order == "asc" else found.input[::-1], limit, after)

    return router


def _page(items: Sequence[Item], limit: int, after: str | None) -> InputItems:
    start = 0
    if after is not None:
        start = next((index + 1 for index, item in enumerate(items) if item["id"] == after), 0)
        if not start:
            raise invalid_value("after", f"must be the id of an item, not '{after}'")
    page = list(items[start : start + limit])
    ids = [item["id"] for item in page] or [None]
    return InputItems(data=page, first_id=ids[0], last_id=ids[-1], has_more=start + limit < len(items))


def _not_found(response_id: str) -> ApiError:
    return ApiError(404, f"Response with id '{response_id}' not found.", param="response_id", code="not_found")
