"""The usage of an answer, as its backend reports it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from gateway.wire.stepwise import is_heavy

COUNT_MAX = 1_000_000_000  # a hundred times the longest context: more is not a number of tokens
END_MAX_BYTES = 4096  # how far from an end of the answer its usage may stand to be parsed with that end alone
WHOLE_MAX_BYTES = 1 << 20  # an answer that is parsed as a whole for its usage
WHOLE_MAX_VALUES = 100_000  # likewise: 10 ms


@dataclass(slots=True)
class Usage:
    """Tokens of one request; `is_estimated` when the backend reports none."""

    input_tokens: int
    output_tokens: int
    is_estimated: bool = False


def usage_in(body: bytes) -> Usage | None:
    """The usage in a whole answer; None without one, or when it is in the middle of a long answer.

    Servers tell it at the end. From there on the body is an object of its own that can be parsed without the rest:
    were the word found a key deeper inside, or a value, there would be a brace too many or a colon too few. Likewise
    up to there where it comes first, as with llama.cpp's embeddings.
    """
    _, found, end = body[-END_MAX_BYTES:].rpartition(b'"usage"')
    try:
        if found:
            return usage_of(orjson.loads(b'{"usage"' + end)["usage"])
    except orjson.JSONDecodeError:
        pass
    content = None
    if not found and (first := body.find(b'"usage"', 0, END_MAX_BYTES)) >= 0:
        content = _object(body[: body.find(b"},", first, first + END_MAX_BYTES) + 1] + b"}")
    is_readable = len(body) <= WHOLE_MAX_BYTES and b'"usage"' in body and not is_heavy(body, WHOLE_MAX_VALUES)
    if "usage" not in (content or ()) and is_readable:
        content = _object(body)
    return usage_of(content.get("usage")) if content is not None else None


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        content = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return content if isinstance(content, dict) else None


def count_of(value: Any) -> int | None:
    """A backend's number of tokens, 0 to COUNT_MAX; None for another value."""
    return value if type(value) is int and 0 <= value < COUNT_MAX else None  # `type`, since True is an int as well


def usage_of(content: Any) -> Usage | None:
    """The usage in OpenAI's usage object; None where a number is absurd or missing."""
    if not isinstance(content, dict):
        return None
    given = content["prompt_tokens"] if "prompt_tokens" in content else content.get("input_tokens")
    made = content["completion_tokens"] if "completion_tokens" in content else content.get("output_tokens")
    made = made or 0
    # As `count_of`, but for its frames.
    if type(given) is int and type(made) is int and 0 <= given < COUNT_MAX and 0 <= made < COUNT_MAX:
        return Usage(given, made)
    return None
