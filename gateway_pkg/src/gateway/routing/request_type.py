"""Decides whether a request is about code: by its header `X-Request-Type`, else by its last user text."""

from __future__ import annotations

import re

LOOKED_AT_CHARS = 20_000  # enough to tell; bounds the cost of the patterns
CODING = frozenset({"coding", "code", "dev"})
OTHER = frozenset({"chat", "general"})

_ERROR = re.compile(
    r"\b(?:traceback|stack ?trace|exception|segmentation fault|segfault|core dumped|"
    r"(?:syntax|type|value|name|key|index|attribute|import|reference|runtime|range)error)\b|\bpanic:|\berror\[E\d+\]",
    re.IGNORECASE,
)
_SOURCE_FILE = re.compile(
    r"(?<![\w-])[\w-]+\.(?:py|pyi|js|jsx|mjs|ts|tsx|rs|go|java|kt|c|h|cc|cpp|hpp|cs|rb|php|swift|scala|sh|bash|ps1|sql|lua|pl"
    r"|toml|ya?ml|json|html|css|vue|tf|gradle|cmake|ipynb)\b"
)
_KEYWORD = re.compile(
    r"\b(?:def|class|function|func|fn|return|import|from|const|let|var|struct|enum|impl|public|private|static|void|"
    r"async|await|lambda|while|for|if|else|elif|switch|try|catch|except|select|insert|update)\b"
)
_PUNCTUATION = re.compile(r"[{(:]")
_TECHNOLOGY = re.compile(
    r"\b(?:python|javascript|typescript|rust|golang|java|kotlin|swift|ruby|php|bash|shell|sql|postgres(?:ql)?|sqlite|"
    r"docker|kubernetes|ansible|terraform|git|npm|pip|cargo|make|cmake|gcc|clang|react|django|flask|fastapi|node(?:js)?|"
    r"regex|html|css|c\+\+|c#)(?!\w)",
    re.IGNORECASE,
)
_REPAIR = re.compile(
    r"\b(?:error|errors|debug|debugging|fix|fixes|bug|bugs|crash(?:es)?|fails?|failing)\b", re.IGNORECASE
)


def is_coding(header: str, text: str) -> bool:
    """`header` is `X-Request-Type`: coding, code, dev, chat and general decide; otherwise the text decides."""
    header = header.strip().casefold()
    if header in CODING:
        return True
    if header in OTHER:
        return False
    text = text[:LOOKED_AT_CHARS]
    return (
        "```" in text
        or _ERROR.search(text) is not None
        or _SOURCE_FILE.search(text) is not None
        or (_KEYWORD.search(text) is not None and _has_code_punctuation(text))
        or (_TECHNOLOGY.search(text) is not None and _REPAIR.search(text) is not None)
    )


def _has_code_punctuation(text: str) -> bool:
    """A line that begins with a code keyword and has `{`, `:` or `(`; prose seldom does."""
    return any(_KEYWORD.match(line.strip()) and _PUNCTUATION.search(line) for line in text.splitlines())
