"""What an answer cost, as its backend tells it."""

from __future__ import annotations

from typing import Any, NamedTuple

import orjson

COUNT_MAX = 2**53  # beyond it a number of tokens is none
TAIL_MAX_BYTES = 4096  # what may stand behind the usage for it to be parsed alone


class Usage(NamedTuple):
    """Tokens of one request; `is_estimated` where no backend told them."""

    input_tokens: int
    output_tokens: int
    is_estimated: bool = False


def usage_in(body: bytes) -> Usage | None:
    """The usage told by a whole answer, None where it tells none.

    Servers tell it at the end. From there on the body is an object of its own that can be parsed without the rest:
    were the word found a key deeper inside, or a value, there would be a brace too many or a colon too few.
    """
    at = body.rfind(b'"usage"')
    if at < 0:
        return None
    content = None
    if len(body) - at <= TAIL_MAX_BYTES:
        content = _object(b"{" + body[at:])
    if content is None:
        content = _object(body)
    return usage_of(content.get("usage")) if content is not None else None


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        content = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return content if isinstance(content, dict) else None


def usage_of(content: Any) -> Usage | None:
    """The usage in OpenAI's usage object; None where it is none."""
    if not isinstance(content, dict):
        return None
    given = content.get("prompt_tokens", content.get("input_tokens"))
    made = content.get("completion_tokens", content.get("output_tokens")) or 0
    # `type`, since True is an int as well.
    if type(given) is int and type(made) is int and 0 <= given < COUNT_MAX and 0 <= made < COUNT_MAX:
        return Usage(given, made)
    return None
