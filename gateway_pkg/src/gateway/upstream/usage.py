"""What an answer cost, as its backend tells it."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

_INPUT = re.compile(rb'"(?:prompt_tokens|input_tokens)"\s*:\s*(\d{1,15})\b')
_OUTPUT = re.compile(rb'"(?:completion_tokens|output_tokens)"\s*:\s*(\d{1,15})\b')


class Usage(NamedTuple):
    """Tokens of one request; `is_estimated` where no backend told them."""

    input_tokens: int
    output_tokens: int
    is_estimated: bool = False


def usage_in(body: bytes) -> Usage | None:
    """The usage told by a whole answer, found without parsing the answer; None where it tells none."""
    at = body.rfind(b'"usage"')
    if at < 0:
        return None
    given = _INPUT.search(body, at)
    if given is None:
        return None
    made = _OUTPUT.search(body, at)
    return Usage(int(given[1]), int(made[1]) if made is not None else 0)


def usage_of(content: Any) -> Usage | None:
    """The usage in OpenAI's usage object; None where it is none."""
    if not isinstance(content, dict):
        return None
    given = content.get("prompt_tokens", content.get("input_tokens"))
    made = content.get("completion_tokens", content.get("output_tokens")) or 0
    if not isinstance(given, int) or not isinstance(made, int):
        return None
    return Usage(given, made)
