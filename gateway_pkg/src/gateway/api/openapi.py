"""The OpenAPI page: what FastAPI knows of its routes, and the endpoints from the declarations that also answer them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.utils import deep_dict_update
from pydantic import TypeAdapter

from gateway.api.paths import OPEN_PATHS
from gateway.errors import OPENAI_ERRORS, ErrorShape
from gateway.web.endpoint import JSON_TYPE, Endpoint
from gateway.web.schemas import COUNT, TEXT

ABOUT = """\
One address for the appliance's models. A bearer token opens every route but those without a lock here.

A path answers 405 with `Allow` to other methods than its own. A stream that fails after its status has gone out ends
with one event that has the error; one of plain audio breaks off."""
DIALECTS = {
    "openai": "OpenAI's routes, for chats, texts, vectors, images and audio",
    "anthropic": "Anthropic's routes, in front of the same models",
}
TAGS = {
    "models": "Names for `model`",
    "gateway": "The gateway's state, and reload of its files",
    "health": "For supervisors and Prometheus",
}
ERRORS = {
    "400": "A field is missing, wrong or unsupported; `param` names it",
    "401": "No token, or an unknown one",
    "403": "The caller's address or its token's policy does not allow it",
    "404": "Unknown model; the message has the nearest names",
    "413": "The body is too large; the message names the setting",
    "422": "The backend refuses a value; the message has its words",
    "429": "The backend's slots are taken, or the token's limit is reached; see `Retry-After`",
    "4XX": "The backend refuses the request with its own status; the message has its words",
    "500": "A defect of the gateway; its log has it under the request's id",
    "502": "The backend gave no valid answer or broke off",
    "503": "The backend is not ready; see `Retry-After`",
    "504": "The backend did not answer in time",
}
# What any route may answer, and what to a token: there is a limit on requests too.
TO_ANY = ("403", "500")
TO_TOKENS = ("401", "403", "429", "500")
ROUTING_HEADERS = ("X-Backend-Used", "X-Model-Used", "X-Router-Reason")
LIMIT_HEADERS = tuple(
    f"x-ratelimit-{what}-{kind}" for kind in ("requests", "tokens") for what in ("limit", "remaining", "reset")
)
HEADERS: dict[str, dict[str, Any]] = {
    "X-Request-Id": {
        "description": "The request's id: the client's own `X-Request-Id`, else one that the gateway made",
        "required": True,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
    },
    "X-Backend-Used": {"description": "The backend class that the request went to", "schema": TEXT},
    "X-Model-Used": {"description": "The upstream model", "schema": TEXT},
    "X-Router-Reason": {"description": "The rule that decided it", "schema": TEXT},
    "Retry-After": {"description": "Seconds to wait before the next try", "schema": COUNT},
    "WWW-Authenticate": {"description": "How to authenticate", "required": True, "schema": {"const": "Bearer"}},
    **{
        name: {
            "description": "Of the token's limit, if it has one: requests of the last minute, or tokens of the day",
            "schema": TEXT | {"examples": ["6m0s"]} if "-reset-" in name else COUNT,
        }
        for name in LIMIT_HEADERS
    },
}
PARAMETERS = {
    "X-Request-Id": "An id for the answer and the logs: 1 to 128 of `A-Za-z0-9._:-`; else the gateway makes one.",
    "X-Backend": "A backend class; overrides the class that the model's name implies.",
    "X-Request-Type": "`coding` or `chat`, for requests that leave the model to the policy.",
}
_ASKED = {"model": "default", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}
_RANKED = {"query": "Which one purrs?", "documents": ["A cat.", "A dog."]}
_SAID = {"model": "default", "input": "Why is the sky blue?"}
# What the page offers to send; without one it would fill in every field.
EXAMPLES: dict[str, dict[str, Any]] = {
    "/v1/audio/speech": {"input": "Good morning."},
    "/v1/chat/completions": _ASKED,
    "/v1/completions": {"model": "default", "prompt": "Once upon a time", "max_tokens": 40},
    "/v1/embeddings": {"input": ["A cat.", "A dog."]},
    "/v1/images/generations": {"prompt": "A lighthouse at dusk", "size": "512x512"},
    "/v1/messages": {**_ASKED, "max_tokens": 200},
    "/v1/messages/count_tokens": _ASKED,
    "/v1/music/generations": {"prompt": "A calm piano", "duration": 10},
    "/v1/rerank": _RANKED,
    "/v2/rerank": _RANKED,
    "/rerank": _RANKED,
    "/v1/responses": _SAID,
    "/v1/responses/compact": _SAID,
    "/v1/responses/input_tokens": _SAID,
    "/v1/tts/generations": {"text": "Good morning."},
}
SECURITY_SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "The same token, as Anthropic's"},
}


def openapi_page(
    pages: FastAPI, endpoints: Sequence[Endpoint], tags: Mapping[str, str], open_directories: tuple[str, ...]
) -> dict[str, Any]:
    """FastAPI's page of `pages`, and endpoints, errors, headers, tokens; `tags` are those of features."""
    page = get_openapi(
        title=pages.title,
        version=pages.version,
        description=ABOUT,
        tags=[{"name": name, "description": words} for name, words in (DIALECTS | dict(tags) | TAGS).items()],
        routes=pages.routes,
    )
    requests, shared = TypeAdapter.json_schemas(
        [(endpoint.path, "validation", endpoint.request) for endpoint in endpoints if endpoint.request is not None],
        ref_template="#/components/schemas/{model}",
    )
    shapes = {OPENAI_ERRORS.name: OPENAI_ERRORS} | {endpoint.errors.name: endpoint.errors for endpoint in endpoints}
    page["components"] = {
        "schemas": {
            **{name: schema for name, schema in page["components"]["schemas"].items() if "ValidationError" not in name},
            **shared.get("$defs", {}),
            **{name: shape.schema for name, shape in shapes.items()},
        },
        "headers": HEADERS,
        "parameters": {
            name: {"name": name, "in": "header", "description": words, "schema": TEXT}
            for name, words in PARAMETERS.items()
        },
        "securitySchemes": SECURITY_SCHEMES,
    }
    errors = {endpoint.path: endpoint.errors for endpoint in endpoints}
    made = {
        endpoint.path: {"post": _operation(endpoint, requests.get((endpoint.path, "validation")))}
        for endpoint in endpoints
    }
    page["paths"] = {**made, **page["paths"]}  # first what most come for
    for path, item in page["paths"].items():
        for operation in item.values():
            is_open = path in OPEN_PATHS or path.startswith(open_directories)
            _finish(operation, errors.get(path, OPENAI_ERRORS), is_open=is_open)
    return page


