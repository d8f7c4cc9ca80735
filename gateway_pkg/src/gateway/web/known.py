"""A JSON body read so that it has one meaning: no known field stands in it twice, or in another case.

Which of two a backend takes nobody can tell, and servers in Go take any case. What is checked here must be what the
backend reads in the same bytes. Fields that the gateway does not know go on as they came.
"""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any, cast

import orjson
from pydantic import TypeAdapter, ValidationError
from pydantic_core import SchemaValidator, from_json

from gateway.errors import ApiError
from gateway.web.schemas import ChatRequest
from gateway.wire.collector import LARGE_BYTES, resume

Pairs = tuple[tuple[str, Any], ...]

PARAM_MAX_CHARS = 200
SPACED = b'": '  # as Python's json writes it, where orjson's own form need not be tried
SPACED_WITHIN_BYTES = 32
# JSON's words instead of Python's.
_WORDS = {"dict_type": "Input should be an object", "list_type": "Input should be a valid array"}
# What an escape must begin with to be an ASCII letter or `_`: of these all known names are.
_ESCAPED_LETTER = re.compile(rb"\\u00[4-7]")


class KnownFields:
    """The fields of one route's bodies, and those of a chat, which other routes pass on or are bound by as well."""

    __slots__ = ("_by_case", "_check", "_inner", "_is_strict", "_named", "_names")

    def __init__(self, adapter: TypeAdapter[Any]) -> None:
        schema: Any = adapter.core_schema
        named = schema.get("definitions", ())
        self._inner = {name: frozenset(_fields(about, named)) for name, about in _fields(schema, named).items()}
        self._names = frozenset(self._inner) | frozenset(ChatRequest.__annotations__)
        self._by_case = {name.casefold(): name for name in self._names}
        self._named = re.compile(rb'"%b"[ \t\r\n]*:' % _one_of({*self._names}.union(*self._inner.values()))).findall
        self._is_strict = schema.get("config", {}).get("strict", False)  # a form's fields are texts that become numbers
        self._check = SchemaValidator(_without_copies(schema) if self._is_strict else schema).validate_python

    def parse(self, body: bytes) -> dict[str, Any]:
        """The body as parsed and checked; raises ApiError 400 that names the field."""
        # As `collector.paused`, but for its frames.
        is_paused = len(body) > LARGE_BYTES and gc.isenabled()
        if is_paused:
            gc.disable()
        try:
            is_plain = False
            content: Any = None
            if body.find(SPACED, 0, SPACED_WITHIN_BYTES) < 0:
                try:
                    content = orjson.loads(body)
                    # Nothing is lost on the way there and back: no field on any level, no digit, no escape.
                    is_plain = orjson.dumps(content) == body
                except (ValueError, TypeError):
                    pass
            if not is_plain:
                content = from_json(body)
            checked = self._check(content)
            request: dict[str, Any] = content if self._is_strict else checked
            if not self._names.issuperset(request):
                self._check_case(request)
            if not is_plain:
                self._check_places(body, request)
            return request
        except ValidationError as error:
            raise _invalid(error) from None
        except ValueError as error:
            raise ApiError(400, f"Invalid request: Invalid JSON: {error}", code="invalid_json") from None
        finally:
            if is_paused:
                resume()

    def _check_places(self, body: bytes, request: Mapping[str, Any]) -> None:
        """Raises ApiError 400 for a known field that is there twice.

        Each has a place in the body: one place more may be a second one, or a name that stands elsewhere too. A name
        that is escaped is not found.
        """
        count = len(self._names.intersection(request))
        if len(self._named(body)) != count or (body.find(b"\\") >= 0 and _ESCAPED_LETTER.search(body)):
            self._check_pairs(body)

    def _check_case(self, request: Mapping[str, Any]) -> None:
        for name in request:
            if name not in self._names and (known := self._by_case.get(name.casefold())) is not None:
                raise _twice(known, f"must be written so, not '{name[:100]}'")

    def _check_pairs(self, body: bytes) -> None:
        """Looks at every pair: for the few bodies that have a known name in more places than one."""
        pairs: Pairs = json.loads(body, object_pairs_hook=tuple, parse_int=str, parse_float=str)
        _check_once(pairs, self._names)
        for name, value in pairs:
            if isinstance(value, tuple) and (inner := self._inner.get(name)):
                _check_once(value, inner, f"{name}.")


known_fields = cache(KnownFields)  # made once for each adapter; those of routes are constants


def _check_once(pairs: Pairs, names: frozenset[str], where: str = "") -> None:
    seen = set()
    for name, _ in pairs:
        if name in seen:
            raise _twice(where + name, "is there twice: send it once")
        if name in names:
            seen.add(name)


def _invalid(error: ValidationError) -> ApiError:
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    words = _WORDS.get(problem["type"], problem["msg"])
    param = ".".join(str(part) for part in problem["loc"] if not _is_union_tag(part))[:PARAM_MAX_CHARS] or None
    where = f"'{param}': " if param else ""
    return ApiError(400, f"Invalid request: {where}{words}", param=param, code="invalid_value")


def _is_union_tag(part: int | str) -> bool:
    return isinstance(part, str) and (part in ("str", "int") or part.startswith(("list[", "dict[")))


def _twice(param: str, problem: str) -> ApiError:
    return ApiError(400, f"Invalid request: '{param}' {problem}", param=param, code="invalid_value")


def _fields(schema: Any, named: Sequence[Any]) -> Mapping[str, Any]:
    """Pydantic's core schemas of an object's known fields, by name; empty where `schema` is not an object's.

    The JSON schema tells the same, but it takes ten times as long to make.
    """
    match schema:
        case {"fields": fields}:
            return cast(Mapping[str, Any], fields)
        case {"choices": choices}:
            return {name: about for choice in choices for name, about in _fields(choice, named).items()}
        case {"schema": inner}:
            return _fields(inner, named)
        case {"schema_ref": reference}:
            return _fields(next(one for one in named if one["ref"] == reference), named)
    return {}


def _without_copies(schema: Any) -> Any:
    """The schema for a check whose result nobody reads: the copying of unknown fields takes a third of its time."""
    match schema:
        case {"type": "typed-dict", "fields": fields}:
            fields = {name: _without_copies(about) for name, about in fields.items()}
            return schema | {"extra_behavior": "ignore", "fields": fields}
        case {"type": "list", "items_schema": items}:
            return schema | {"items_schema": _without_copies(items)}
        case {"type": "typed-dict-field" | "nullable", "schema": inner}:
            return schema | {"schema": _without_copies(inner)}
    return schema


def _one_of(names: Iterable[str]) -> bytes:
    """A pattern for one of the names, as a tree of their letters: half the time of a list of alternatives."""
    by_letter: dict[str, list[str]] = {}
    for name in sorted(names):
        by_letter.setdefault(name[:1], []).append(name[1:])
    is_end = by_letter.pop("", None) is not None
    found = [re.escape(letter).encode() + _one_of(rest) for letter, rest in by_letter.items()]
    if not found:
        return b""
    pattern = found[0] if len(found) == 1 and not is_end else b"(?:%b)" % b"|".join(found)
    return pattern + b"?" if is_end else pattern
