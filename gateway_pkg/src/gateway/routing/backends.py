"""`backends.yaml`: one record per backend, rendered by Ansible or written by hand."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from gateway.files import read_text, validation_refusal
from gateway.refusal import Refusal
from gateway.upstream.http1 import Origin

HINT = "set GATEWAY_BACKENDS_PATH or pass --backends FILE"
Capability = Literal["chat", "completions", "embeddings"]
Path_ = Annotated[str, Field(pattern=r"^/\S*$", max_length=200)]


class Health(BaseModel):
    """Paths on the backend's origin that answer 200 when it lives and when it can take requests."""

    model_config = ConfigDict(extra="forbid")

    liveness: Path_ = "/health"
    readiness: Path_ = "/health"


class BackendRecord(BaseModel):
    """One backend: a server that speaks OpenAI's API below `base_url`."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True, hide_input_in_errors=True)

    backend_class: str = Field(alias="class", pattern=r"^[a-z0-9][a-z0-9_.-]*$", max_length=64)
    base_url: str
    description: str = ""
    supported_capabilities: list[Capability] = Field(min_length=1)
    concurrency_limits: dict[Capability, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    health: Health = Field(default_factory=Health)
    max_connections: int = Field(256, ge=1)
    api_key: str = Field("", repr=False)
    optional: bool = False

    @field_validator("base_url")
    @classmethod
    def _is_an_origin(cls, value: str) -> str:
        Origin.parse(value)
        return value

    @field_validator("api_key")
    @classmethod
    def _fits_a_header(cls, value: str) -> str:
        if not value.isascii() or any(not char.isprintable() for char in value):
            raise ValueError("may hold only printable ASCII")
        return value


_RECORDS = TypeAdapter(dict[str, BackendRecord])
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


def load_backends(path: Path, environment: Mapping[str, str] = os.environ) -> dict[str, BackendRecord]:
    """Records by backend name; `${NAME}` in a string is filled from the environment.

    Raises:
        Refusal: the file is missing, not YAML, names an unset variable, or a record is not of its shape.
    """
    text = read_text(path, "backends file", HINT)
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}: " if mark else ""
        raise Refusal(
            f"{path}: {place}not YAML: {getattr(error, 'problem', None) or 'unreadable'}; correct it"
        ) from None
    if not isinstance(content, dict) or not isinstance(content.get("backends"), dict) or not content["backends"]:
        raise Refusal(f"{path}: needs a mapping 'backends:' with at least one record; see docs/add-a-backend.md")
    try:
        return _RECORDS.validate_python(_fill(content["backends"], environment, path))
    except ValidationError as error:
        raise _with_nearest_keys(validation_refusal(path, error)) from None


def _fill(value: Any, environment: Mapping[str, str], path: Path) -> Any:
    if isinstance(value, dict):
        return {key: _fill(item, environment, path) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, environment, path) for item in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in environment:
            raise Refusal(f"{path}: ${{{name}}} is not set in the environment; set it or write the value")
        return environment[name]

    return _VARIABLE.sub(replace, value)


def _with_nearest_keys(refusal: Refusal) -> Refusal:
    """Adds the likely spelling to each unknown key, and does not also ask for the key that was meant."""
    keys = [field.alias or name for name, field in BackendRecord.model_fields.items()]
    lines, meant = [], set()
    for line in refusal.problems:
        file, place, problem = line.split(": ", 2)
        record, _, key = place.rpartition(".")
        near = get_close_matches(key, keys, n=1) if problem.startswith("unknown key") else []
        if near:
            meant.add(f"{file}: {record}.{near[0]}: Field required")
            line = f"{line} (did you mean '{near[0]}'?)"
        lines.append(line)
    return Refusal(*(line for line in lines if line not in meant))
