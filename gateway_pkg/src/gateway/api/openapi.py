"""Adds the hot routes to the OpenAPI page, from the declarations that also answer them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from gateway.api.hot import HotRoute
from gateway.http.edge import OPEN_PATHS

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
ERRORS = {
    400: "A field is missing or wrong; `param` names it",
    401: "No token, or an unknown one",
    403: "The caller's address is not allowed",
    404: "Unknown model; the message has the nearest names",
    413: "The body is too large; the message names the setting",
    429: "The backend's slots are taken; see `Retry-After`",
    502: "The backend answered wrongly or broke off",
    503: "The backend is not ready; see `Retry-After`",
    504: "The backend did not answer in time",
}


def describe(pages: FastAPI, routes: Sequence[HotRoute]) -> None:
    """Makes `pages.openapi()` complete: hot routes, errors, and the bearer token."""

    def openapi() -> dict[str, Any]:
        if pages.openapi_schema is None:
            page = get_openapi(title=pages.title, version=pages.version, routes=pages.routes)
            schemas = page.setdefault("components", {}).setdefault("schemas", {})
            schemas["Error"] = ERROR
            page["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
            for route in routes:
                page["paths"][route.path] = {"post": _operation(route, schemas)}
            for path, item in page["paths"].items():
                for operation in item.values():
                    if path not in OPEN_PATHS:
                        operation["security"] = [{"bearer": []}]
                        operation["responses"] |= {str(status): _error(status) for status in (401, 403)}
            pages.openapi_schema = page
        return pages.openapi_schema

    pages.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the page


def _operation(route: HotRoute, schemas: dict[str, Any]) -> dict[str, Any]:
    schema = route.request.json_schema(ref_template="#/components/schemas/{model}")
    schemas |= schema.pop("$defs", {})
    answers: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
    if "stream" in schema["properties"]:
        answers["text/event-stream"] = {"schema": {"type": "string"}}
    return {
        "tags": ["openai"],
        "summary": route.summary,
        "operationId": route.op.replace(".", "_"),
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "responses": {
            "200": {"description": "The backend's answer, as it came", "content": answers},
            **{str(status): _error(status) for status in ERRORS},
        },
    }


def _error(status: int) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {"description": ERRORS[status], "content": content}
