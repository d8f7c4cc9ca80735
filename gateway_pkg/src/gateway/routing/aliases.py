"""Model aliases: stable names such as `default` and `fast` for a backend class and its upstream model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from gateway.files import read_text, validation_refusal
from gateway.refusal import Refusal

HINT = "set MODEL_ALIASES_PATH to a file such as the shipped files/model_aliases.json"


@dataclass(frozen=True, slots=True)
class Alias:
    """`backend` is a backend class, `model` the name that the backend knows."""

    backend: str
    model: str


class _AliasRecord(BaseModel):
    """As written in the file: `"class:model"` or an object, with the earlier system's names for the model."""

    model_config = ConfigDict(extra="forbid")

    backend: str = Field(min_length=1)
    model: str = Field(min_length=1)

    @model_validator(mode="before")
    @classmethod
    def _accept_short_form(cls, value: Any) -> Any:
        if isinstance(value, str):
            backend, separator, model = value.partition(":")
            if not separator:
                raise ValueError('write "<backend class>:<model>" or {"backend": …, "model": …}')
            return {"backend": backend, "model": model}
        if isinstance(value, dict) and "upstream_model" in value and "model" not in value:
            value = {("model" if key == "upstream_model" else key): item for key, item in value.items()}
        return value


_RECORDS = TypeAdapter(dict[str, _AliasRecord])


def load_aliases(path: Path) -> Mapping[str, Alias]:
    """Aliases by their case-folded name. A file with or without an outer `{"aliases": …}`.

    Raises:
        Refusal: the file is missing, not JSON, or a record is not of its shape.
    """
    text = read_text(path, "model aliases file", HINT)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise Refusal(f"{path}: line {error.lineno}: not JSON: {error.msg}; correct it") from None
    if isinstance(content, dict) and isinstance(content.get("aliases"), dict):
        content = content["aliases"]
    try:
        records = _RECORDS.validate_python(content)
    except ValidationError as error:
        raise validation_refusal(path, error) from None
    return {name.casefold(): Alias(record.backend, record.model) for name, record in records.items()}
