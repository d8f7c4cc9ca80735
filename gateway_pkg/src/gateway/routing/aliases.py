"""Model aliases: stable names such as `default` and `fast`, each for a backend class and an upstream model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from gateway.config.files import parse_json, read_text, validation_refusal
from gateway.errors import Refusal
from gateway.routing.settings import RoutingSettings

HINT = "set MODEL_ALIASES_PATH to a file such as the shipped files/model_aliases.json"
# Key names that a file of the earlier gateway may use.
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
    """`backend` is a backend class, `model` the upstream model.

    `context` is in tokens; `tools` False refuses requests with tools; the caps bound a request's fields.
    """

    backend: str
    model: str
    context: int | None = None
    tools: bool | None = None
    max_tokens_cap: int | None = None
    temperature_cap: float | None = None

    @property
    def limits(self) -> bool:
        """Whether the alias restricts requests."""
        return self.tools is False or self.max_tokens_cap is not None or self.temperature_cap is not None


class _AliasRecord(BaseModel):
    """An alias in the file: `"class:model"` or an object; the earlier gateway's key names count too."""

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
    """Aliases by case-folded name, from MODEL_ALIASES_JSON, else the file; they override the settings' own aliases.

    The JSON has the aliases with or without an outer `{"aliases": …}`. Only a file that a setting names must exist.

    Raises:
        Refusal: the file is missing or not JSON, or a record is malformed.
    """
    implied = _implied(settings)
    if settings.model_aliases_json:
        return implied | _parse(settings.model_aliases_json, "MODEL_ALIASES_JSON")
    path = settings.model_aliases_path
    # A gateway that was never provisioned may lack the file; a file that a setting names must exist.
    if "model_aliases_path" not in settings.model_fields_set and not path.exists():
        return implied
    return implied | _parse(read_text(path, "model aliases file", HINT), path)


def _parse(text: str, source: Path | str) -> dict[str, Alias]:
    content = parse_json(text, source)
    if isinstance(content, dict) and isinstance(content.get("aliases"), dict):
        content = content["aliases"]
    try:
        records = _RECORDS.validate_python(content)
    except ValidationError as error:
        raise validation_refusal(source, error) from None
    for name, count in Counter(map(str.casefold, records)).items():
        if count > 1:
            raise Refusal(f"{source}: {name}: is there twice (case does not matter); leave one")
    return {name.casefold(): Alias(**record.model_dump()) for name, record in records.items()}


def models_by_class(settings: RoutingSettings) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """The strong and the fast models that settings name, by the earlier gateway's backend classes; "" for no model."""
    return (
        {"ollama": settings.ollama_model_strong, "mlx": settings.mlx_model_strong},
        {"ollama": settings.ollama_model_fast, "mlx": settings.mlx_model_fast},
    )


def _implied(settings: RoutingSettings) -> dict[str, Alias]:
    """The earlier gateway's built-in aliases, where the settings name their models."""
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
