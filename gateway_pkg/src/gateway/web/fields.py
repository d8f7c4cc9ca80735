"""Request fields: types whose check ends at the first error, however many a body has, and a check by hand.

Pydantic would collect an error for each item: a million of them in a body of a megabyte.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, ValidationError
from pydantic_core import InitErrorDetails

from gateway.errors import invalid_value

T = TypeVar("T")
K = TypeVar("K")

Array = Annotated[list[T], Field(fail_fast=True)]
Object = Annotated[dict[K, T], Field(fail_fast=True)]
# Of a TypedDict; those that stand in its fields or inherit from it have it too, unless they have their own.
OPEN = ConfigDict(extra="allow", strict=True)
# With `closed`; `extra="forbid"` would collect an error for each key.
CLOSED = ConfigDict(extra="allow", strict=True, json_schema_extra={"additionalProperties": False})


def closed(kind: type) -> AfterValidator:
    """For a TypedDict with the config CLOSED: the first unknown key is an error."""
    known = kind.__annotations__

    def check(value: Mapping[str, Any]) -> Mapping[str, Any]:
        for name in value:
            if name not in known:
                error = InitErrorDetails(type="extra_forbidden", loc=(name,), input=None)
                raise ValidationError.from_exception_data(kind.__name__, [error])
        return value

    return AfterValidator(check)


def need_text(content: Mapping[str, Any], name: str, where: str) -> str:
    """The string in a field of the object at `where`; raises ApiError 400 that names the field."""
    value = content.get(name)
    if not isinstance(value, str):
        raise invalid_value(f"{where}.{name}", "must be a string")
    return value
