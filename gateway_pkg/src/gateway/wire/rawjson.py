"""Parts of a JSON text as they came: no number rewritten, no escape resolved."""

from __future__ import annotations

import re
from collections.abc import Iterator
from json import JSONDecodeError, JSONDecoder

_SPACE = re.compile(r"[ \t\r\n]*")
# Numbers stay text: only where a value ends matters here.
_VALUE = JSONDecoder(strict=False, parse_int=str, parse_float=str, parse_constant=str)


def members(text: str) -> dict[str, str]:
    """The members of a JSON object, the values as text; the last of two with the same name.

    Raises ValueError when `text` is not a JSON object, or is nested too deeply.
    """
    return dict(_parts(text, "{", "}"))


def items(text: str) -> list[str]:
    """The items of a JSON array, as text; raises ValueError as `members`."""
    return [item for _, item in _parts(text, "[", "]")]


def _parts(text: str, opening: str, closing: str) -> Iterator[tuple[str, str]]:
    """The name, "" in an array, and the text of each."""
    at = _skip(text, 0, opening)
    is_last = text.startswith(closing, at)
    while not is_last:
        name: object = ""
        if opening == "{":
            name, at = _value(text, at)
            at = _skip(text, at, ":")
        if not isinstance(name, str):
            raise JSONDecodeError("Expecting a name", text, at)
        _, end = _value(text, at)
        yield name, text[at:end]
        at = _skip(text, end, "")
        is_last = text.startswith(closing, at)
        if not is_last:
            at = _skip(text, at, ",")


def _value(text: str, at: int) -> tuple[object, int]:
    """The value that begins at `at`, and where it ends."""
    try:
        return _VALUE.raw_decode(text, at)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _skip(text: str, at: int, mark: str) -> int:
    """The place after white space, `mark` and white space."""
    at = _past_space(text, at)
    if not text.startswith(mark, at):
        raise JSONDecodeError(f"Expecting {mark}", text, at)
    return _past_space(text, at + len(mark))


def _past_space(text: str, at: int) -> int:
    space = _SPACE.match(text, at)
    return space.end() if space is not None else at
