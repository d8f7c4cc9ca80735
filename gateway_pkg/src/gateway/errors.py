"""Errors of the gateway: a Refusal for its operator, an ApiError for its client, in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, NamedTuple

import orjson

# The `type` of OpenAI's SDKs and of other gateways, by status.
TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    417: "invalid_request_error",
    429: "rate_limit_error",
    431: "invalid_request_error",
    501: "invalid_request_error",
    502: "upstream_error",
    503: "service_unavailable_error",
    504: "upstream_timeout_error",
    505: "invalid_request_error",
}
RETRY_NOT_READY_SEC = 30  # the earlier system's figures
RETRY_OVERLOADED_SEC = 5


class ClientDisconnected(Exception):
    """The client disconnected before its answer was complete."""


class Refusal(Exception):
    """Wrong configuration. Each argument is one line: the problem, and what to type or change."""

    @property
    def problems(self) -> tuple[str, ...]:
        return tuple(str(arg) for arg in self.args)

    def __str__(self) -> str:
        return "; ".join(self.problems)


@dataclass(eq=False)
class ApiError(Exception):
    """An error answer. `headers` are further response headers, with lower-case names.

    `kind` is OpenAI's `type` where it is another than the status's own; `more` holds further fields of a backend's.
    """

    status: int
    message: str
    _: KW_ONLY
    code: str | None = None
    param: str | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()
    kind: str | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    def body(self) -> bytes:
        """`{"error": {message, type, param, code}}` as JSON."""
        kind = self.kind or TYPES.get(self.status, "internal_error" if self.status >= 500 else "invalid_request_error")
        told = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return orjson.dumps({"error": {**self.more, **told}})

    def event(self) -> bytes:
        """The body as one server-sent event, for a stream that has begun."""
        return b"data: " + self.body() + b"\n\n"


class ErrorShape(NamedTuple):
    """How a family of routes writes an error and the request's id: as a JSON body, and as an event of a stream.

    `schema` is the body's JSON schema; the OpenAPI page shows it under `name`. `id_header` has the request's id too.
    """

    body: Callable[[ApiError, str], bytes]
    event: Callable[[ApiError, str], bytes]
    name: str
    schema: Mapping[str, Any]
    id_header: bytes = b""


SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "The field that is wrong"},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
OPENAI_ERRORS = ErrorShape(lambda error, _: error.body(), lambda error, _: error.event(), "Error", SCHEMA)


def retry_after(seconds: int) -> tuple[tuple[bytes, bytes], ...]:
    return ((b"retry-after", str(seconds).encode()),)


def invalid_value(param: str, problem: str) -> ApiError:
    """400: a field has a wrong value; `problem` says what the value must be."""
    return ApiError(400, f"Invalid request: '{param}': {problem}", param=param, code="invalid_value")


def unsupported_value(param: str, problem: str) -> ApiError:
    """400: a backend has no counterpart for a value; `problem` says what the field must be, or what to do instead."""
    return ApiError(400, f"'{param}' {problem}", param=param, code="unsupported_value")


def unsupported_parameter(param: str, advice: str) -> ApiError:
    """400: a field has no counterpart here; `advice` says what to do instead."""
    return ApiError(400, f"'{param}' is not supported here; {advice}", param=param, code="unsupported_parameter")


def not_ready(backend_class: str) -> ApiError:
    message = f"Backend '{backend_class}' is not ready; /readyz says why"
    return ApiError(503, message, code="backend_not_ready", headers=retry_after(RETRY_NOT_READY_SEC))


def overloaded(backend_class: str, why: str = "") -> ApiError:
    message = f"Backend '{backend_class}' is at its limit of requests{why and f', and {why}'}; try again"
    return ApiError(429, message, code="backend_overloaded", headers=retry_after(RETRY_OVERLOADED_SEC))
