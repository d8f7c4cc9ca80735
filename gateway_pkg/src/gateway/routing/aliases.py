"""Model aliases: stable names such as `default` and `fast` for a backend class and its upstream model."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from gateway.config.files import read_text, validation_refusal
from gateway.errors import Refusal
from gateway.routing.settings import RoutingSettings

HINT = "set MODEL_ALIASES_PATH to a file such as the shipped files/model_aliases.json"
# The names that a file of the earlier gateway may use.
OTHER_NAMES = {
    "upstream_model": "model",
    "context_window": "context",
    "window": "context",
    "max_tokens": "max_tokens_cap",
    "max_output_tokens": "max_tokens_cap",
    "temp_cap": "temperature_cap",
}


@dataclass(frozen=True, slots=True)
class Alias:
    """`backend` is a backend class, `model` the name that the backend knows.

    `context` is in tokens; `tools` False refuses requests with tools; the caps bound what a request may ask for.
    """

    backend: str
    model: str
    context: int | None = None
    tools: bool | None = None
    max_tokens_cap: int | None = None
    temperature_cap: float | None = None

    @property
    def limits(self) -> bool:
        """Whether a request to it has to be looked at."""
        return self.tools is False or self.max_tokens_cap is not None or self.temperature_cap is not None


class _AliasRecord(BaseModel):
    """As written in the file: `"class:model"` or an object, with the earlier system's names."""

    model_config = ConfigDict(extra="forbid")

    backend: str = Field(min_length=1)
    model: str = Field(min_length=1)
    context: int | None = Field(None, ge=1)
    tools: bool | None = None
    max_tokens_cap: int | None = Field(None, ge=1)
    temperature_cap: float | None = Field(None, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _accept_other_forms(cls, value: Any) -> Any:
        if isinstance(value, str):
            backend, separator, model = value.partition(":")
            if not separator:
                raise ValueError('write "<backend class>:<model>" or {"backend": …, "model": …}')
            return {"backend": backend, "model": model}
        if isinstance(value, dict):
            renamed = {OTHER_NAMES.get(key, key): item for key, item in value.items() if key in OTHER_NAMES}
            return renamed | {key: item for key, item in value.items() if key not in OTHER_NAMES}
        return value


_RECORDS = TypeAdapter(dict[str, _AliasRecord])


def load_aliases(settings: RoutingSettings) -> Mapping[str, Alias]:
    """Aliases by their case-folded name: MODEL_ALIASES_JSON, else the file, over those that the settings imply.

    The text has the aliases with or without an outer `{"aliases": …}`. A file need not be there unless it is named.

    Raises:
        Refusal: the file is missing, not JSON, or a record is not of its shape.
    """
    implied = _implied(settings)
    if settings.model_aliases_json:
        return implied | _parse(settings.model_aliases_json, "MODEL_ALIASES_JSON")
    path = settings.model_aliases_path
    # A gateway that nobody provisioned may have no aliases; a file that somebody named must be there.
    if "model_aliases_path" not in settings.model_fields_set and not path.exists():
        return implied
    return implied | _parse(read_text(path, "model aliases file", HINT), path)


def _parse(text: str, source: Path | str) -> dict[str, Alias]:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise Refusal(f"{source}: line {error.lineno}: not JSON: {error.msg}; correct it") from None
    except (ValueError, RecursionError):  # a number of thousands of digits, lists without end
        raise Refusal(f"{source}: not JSON that can be read; correct it") from None
    if isinstance(content, dict) and isinstance(content.get("aliases"), dict):
        content = content["aliases"]
    try:
        records = _RECORDS.validate_python(content)
    except ValidationError as error:
        raise validation_refusal(source, error) from None
    for name, count in Counter(map(str.casefold, records)).items():
        if count > 1:
            raise Refusal(f"{source}: {name}: stands twice, and case is of no account; leave one")
    return {name.casefold(): Alias(**record.model_dump()) for name, record in records.items()}


def models_by_class(settings: RoutingSettings) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """The strong and the fast models that settings name, by the earlier gateway's backend classes; "" for no model."""
    return (
        {"ollama": settings.ollama_model_strong, "mlx": settings.mlx_model_strong},
        {"ollama": settings.ollama_model_fast, "mlx": settings.mlx_model_fast},
    )


def _implied(settings: RoutingSettings) -> dict[str, Alias]:
    """The earlier gateway's built-in aliases, as far as the settings name their models."""
    strong, fast = models_by_class(settings)
    first, second = strong
    usual = settings.default_backend or first
    aliases = {
        "default": Alias(usual, strong.get(usual, ""), tools=True),
        "fast": Alias(usual, fast.get(usual, ""), tools=False),
        "coder": Alias(first, strong[first], tools=True),
        "long": Alias(second, strong[second], tools=False),
    }
    return {name: alias for name, alias in aliases.items() if alias.model}
