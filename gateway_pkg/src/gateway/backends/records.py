"""`backends.yaml`: one record per backend, rendered by Ansible or written by hand."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator

from gateway.backends.protocols import BY_IMAGES_BACKEND, BY_NAME, PROTOCOLS
from gateway.backends.protocols.wire_protocol import Implied, WireProtocol
from gateway.backends.settings import BackendSettings
from gateway.config.files import read_text, validation_refusal
from gateway.config.settings import Settings
from gateway.errors import Refusal
from gateway.wire.origin import Origin, is_address

HINT = "set GATEWAY_BACKENDS_PATH or pass --backends FILE"
NO_BACKENDS = "or OLLAMA_BASE_URL, MLX_BASE_URL to a server's address"
Capability = Literal["chat", "completions", "embeddings", "rerank", "images", "tts", "transcription", "music"]
# The settings that make a backend without a record, each with what it makes; an image server's depends on another.
IMPLIED = {implied.url_setting: (protocol, implied) for protocol in PROTOCOLS for implied in protocol.implied}
IMAGES_URL = "images_http_base_url"
Path_ = Annotated[str, Field(pattern=r'^/([!"$-.0-~][!"$-~]*)?$', max_length=200)]  # `//` would begin another host


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Health(_Strict):
    """Paths on the backend's origin that answer 200 when it lives and when it can take requests."""

    liveness: Path_ = "/health"
    readiness: Path_ = "/health"


class Queue(_Strict):
    """How many requests may wait for a slot of the class, and how long each."""

    max: int = Field(ge=1, le=10_000)
    timeout_sec: float = Field(gt=0, le=3_600)


class PayloadPolicy(_Strict):
    """What is taken of a backend's images: `images_format` is `url` or `b64_json`, or empty for either."""

    images_format: Literal["", "url", "b64_json"] = ""
    images_allow_base64: bool = True
    images_max_bytes: int = Field(50_000_000, ge=1)


