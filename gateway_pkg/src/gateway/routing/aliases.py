"""Model aliases: stable names such as `default` and `fast`, each for a backend class and an upstream model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

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
    What a file says is checked by these types.
    """

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    backend: Annotated[str, Field(min_length=1)]
    model: Annotated[str, Field(min_length=1)]
    context: Annotated[int | None, Field(ge=1)] = None
    tools: bool | None = None
    max_tokens_cap: Annotated[int | None, Field(ge=1)] = None
    temperature_cap: Annotated[float | None, Field(ge=0)] = None

    @property
    def limits(self) -> bool:
        """Whether the alias restricts requests."""
        return self.tools is False or self.max_tokens_cap is not None or self.temperature_cap is not None


def _accept_other_forms(value: Any) -> Any:
    """An alias in the file is `"class:model"` or an object; the earlier gateway's key names count too."""
    if isinstance(value, str):
        backend, separator, model = value.partition(":")
        if not separator:
            raise ValueError('write "<backend class>:<model>" or {"backend": …, "model": …}')
        return {"backend": backend, "model": model}
    if isinstance(value, dict):
        renamed = {OTHER_NAMES.get(key, key): item for key, item in value.items() if key in OTHER_NAMES}
        return renamed | {key: item for key, item in value.items() if key not in OTHER_NAMES}
    return value


_ALIASES = TypeAdapter(dict[str, Annotated[Alias, BeforeValidator(_accept_other_forms)]])


def load_aliases(settings: RoutingSettings) -> Mapping[str, Alias]:
    """Aliases by case-folded name, from MODEL_ALIASES_JSON, else the file; they override the settings' own aliases.

    The JSON has the aliases with or without an outer `{"aliases": …}`. Raises Refusal: the file is missing or not JSON,
    or a record is malformed. Only a file that a setting names must exist.
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
        aliases = _ALIASES.validate_python(content)
    except ValidationError as error:
        raise validation_refusal(source, error) from None
    for name, count in Counter(map(str.casefold, aliases)).items():
        if count > 1:
            raise Refusal(f"{source}: {name}: is there twice (case does not matter); leave one")
    return {name.casefold(): alias for name, alias in aliases.items()}


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
