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
        if body.count(b'"model"') == 1 and b"\\u00" not in body:
            for was, to in self._pairs:
                if was in body:
                    return body.replace(was, to, 1)
        # The standard library's numbers are exact where orjson's are 64 bits wide.
        content = json.loads(body)
        content["model"] = self._to
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