class BackendRecord(BaseModel):
    """One backend: a server that speaks the wire protocol of this name below `base_url`.

    `stream_usage`: whether it understands `stream_options`, and so can tell a stream's usage. `cooldown_ms`: how long a
    slot cools down when the gateway aborts an answer, because the backend goes on until it has noticed.
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True, hide_input_in_errors=True)

    backend_class: str = Field(alias="class", pattern=r"^[a-z0-9][a-z0-9_.-]*$", max_length=64)
    base_url: str
    description: str = ""
    protocol: str = PROTOCOLS[0].name
    supported_capabilities: list[Capability] = Field(min_length=1)
    concurrency_limits: dict[Capability, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    health: Health = Field(default_factory=Health)
    queue: Queue | None = None
    payload_policy: PayloadPolicy = Field(default_factory=lambda: PayloadPolicy.model_validate({}))
    stream_usage: bool = True
    max_connections: int = Field(256, ge=1)
    cooldown_ms: int = Field(0, ge=0, le=60_000)
    api_key: str = Field("", repr=False)
    optional: bool = False

    @field_validator("base_url")
    @classmethod
    def _is_an_origin(cls, value: str) -> str:
        Origin.parse(value)
        return value

    @field_validator("protocol")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value not in BY_NAME:
            near = get_close_matches(value, BY_NAME, n=1)
            meant = f"; did you mean '{near[0]}'?" if near else ";"
            raise ValueError(f"no protocol '{value[:100]}'{meant} there are {', '.join(BY_NAME)}")
        return value

    @model_validator(mode="after")
    def _fits_its_protocol(self) -> Self:
        protocol = BY_NAME[self.protocol]
        spoken = ", ".join(sorted(protocol.capabilities))
        for capability in self.supported_capabilities:
            if capability not in protocol.capabilities:
                raise ValueError(f"protocol '{self.protocol}' has no {capability}; it has {spoken}")
        if "health" not in self.model_fields_set:
            self.health = Health(liveness=protocol.probe, readiness=protocol.probe)
        return self

    @field_validator("api_key")
    @classmethod
    def _fits_a_header(cls, value: str) -> str:
        if not value.isascii() or any(not char.isprintable() for char in value):
            raise ValueError("may hold only printable ASCII")
        return value


_RECORDS = TypeAdapter(dict[str, BackendRecord])
_MAPPING = TypeAdapter(dict[str, str])
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


class BackendsFile(NamedTuple):
    """Records by backend name, and other names of their classes."""

    records: dict[str, BackendRecord]
    legacy_mapping: dict[str, str]


def load_backends(settings: Settings, environment: Mapping[str, str] = os.environ) -> BackendsFile:
    """The backends of the file and those that single settings name; `${NAME}` as `Settings.variable`.

    The file need not be there where a setting names a backend, unless it was named itself.
    Raises Refusal: the file is missing, not YAML, names an unset variable, or a record is not of its shape.
    """
    own = settings[BackendSettings]
    path = own.gateway_backends_path
    implied = implied_records(settings)
    if implied and "gateway_backends_path" not in own.model_fields_set and not path.exists():
        return BackendsFile(implied, {})
    records, legacy_mapping = _read(path, lambda name: settings.variable(name, environment))
    classes = {record.backend_class for record in records.values()}
    known = classes | {name for name, backend_class in legacy_mapping.items() if backend_class in classes}
    for name, record in implied.items():
        if record.backend_class not in known:
            if name in records:
                advice = f"rename the record, or give it the class {record.backend_class}"
                raise Refusal(f"{path}: {name}: a setting makes a backend of this name; {advice}")
            records[name] = record
    url = settings.value("images_http_base_url")
    if url and not _is_loopback(url):  # the earlier system's rule: its default, on loopback, left the class's own
        for name, record in records.items():
            if record.backend_class == settings.value("images_backend_class"):
                records[name] = record.model_copy(update={"base_url": url})
    return BackendsFile(records, legacy_mapping)


def _is_loopback(url: str) -> bool:
    host = Origin.parse(url).host
    return host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback)


def _read(path: Path, variable: Callable[[str], str]) -> tuple[dict[str, BackendRecord], dict[str, str]]:
    text = read_text(path, "backends file", f"{HINT}, {NO_BACKENDS}")
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a 99th of May, lists without end
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or "unreadable"
        raise Refusal(f"{path}: {place}not YAML: {problem}; correct it") from None
    if not isinstance(content, dict) or not isinstance(content.get("backends"), dict) or not content["backends"]:
        raise Refusal(f"{path}: needs a mapping 'backends:' with at least one record; see docs/add-a-backend.md")
    try:
        records = _RECORDS.validate_python(_fill(content["backends"], variable, path))
        mapping = _MAPPING.validate_python(content.get("legacy_mapping") or {})
    except ValidationError as error:
        raise _with_nearest_keys(validation_refusal(path, error)) from None
    except RecursionError:  # an anchor within what it names
        raise Refusal(f"{path}: backends: nested too deep; correct it") from None
    _check_queues(records, path)
    return records, mapping


def _check_queues(records: Mapping[str, BackendRecord], path: Path) -> None:
    """A queue is the whole class's: two hosts of it cannot ask for different ones."""
    queues: dict[str, tuple[str, Queue | None]] = {}
    for name, record in records.items():
        first, queue = queues.setdefault(record.backend_class, (name, record.queue))
        if queue != record.queue:
            raise Refusal(f"{path}: {name}.queue: differs from that of {first}, of the same class; make them equal")


def implied_records(settings: Settings) -> dict[str, BackendRecord]:
    """The backends that settings such as `OLLAMA_BASE_URL` name; raises Refusal for a malformed URL."""
    records: dict[str, BackendRecord] = {}
    for name in (*IMPLIED, IMAGES_URL):
        url = settings.value(name)
        if not url:
            continue
        protocol, implied = IMPLIED.get(name) or _implied_images(settings)
        probe = implied.probe or protocol.probe
        backend_class = implied.backend_class or settings.value(implied.class_setting)
        record = {
            "class": backend_class,
            "protocol": protocol.name,
            "base_url": url,
            "supported_capabilities": list(implied.capabilities),
            "concurrency_limits": dict(implied.limits),
            "health": {"liveness": probe, "readiness": probe},
        }
        try:
            records[backend_class] = BackendRecord.model_validate(record)
        except ValidationError as error:
            raise Refusal(f"{name.upper()}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    return records


def _implied_images(settings: Settings) -> tuple[WireProtocol, Implied]:
    """The image server is spoken to as IMAGES_BACKEND says; small ones of OpenAI's API have no `/health`."""
    protocol = BY_IMAGES_BACKEND.get(settings.value("images_backend"), PROTOCOLS[0])
    probe = "/v1/models" if protocol is PROTOCOLS[0] else ""
    return protocol, Implied(IMAGES_URL, ("images",), {"images": 2}, class_setting="images_backend_class", probe=probe)


def _fill(value: Any, variable: Callable[[str], str], path: Path) -> Any:
    if isinstance(value, dict):
        return {key: _fill(item, variable, path) for key, item in value.items()}
    if isinstance(value, list):
        return [_fill(item, variable, path) for item in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        name = match.group(1)
        if filled := variable(name):
            return filled
        advice = "set it in the environment or the env file, or write the value here"
        raise Refusal(f"{path}: ${{{name}}} is not set; {advice}")

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
