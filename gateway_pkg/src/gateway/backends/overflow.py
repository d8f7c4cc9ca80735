"""Finds out whether a backend refused a request because it is too long for the model's context, and by how much.

Each server has words of its own; tests/unit/backends/test_overflow.py has them with their sources.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

CODE = "context_length_exceeded"  # OpenAI's
_WORDS = re.compile(
    r"context[ _](?:length|size|window)|ContextWindow|context the overflows|max_seq_len|exceed_context_size"
    r"|`inputs`|(?:prompt|input)\b.{0,40}\btoo long|input token count",
    re.IGNORECASE,
)
_IS_OVER = re.compile(r"exceed|longer|maximum|greater|too long|must (?:be <=|have less)|overflow|reduce", re.IGNORECASE)
_LIMIT = re.compile(
    r"(?:context (?:length|size|window)(?: of(?: only)?| is|:)? ?\(?|max_seq_len |<= |less than |allowed \(|> )"
    r"(\d{1,9})",
    re.IGNORECASE,
)
_ASKED = re.compile(
    r"(?:requested(?: about| a total of)?|resulted in|request has|request \(|input \(|(?:prompt|context) length"
    r"|given:|the first|too long:|count \()\s?(\d{1,9})",
    re.IGNORECASE,
)


class Overflow(NamedTuple):
    """How many tokens were asked for, of how many that the model takes; None where the backend does not tell."""

    asked: int | None
    limit: int | None


def overflow_in(error: Mapping[str, Any], words: str) -> Overflow | None:
    """The overflow that a backend's error tells of; `words` is its message."""
    told = " ".join(str(value)[:100] for value in (error.get("type"), error.get("code")) if value)
    if CODE not in told and not (_WORDS.search(f"{told} {words}") and _IS_OVER.search(f"{told} {words}")):
        return None
    asked, limit = error.get("n_prompt_tokens"), error.get("n_ctx")  # llama.cpp's
    return Overflow(_number(asked, _ASKED, words), _number(limit, _LIMIT, words))


def openai_words(overflow: Overflow, words: str) -> str:
    """The message in OpenAI's words, which clients look for, where the backend has others."""
    if "maximum context length" in words or None in overflow:
        return words
    return (
        f"This model's maximum context length is {overflow.limit} tokens. However, your messages resulted in "
        f"{overflow.asked} tokens. The backend says: {words}"
    )


def _number(told: Any, pattern: re.Pattern[str], words: str) -> int | None:
    if type(told) is int and 0 < told < 1_000_000_000:
        return told
    found = pattern.search(words)
    return int(found[1]) if found else None
