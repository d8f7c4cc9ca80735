"""What a failure of a backend means for its client, for the metrics, and for the backend's circuit breaker.

These functions are pure: `call` counts each failure once and changes the backend's state.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Any, NamedTuple

import orjson

from gateway.backends.overflow import CODE, openai_words, overflow_in
from gateway.backends.protocols.base import AnswerError, ErrorInside, ErrorStatus, quoted
from gateway.errors import RETRY_NOT_READY_SEC, RETRY_OVERLOADED_SEC, ApiError, retry_after
from gateway.wire.errors import ConnectFailed, PoolExhausted, UpstreamClosed, UpstreamError, UpstreamTimeout

QUOTED_CHARS = 500
CODE_CHARS = 100
FURTHER_MAX_BYTES = 4_096
PARSED_MAX_BYTES = 1 << 16  # of an error's body; of a longer body the client gets the beginning


class Effect(Enum):
    """What a failure does to its backend."""

    NOTHING = "stays as it is"
    STRAINS = "strains its circuit breaker"
    AWAY = "is out until a probe finds it"


class Failure(NamedTuple):
    """`kind` is the label of `gateway_upstream_failures`; `{n}` in it is the first digit of the backend's status.

    `status` None is the backend's own status. With `is_own` the backend's own code is told, else `code`. Seconds of
    `Retry-After` are 0 where it is not sent. In `message`, `{name}` is the backend's class, `{words}` what it said.
    """

    kind: str
    status: int | None
    code: str | None
    retry_after: int
    effect: Effect
    message: str
    is_own: bool = False


_NOT_READY = "Backend '{name}' is not ready; /readyz says why"
_WRONG = "Backend '{name}' gave no valid answer: {words}"
_SILENT = "Backend '{name}' did not answer in time ({words})"
_STATUS = "Backend '{name}' answered {status}: {words}"
TOO_LONG = "a request beyond the model's context"
# fmt: off
FAILURES = {
    "no connection came free": Failure(
        "connections_exhausted", 429, "backend_overloaded", RETRY_OVERLOADED_SEC, Effect.NOTHING,
        "Backend '{name}' is at its limit of requests; try again"),
    "no connection": Failure("connect", 503, "backend_not_ready", RETRY_NOT_READY_SEC, Effect.AWAY, _NOT_READY),
    "closed before its answer": Failure(
        "closed", 503, "backend_not_ready", RETRY_NOT_READY_SEC, Effect.STRAINS, _NOT_READY),
    "closed within its answer": Failure(
        "closed", 502, "upstream_closed", 0, Effect.STRAINS, "Backend '{name}' broke off its answer"),
    "silent before its answer": Failure("timeout_first_byte", 504, "upstream_timeout", 0, Effect.STRAINS, _SILENT),
    "silent within its answer": Failure("timeout_idle", 504, "upstream_timeout", 0, Effect.STRAINS, _SILENT),
    "no HTTP, or too much": Failure("protocol", 502, "upstream_protocol_error", 0, Effect.STRAINS, _WRONG),
    "another answer than was asked for": Failure("answer", 502, "upstream_error", 0, Effect.STRAINS, _WRONG),
    "an error in status 200": Failure(
        "status_200_with_error", 502, "upstream_error", 0, Effect.NOTHING, "Backend '{name}' failed: {words}", True),
    "status below 400": Failure("status_{n}xx", 502, "upstream_error", 0, Effect.NOTHING, _STATUS),
    "status 401, 403 or 407": Failure("status_{n}xx", 502, "upstream_error", 0, Effect.NOTHING, _STATUS),
    "status 429": Failure("status_{n}xx", 429, None, RETRY_OVERLOADED_SEC, Effect.NOTHING, "{words}", True),
    TOO_LONG: Failure("context_length", 400, CODE, 0, Effect.NOTHING, "{words}", True),
    "another status below 500": Failure("status_{n}xx", None, None, 0, Effect.NOTHING, "{words}", True),
    "status 503": Failure(
        "status_{n}xx", 503, "backend_not_ready", RETRY_NOT_READY_SEC, Effect.NOTHING,
        "Backend '{name}' is not ready: {words}"),
    "another status": Failure("status_{n}xx", 502, "upstream_error", 0, Effect.STRAINS, _STATUS),
}
# fmt: on
# The failures that a request beyond the context may look like.
_ASKED = ("an error in status 200", "another status below 500", "another status")
_RETRY_AFTER = re.compile(rb"\d{1,9}|[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT")  # RFC 9110


class Said(NamedTuple):
    """What a backend says of a failure, in OpenAI's fields; `more` are further fields."""

    words: str
    kind: str | None = None
    param: str | None = None
    code: str | None = None
    more: Mapping[str, Any] = MappingProxyType({})


