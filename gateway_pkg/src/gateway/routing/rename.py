"""Puts another model's name into a request's body, and leaves every other byte as it came."""

from __future__ import annotations

import json

import orjson


class Rename:
    """From one name to another; made once for a route, used for each of its bodies."""

    __slots__ = ("_pairs", "_to")

    def __init__(self, was: str, to: str) -> None:
        """`was` is "" for bodies that name no model."""
        self._to = to
        # As most clients write it: compact, or as Python's json does.
        self._pairs = [(key + orjson.dumps(was), key + orjson.dumps(to)) for key in (b'"model":', b'"model": ') if was]

    def apply(self, body: bytes) -> bytes:
        """The JSON object `body`, which names the one model, naming the other."""
        # One "model" alone, and no \\u00 escape that could spell another: it can only be the object's own key.
        # (`find`, because `in` of bytes first fails to take its operand for a number.)
        if body.count(b'"model"') == 1 and body.find(b"\\u00") < 0:
            for was, to in self._pairs:
                if (at := body.find(was)) >= 0:
                    return body[:at] + to + body[at + len(was) :]
        # The standard library's numbers are exact where orjson's are 64 bits wide.
        content = json.loads(body)
        content["model"] = self._to
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
