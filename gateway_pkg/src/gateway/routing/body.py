"""Changes fields of a request's JSON body for a backend; where possible every other byte stays as it came."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import orjson
from pydantic_core import from_json

from gateway.wire.collector import paused

ASK_FOR_USAGE = b'"stream_options":{"include_usage":true},'


class Rename:
    """Renames the model in bodies; made once for a route, used for each of its requests."""

    __slots__ = ("_first", "_pairs", "_to")

    def __init__(self, was: str, to: str) -> None:
        """`was` is "" for bodies that name no model."""
        self._to = to
        # As most clients write it: compact, or as Python's json does.
        self._pairs = [(key + orjson.dumps(was), key + orjson.dumps(to)) for key in (b'"model":', b'"model": ') if was]
        self._first = [(b"{" + key, b"{" + new) for key, new in self._pairs]  # the object's own key, where it begins so

    def apply(self, body: bytes) -> bytes:
        """The JSON object `body`, which has no field twice, with the new model name."""
        for was, to in self._first:
            rest = body.removeprefix(was)
            if rest is not body:
                return to + rest
        # A single "model", and no \\u00 escape that could spell another: it must be the object's own key.
        # (`find`, because `in` of bytes first fails to take its operand for a number; of one byte it is fast.)
        if body.count(b'"model"') == 1 and (body.find(b"\\") < 0 or body.find(b"\\u00") < 0):
            for was, to in self._pairs:
                if (at := body.find(was)) >= 0:
                    return body[:at] + to + body[at + len(was) :]
        return set_fields(body, {"model": self._to})


def set_fields(body: bytes, fields: Mapping[str, Any]) -> bytes:
    """The JSON object `body` with new values for `fields`."""
    return dump(load(body) | dict(fields))


def load(body: bytes) -> dict[str, Any]:
    """A JSON object with exact numbers, where orjson's are 64 bits wide."""
    with paused(len(body)):
        try:
            content: dict[str, Any] = from_json(body)
        except ValueError:  # deeper than its 200 levels, or half a surrogate pair
            content = json.loads(body)
        return content


def dump(content: Mapping[str, Any]) -> bytes:
    """JSON with numbers of any size; half a surrogate pair, which UTF-8 cannot encode, stays escaped."""
    try:
        return orjson.dumps(content)
    except (TypeError, orjson.JSONEncodeError):
        return json.dumps(content, separators=(",", ":")).encode()


def ask_for_usage(body: bytes, request: Mapping[str, Any]) -> bytes:
    """A stream's request that asks the backend for usage at the end, whatever the client asked for."""
    options = request.get("stream_options")
    if options is None and "stream_options" not in request:
        start = body.find(b"{") + 1
        return body[:start] + ASK_FOR_USAGE + body[start:]
    return set_fields(body, {"stream_options": {**(options or {}), "include_usage": True}})
