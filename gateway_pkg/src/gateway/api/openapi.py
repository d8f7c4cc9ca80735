"""Adds the endpoints to the OpenAPI page, from the declarations that also answer them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from gateway.api.endpoint import JSON_TYPE, Endpoint
from gateway.http.edge import OPEN_DIRECTORIES, OPEN_PATHS

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
    400: "A field is missing, wrong, or nothing that the backend can do; `param` names it",
    401: "No token, or an unknown one",
    403: "The caller's address or its token's policy does not allow it",
    404: "Unknown model; the message has the nearest names",
    413: "The body is too large; the message names the setting",
    422: "The backend refuses a value; its own words are in the message",
    429: "The backend's slots are taken, or the token's limit is reached; see `Retry-After`",
    500: "A defect of the gateway",
    502: "The backend answered wrongly or broke off",
    503: "The backend is not ready; see `Retry-After`",
    504: "The backend did not answer in time",
}
# What any route may answer to a token: there is a limit on requests too.
TO_ANY = (401, 403, 429)
ROUTING_HEADERS = {
    "X-Backend-Used": "The backend class that the request went to",
    "X-Model-Used": "The model's name at that backend",
    "X-Router-Reason": "The rule that decided it",
}
REQUEST_ID = "The request's id: the client's own `X-Request-Id`, else one that the gateway made"
PARAMETERS = [
    {
        "name": "X-Backend",
        "in": "header",
        "required": False,
        "description": "Name of a backend class; it beats what the model's name says.",
        "schema": {"type": "string", "maxLength": 100},
    },
    {
        "name": "X-Request-Type",
        "in": "header",
        "required": False,
        "description": "`coding` or `chat`, for requests that leave the model to the policy.",
        "schema": {"type": "string", "maxLength": 100},
    },
]


def describe(pages: FastAPI, endpoints: Sequence[Endpoint]) -> None:
    """Makes `pages.openapi()` complete: endpoints, errors, headers and the bearer token."""

    def openapi() -> dict[str, Any]:
        if pages.openapi_schema is None:
            page = get_openapi(title=pages.title, version=pages.version, routes=pages.routes)
            schemas = page.setdefault("components", {}).setdefault("schemas", {})
            schemas["Error"] = ERROR
            page["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
            for endpoint in endpoints:
                page["paths"].setdefault(endpoint.path, {})["post"] = _operation(endpoint, schemas)
            for path, item in page["paths"].items():
                for operation in item.values():
                    _finish(operation, is_open=path in OPEN_PATHS or path.startswith(OPEN_DIRECTORIES))
            _drop_unused(schemas)
            pages.openapi_schema = page
        return pages.openapi_schema

    pages.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the page


def _operation(endpoint: Endpoint, schemas: dict[str, Any]) -> dict[str, Any]:
    if endpoint.request is not None:
        media = JSON_TYPE
        schema: Mapping[str, Any] = endpoint.request.json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.get("$defs", {})
        schema = {key: value for key, value in schema.items() if key != "$defs"}
    else:
        media, schema = "multipart/form-data", endpoint.form or {}
    answers = {
        str(status): {
            "description": HTTPStatus(status).phrase,
            "headers": {name: _header(words) for name, words in ROUTING_HEADERS.items()},
            "content": {kind: {"schema": answer} for kind, answer in content.items()},
        }
        for status, content in endpoint.answers.items()
    }
    return {
        "tags": [endpoint.tag],
        "summary": endpoint.summary,
        "operationId": endpoint.op.replace(".", "_"),
        "parameters": PARAMETERS,
        "requestBody": {"required": True, "content": {media: {"schema": schema}}},
        "responses": {**{str(status): _error(status) for status in ERRORS}, **answers},
    }


def _finish(operation: dict[str, Any], *, is_open: bool) -> None:
    """What all operations have in common. Validation errors are 400 here, not FastAPI's 422."""
    responses = operation["responses"]
    invalid = responses.get("422", {}).get("content", {}).get(JSON_TYPE, {}).get("schema", {}).get("$ref", "")
    if invalid.endswith("/HTTPValidationError"):
        del responses["422"]
        responses["400"] = _error(400)
    responses.setdefault("403", _error(403))
    if not is_open:
        operation["security"] = [{"bearer": []}]
        for status in TO_ANY:
            responses.setdefault(str(status), _error(status))
    for response in responses.values():
        response.setdefault("headers", {})["X-Request-Id"] = _header(REQUEST_ID)


def _drop_unused(schemas: dict[str, Any]) -> None:
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)


def _header(words: str) -> dict[str, Any]:
    return {"description": words, "schema": {"type": "string"}}


def _error(status: int) -> dict[str, Any]:
    content = {JSON_TYPE: {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {"description": ERRORS[status], "content": content}
