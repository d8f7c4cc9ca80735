"""What a client is told when its backend fails: OpenAI errors with the statuses of the contract."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from gateway.backends.protocols.base import AnswerError, quoted
from gateway.backends.slots import Backend
from gateway.errors import ApiError, not_ready, overloaded
from gateway.wire.http1 import ConnectFailed, PoolExhausted, UpstreamClosed, UpstreamError, UpstreamTimeout

QUOTED_CHARS = 500
CODE_CHARS = 100
PARSED_MAX_BYTES = 1 << 16  # an error's body; of a longer one only the beginning is told


def failure(error: UpstreamError, backend: Backend) -> ApiError:
    """503 where the backend was not there, 504 where it was too slow, 502 where it answered wrongly or broke off.

    Only a backend that cannot be connected to is out until a probe finds it. One that ends a connection may do so
    because of the request: that strains its circuit, so that no request can take a backend from all others.
    """
    name = backend.record.backend_class
    backend.count_failure(_kind(error))
    if isinstance(error, PoolExhausted):
        return overloaded(name)
    if isinstance(error, ConnectFailed):
        backend.fail(str(error))
        return not_ready(name)
    backend.strain_circuit()
    if isinstance(error, UpstreamClosed) and not error.sent_first_byte:
        return not_ready(name)
    if isinstance(error, UpstreamTimeout):
        return ApiError(504, f"Backend '{name}' did not answer in time ({error})", code="upstream_timeout")
    if isinstance(error, UpstreamClosed):
        return ApiError(502, f"Backend '{name}' broke off its answer", code="upstream_closed")
    return ApiError(502, f"Backend '{name}' answered wrongly: {error}", code="upstream_protocol_error")


def refused(status: int, body: bytes, backend: Backend) -> ApiError:
    """The error for a backend's answer that is not 200. Its own words are kept, its shape is made OpenAI's.

    400 to 499 is the client's to know, but for 401 and 403: those refuse the gateway's key, not the client's.
    """
    name = backend.record.backend_class
    backend.count_failure(f"status_{status // 100}xx")
    message, param, code = _words(body)
    if status == 503:
        return ApiError(
            503,
            f"Backend '{name}' is not ready: {message}",
            code="backend_not_ready",
            headers=not_ready(name).headers,
        )
    if status >= 500:
        backend.strain_circuit()
    if 400 <= status < 500 and status not in (401, 403, 407):
        headers = overloaded(name).headers if status == 429 else ()
        return ApiError(status, message, param=param, code=code, headers=headers)
    return ApiError(502, f"Backend '{name}' answered {status}: {message}", code="upstream_error")


def wrong_answer(error: AnswerError, backend: Backend) -> ApiError:
    """502: the backend's answer is none, or tells of an error in its own way."""
    backend.count_failure("answer")
    backend.strain_circuit()
    words = str(error)[:QUOTED_CHARS]
    return ApiError(502, f"Backend '{backend.record.backend_class}' answered wrongly: {words}", code="upstream_error")


def told_in_200(content: Mapping[str, Any], backend: Backend) -> None:
    """Raises ApiError 502 where an answer of status 200, or an event of a stream, holds an error instead."""
    if content.get("error"):
        backend.count_failure("status_200_with_error")
        message, param, code = _words_of(content)
        name = backend.record.backend_class
        raise ApiError(502, f"Backend '{name}' failed: {message}", param=param, code=code or "upstream_error")


def _kind(error: UpstreamError) -> str:
    """What metrics call it."""
    if isinstance(error, UpstreamTimeout):
        return f"timeout_{error.phase}"
    kinds = {PoolExhausted: "connections_exhausted", ConnectFailed: "connect", UpstreamClosed: "closed"}
    return kinds.get(type(error), "protocol")


def _words(body: bytes) -> tuple[str, str | None, str | None]:
    """Message, param and code of an error in OpenAI's shape, or of one of the shapes that servers use instead."""
    try:
        content: Any = orjson.loads(body[: PARSED_MAX_BYTES + 1])
    except orjson.JSONDecodeError:
        return body[:QUOTED_CHARS].decode("utf-8", "replace").strip() or "no details", None, None
    return _words_of(content)


def _words_of(content: Any) -> tuple[str, str | None, str | None]:
    error = content.get("error", content.get("detail", content)) if isinstance(content, dict) else content
    if not isinstance(error, dict):
        return quoted(error, QUOTED_CHARS), None, None
    param, code = error.get("param"), error.get("code")
    return (
        quoted(error.get("message") or error, QUOTED_CHARS),
        None if param is None else quoted(param, QUOTED_CHARS),
        None if code is None else quoted(code, CODE_CHARS),
    )
