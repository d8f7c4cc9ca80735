"""Types of request fields whose check ends at the first error, however many a body has.

Pydantic would collect an error for each item: a million of them in a body of a megabyte.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, ValidationError
from pydantic_core import InitErrorDetails

T = TypeVar("T")
K = TypeVar("K")

Array = Annotated[list[T], Field(fail_fast=True)]
Object = Annotated[dict[K, T], Field(fail_fast=True)]
# Of a TypedDict; those that stand in its fields or inherit from it have it too, unless they have their own.
OPEN = ConfigDict(extra="allow", strict=True)
# With `closed`; `extra="forbid"` would collect an error for each key.
CLOSED = ConfigDict(extra="allow", strict=True, json_schema_extra={"additionalProperties": False})


def closed(kind: type) -> AfterValidator:
    """For a TypedDict with the config CLOSED: the first key that it does not have is an error."""
    known = kind.__annotations__

    def check(value: Mapping[str, Any]) -> Mapping[str, Any]:
        for name in value:
            if name not in known:
                error = InitErrorDetails(type="extra_forbidden", loc=(name,), input=None)
                raise ValidationError.from_exception_data(kind.__name__, [error])
        return value

    return AfterValidator(check)