def _operation(endpoint: Endpoint, request: Mapping[str, Any] | None) -> dict[str, Any]:
    schemas = {"multipart/form-data": endpoint.form, JSON_TYPE: request}
    bodies = {media: {"schema": schema} for media, schema in schemas.items() if schema is not None}
    headers = _headers(ROUTING_HEADERS)
    answers = {
        str(status): {
            "description": HTTPStatus(status).phrase,
            "headers": {name: {**HEADERS[name], "required": True} for name in ROUTING_HEADERS},
            "content": {kind: {"schema": answer} for kind, answer in content.items()},
        }
        for status, content in endpoint.answers.items()
    }
    if endpoint.path in EXAMPLES:
        bodies[JSON_TYPE]["example"] = EXAMPLES[endpoint.path]
    operation = {
        "tags": [endpoint.tag],
        "summary": endpoint.summary,
        "operationId": endpoint.path.removeprefix("/v1/").replace("/", "_"),
        "parameters": [_parameter(name) for name in ("X-Backend", "X-Request-Type")],
        "requestBody": {"required": True, "content": bodies},
        "responses": {
            **answers,
            **{status: {"description": words, "headers": dict(headers)} for status, words in ERRORS.items()},
        },
    }
    deep_dict_update(operation, dict(endpoint.openapi_extra))
    return operation


def _finish(operation: dict[str, Any], errors: ErrorShape, *, is_open: bool) -> None:
    """What all operations have in common. Validation errors are 400 here, not FastAPI's 422."""
    responses = operation["responses"]
    invalid = responses.get("422", {}).get("content", {}).get(JSON_TYPE, {}).get("schema", {}).get("$ref", "")
    if invalid.endswith("/HTTPValidationError"):
        del responses["422"]
        responses.setdefault("400", {"description": ERRORS["400"]})
    for status in TO_ANY if is_open else TO_TOKENS:
        responses.setdefault(status, {"description": ERRORS[status]})
    if not is_open:
        operation["security"] = [{name: []} for name in SECURITY_SCHEMES]
    operation["parameters"] = [*operation.get("parameters", ()), _parameter("X-Request-Id")]
    for status, response in responses.items():
        names = ["X-Request-Id", *(() if is_open or status == "401" else LIMIT_HEADERS)]
        names += {"401": ["WWW-Authenticate"], "429": ["Retry-After"], "503": ["Retry-After"]}.get(status, [])
        response["headers"] = {**_headers(names), **response.get("headers", {})}
        if status[0] in "45" and "content" not in response:
            response["content"] = {JSON_TYPE: {"schema": {"$ref": f"#/components/schemas/{errors.name}"}}}


def _parameter(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/parameters/{name}"}


def _headers(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}
