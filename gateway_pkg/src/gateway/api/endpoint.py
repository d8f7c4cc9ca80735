"""How a POST route is declared: once, for the OpenAPI page and for the handler that answers it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from gateway.http.errors import OPENAI_ERRORS, ApiError, ErrorShape
from gateway.http.exchange import Exchange

JSON_TYPE = "application/json"


@dataclass(frozen=True, slots=True, eq=False)
class Endpoint:
    """One POST route.

    `capability` is what a backend must be able to do, `op` the operation's name in the log. `request` checks a JSON
    body; a multipart one has `form`, its JSON schema, instead. `answers`: for each status, media type to JSON schema.
    `openapi_extra` is merged into the page's operation, as FastAPI's of this name.
    """

    path: str
    capability: str
    op: str
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
    try:
        request: dict[str, Any] = adapter.validator.validate_json(body)
        return request
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
        param = ".".join(str(part) for part in problem["loc"] if not _is_union_tag(part)) or None
        where = f"'{param}': " if param else ""
        code = "invalid_json" if problem["type"] == "json_invalid" else "invalid_value"
        raise ApiError(400, f"Invalid request: {where}{problem['msg']}", param=param, code=code) from None


def _is_union_tag(part: int | str) -> bool:
    return isinstance(part, str) and (part in ("str", "int") or part.startswith(("list[", "dict[")))
