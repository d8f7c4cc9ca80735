"""How a POST route is declared: once, for the OpenAPI page and for the handler that answers it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from gateway.errors import OPENAI_ERRORS, ErrorShape
from gateway.web.exchange import Exchange
from gateway.web.known import known_fields

JSON_TYPE = "application/json"


@dataclass(frozen=True, slots=True, eq=False)
class Endpoint:
    """One POST route.

    `capability` is what a backend must be able to do. `request` checks a JSON body; a multipart one has `form`, its
    JSON schema. `answers`: for each status, media type to JSON schema. `openapi_extra` is merged into the
    page's operation, as FastAPI's of this name.
    """

    path: str
    capability: str
    summary: str
    request: TypeAdapter[Any] | None = None
    form: Mapping[str, Any] | None = None
    answers: Mapping[int, Mapping[str, Mapping[str, Any]]] = field(default_factory=lambda: {200: {JSON_TYPE: {}}})
    tag: str = "openai"
    errors: ErrorShape = OPENAI_ERRORS
    openapi_extra: Mapping[str, Any] = field(default_factory=dict)


Handler = Callable[[Exchange, Endpoint], Awaitable[None]]
Endpoints = Sequence[tuple[Endpoint, Handler]]


def parse(body: bytes, adapter: TypeAdapter[Any]) -> dict[str, Any]:
    """The body as parsed and checked; raises ApiError 400 that names the field."""
    return known_fields(adapter).parse(body)
