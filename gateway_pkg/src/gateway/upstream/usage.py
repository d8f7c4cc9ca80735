"""What an answer cost, as its backend tells it."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import orjson

COUNT_MAX = 2**53  # beyond it a number of tokens is none
# A member of the answer itself beside its usage: a plain value, or an object of plain values.
_TEXT = rb'"[^"\\]*+"'
_PLAIN = rb"(?:" + _TEXT + rb"|[\w.+-]++)"
_FLAT = rb"\{[^{}\[\]]*+\}"
_OBJECT = rb"\{[^{}\[\]]*+(?:" + _FLAT + rb"[^{}\[\]]*+)*+\}"
_OTHER = _TEXT + rb"\s*+:\s*+(?:" + _PLAIN + rb"|" + _FLAT + rb")\s*+"
_USAGE = rb'"usage"\s*+:\s*+(' + _OBJECT + rb")\s*+"
_LAST = re.compile(_USAGE + rb"(?:,\s*+" + _OTHER + rb")*+\}\s*+\Z")
_FIRST = re.compile(rb"\s*+\{\s*+(?:" + _OTHER + rb",\s*+)*?" + _USAGE + rb",")


class Usage(NamedTuple):
    """Tokens of one request; `is_estimated` where no backend told them."""

    input_tokens: int
    output_tokens: int
    is_estimated: bool = False


def usage_in(body: bytes) -> Usage | None:
    """The usage told by a whole answer, None where it tells none.

    It is found without parsing the answer where nothing but plain values stands before or after it, as in most.
    """
    at = body.rfind(b'"usage"')
    if at < 0:
        return None
    found = _LAST.match(body, at) or _FIRST.match(body)
    usage = _object(found[1]) if found is not None else None
    # What is no object was cut at a brace within a text.
    return usage_of(usage if usage is not None else (_object(body) or {}).get("usage"))


def _object(data: bytes) -> dict[str, Any] | None:
    try:
        content = orjson.loads(data)
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
