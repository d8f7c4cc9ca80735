"""Fields that several dialects read alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.errors import invalid_value


def need_text(content: Mapping[str, Any], name: str, where: str) -> str:
    """The string in a field of the object at `where`; raises ApiError 400 that names the field."""
    value = content.get(name)
    if not isinstance(value, str):
        raise invalid_value(f"{where}.{name}", "must be a string")
    return value