def told(error: UpstreamError | AnswerError, backend_class: str) -> tuple[Failure, ApiError]:
    """Describes a failure of a backend of this class: its row, with its own kind, and the client's error."""
    name, said, status = _name(error), _said(error), error.status if isinstance(error, ErrorStatus) else 0
    overflow = overflow_in({**said.more, "type": said.kind, "code": said.code}, said.words) if name in _ASKED else None
    if overflow is not None:
        name = TOO_LONG
        numbers = {"n_prompt_tokens": overflow.asked, "n_ctx": overflow.limit}
        more = {**said.more, **{name: number for name, number in numbers.items() if number is not None}}
        said = said._replace(words=openai_words(overflow, said.words), code=CODE, more=more)
    failure = FAILURES[name]
    seconds = retry_after(failure.retry_after) if failure.retry_after else ()
    if isinstance(error, ErrorStatus) and error.retry_after is not None and _RETRY_AFTER.fullmatch(error.retry_after):
        seconds = ((b"retry-after", error.retry_after),)
    answer = ApiError(
        failure.status or status,
        failure.message.format(name=backend_class, words=said.words, status=status),
        code=failure.code,
        headers=seconds,
    )
    if failure.is_own:
        answer.kind, answer.param, answer.code, answer.more = (
            said.kind,
            said.param,
            said.code or failure.code,
            said.more,
        )
    return failure._replace(kind=failure.kind.format(n=status // 100)), answer


def _name(error: UpstreamError | AnswerError) -> str:
    match error:
        case ErrorInside():
            return "an error in status 200"
        case ErrorStatus(status=401 | 403 | 407):  # about the gateway's own key, not the client's
            return "status 401, 403 or 407"
        case ErrorStatus(status=429 | 503 as status):
            return f"status {status}"
        case ErrorStatus(status=status) if status < 400:
            return "status below 400"
        case ErrorStatus(status=status):
            return "another status below 500" if status < 500 else "another status"
        case PoolExhausted():
            return "no connection came free"
        case ConnectFailed():
            return "no connection"
        case UpstreamClosed():
            return "closed within its answer" if error.sent_first_byte else "closed before its answer"
        case UpstreamTimeout():
            return "silent within its answer" if error.phase == "idle" else "silent before its answer"
        case UpstreamError():
            return "no HTTP, or too much"
    return "another answer than was asked for"


def wrong_type(content_type: bytes, wanted: str) -> AnswerError:
    """The error for an answer with an unexpected content type."""
    return AnswerError(f"content type '{content_type[:100].decode('latin-1')}' instead of {wanted}")


def _said(error: UpstreamError | AnswerError) -> Said:
    """Of an error in OpenAI's shape, or in one of the shapes of other servers."""
    if isinstance(error, ErrorInside):
        return _said_in(error.content, 200)
    if not isinstance(error, ErrorStatus):
        return Said(str(error)[:QUOTED_CHARS])
    try:
        return _said_in(orjson.loads(error.body[: PARSED_MAX_BYTES + 1]), error.status)
    except orjson.JSONDecodeError:
        return Said(error.body[:QUOTED_CHARS].decode("utf-8", "replace").strip() or "no details")


def _said_in(content: Any, status: int) -> Said:
    error = content.get("error", content.get("detail", content)) if isinstance(content, dict) else content
    if not isinstance(error, dict):
        return Said(quoted(error, QUOTED_CHARS))
    kind, param, code = error.get("type"), error.get("param"), error.get("code")
    return Said(
        quoted(error.get("message") or error, QUOTED_CHARS),
        kind[:CODE_CHARS] if isinstance(kind, str) else None,
        None if param is None else quoted(param, QUOTED_CHARS),
        None if code is None or str(code) == str(status) else quoted(code, CODE_CHARS),
        _further(error),
    )


def _further(error: Mapping[str, Any]) -> Mapping[str, Any]:
    more = {name: value for name, value in error.items() if name not in ("message", "type", "param", "code", "object")}
    try:
        return more if "message" in error and len(orjson.dumps(more)) <= FURTHER_MAX_BYTES else {}
    except TypeError:  # nested deeper than JSON is written
        return {}
