"""Every setting, typed and described once; `docs/settings.md` is generated from here.

A setting is read from the environment, else from the env file, else has the default below. Names are those of the
earlier gateway, in either case; keys of the env file that the gateway does not know are ignored.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PrivateAttr, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, DotEnvSettingsSource, NoDecode, SettingsConfigDict

from gateway.errors import Refusal

HOME = Path("/var/lib/gateway")
PLACEHOLDERS = frozenset(
    {
        "change-me-in-production",
        "changeme-changeme",
        "your-token-here-123",
        "replace-me-with-a-token",
        "gateway_bearer_token",
    }
)
TOKEN_MIN_CHARS = 16
MAKE_ONE = """python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"""

URL_PATH = r'^/[!"$-~]*$'  # what can stand in a request, without the '#' of a fragment

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Settings(BaseSettings):
    """The gateway's settings. Sizes are bytes, times seconds."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)

    _env_file_lines: Mapping[str, str | None] = PrivateAttr(default_factory=dict)

    gateway_host: str = Field("127.0.0.1", description="Address of the API listener.")
    gateway_port: int = Field(8800, ge=1, le=65535, description="Port of the API listener.")
    gateway_tls_cert_path: Path | None = Field(None, description="Certificate chain (PEM) of the API listener.")
    gateway_tls_key_path: Path | None = Field(None, description="Private key (PEM) of the API listener.")
    gateway_shutdown_timeout_sec: float = Field(
        60, ge=0, description="How long a stop waits for answers and streams under way."
    )
    gateway_log_level: str = Field(
        "INFO", pattern="(?i)^(debug|info|warning|error)$", description="Level of the process log on stderr."
    )
    gateway_bearer_token: SecretStr = Field(
        SecretStr(""), description="The token that clients send, 16 or more characters."
    )
    gateway_bearer_tokens: SecretStr = Field(
        SecretStr(""),
        description="Several tokens, comma-separated; when set, `GATEWAY_BEARER_TOKEN` is not used.",
    )
    gateway_token_policies_json: SecretStr = Field(
        SecretStr(""), description="Token policies, a JSON object from token to policy; see docs/policies.md."
    )
    gateway_token_policies_path: Path | None = Field(None, description="The same in a file.")
    gateway_token_policies_strict: bool = Field(
        True, description="Whether a malformed policy refuses to start, and on a reload keeps the last good ones."
    )
    ip_allowlist: Annotated[tuple[Network, ...], NoDecode] = Field(
        (),
        description="Comma-separated addresses and CIDRs that may call the API; empty: any that reaches it.",
    )
    trust_proxy_cidrs: Annotated[tuple[Network, ...], NoDecode] = Field(
        (),
        description="Comma-separated addresses and CIDRs of proxies whose `X-Forwarded-For` is believed.",
    )
    max_request_bytes: int = Field(1_000_000, ge=1, description="Largest JSON body of a request.")
    max_upload_bytes: int = Field(26_214_400, ge=1, description="Largest multipart body of a request.")
    request_body_timeout_sec: float = Field(
        600, gt=0, description="Longest time for the body of a request, from its head to its end."
    )
    response_send_timeout_sec: float = Field(
        300, gt=0, description="How long a client may take nothing of what waits for it, before its connection is cut."
    )
    public_base_url: str = Field("", description="Begins the URLs of stored images and music; empty: a path alone.")
    gateway_db_path: Path = Field(
        HOME / "data/gateway.sqlite", description="Stored responses, music jobs, and what tokens have used."
    )
    responses_ttl_sec: int = Field(30 * 86_400, ge=1, description="How long a stored response is kept.")
    responses_max_bytes: int = Field(
        1024 * 1024 * 1024,
        ge=1,
        description="Size of all stored responses; beyond it the oldest of the token with most go.",
    )
    gateway_backends_path: Path = Field(HOME / "app/backends.yaml", description="The backends, rendered by Ansible.")
    ollama_base_url: str = Field(
        "", description="An Ollama server; makes a backend of class `ollama` when there is none."
    )
    mlx_base_url: str = Field("", description="An MLX server; a backend of class `mlx` where there is none.")
    ollama_model_strong: str = Field("", description="What the bare name `ollama` stands for.")
    ollama_model_fast: str = Field("", description="The model of class `ollama` for short requests.")
    mlx_model_strong: str = Field("", description="What the bare name `mlx` stands for.")
    mlx_model_fast: str = Field("", description="The model of class `mlx` for short requests.")
    default_backend: str = Field("", description="Class for requests that name no model where no alias `default` is.")
    model_aliases_json: str = Field("", description="The model aliases as JSON; then no file is read.")
    model_aliases_path: Path = Field(HOME / "app/model_aliases.json", description="The model aliases.")
    router_enable_policy: bool = Field(
        False, description="Whether requests without a model are routed by tools, size and kind; else to `default`."
    )
    router_enable_request_type: bool = Field(
        False, description="Whether that policy looks at the kind of request, coding or not."
    )
    router_long_context_chars: int = Field(
        40_000, ge=1, description="Size from which a request is long, where the alias `long` has no context window."
    )
    embeddings_backend: str = Field(
        "", description="Class for embeddings that name no model; empty: the first that has the capability."
    )
    embeddings_model: str = Field("", description="Model for embeddings that name none; empty: the backend's only one.")
    images_backend: Literal["", "mock", "http_a1111", "http_openai_images", "http_invokeai", "http_comfyui"] = Field(
        "",
        description="How images are made; empty: by the backends of `IMAGES_BACKEND_CLASS`, by `mock` without any.",
    )
    images_backend_class: str = Field("gpu_heavy", description="Class of the backends that make images.")
    images_http_base_url: str = Field(
        "",
        description="An image server, for a class without a record; not on loopback, for one with records, too.",
    )
    images_http_timeout_sec: float = Field(120, gt=0, description="Longest time for one request's images.")
    images_a1111_steps: int = Field(20, ge=1, le=500, description="Sampling steps where a request names none.")
    images_max_pixels: int = Field(2_000_000, ge=1, description="Largest area of an image.")
    images_openai_model: str = Field("", description="Image model where a request names none.")
    images_openai_model_fast: str = Field("gpu_fast", description="Image model for what may be quick.")
    images_openai_model_slow: str = Field("gpu_slow", description="Image model for what must be realistic.")
    images_enable_request_type: bool = Field(
        False, description="Whether the prompt decides between the fast and the slow image model."
    )
    ui_image_dir: Path = Field(HOME / "data/ui_images", description="Directory of stored images.")
    ui_image_ttl_sec: int = Field(86_400, ge=1, description="How long a stored image is kept.")
    ui_image_max_bytes: int = Field(50_000_000, ge=1, description="Largest image that is stored.")
    ui_image_total_bytes: int = Field(
        1_000_000_000,
        ge=1,
        description="Largest size of all stored images; the oldest of the token with most make room.",
    )
    heartmula_base_url: str = Field("", description="A music server; makes a backend when there is none.")
    heartmula_timeout_sec: float = Field(
        120, gt=0, description="Longest time for a piece of music, but at least 5 x its duration + 30."
    )
    heartmula_generate_path: str = Field(
        "/v1/music/generations", pattern=URL_PATH, description="Where music is asked for."
    )
    music_backend_class: str = Field("heartmula_music", description="Class of the backends that make music.")
    music_wait_sec: float = Field(
        120, ge=0, description="How long a request for music waits for it, before it is answered with a job to poll."
    )
    music_job_ttl_sec: int = Field(
        7 * 86_400, ge=1, description="How long a piece of music and its job can be fetched."
    )
    music_max_jobs: int = Field(32, ge=1, description="Pieces of music that are made or waited for at a time.")
    music_max_jobs_per_token: int = Field(4, ge=1, description="Those of them that may be of one token.")
    tts_base_url: str = Field("", description="A speech server; makes a backend when there is none.")
    tts_timeout_sec: float = Field(60, gt=0, description="Longest wait for the beginning of speech.")
    tts_generate_path: str = Field("/v1/audio/speech", pattern=URL_PATH, description="Where speech is asked for.")
    tts_backend_class: str = Field("pocket_tts", description="Class of the backends that speak.")
    transcription_backend_class: str = Field("whisper", description="Class of the backends that transcribe.")
    otel_exporter_otlp_endpoint: str = Field(
        "", description="OTLP/HTTP collector of traces, such as `http://127.0.0.1:4318`; empty: no traces."
    )
    otel_traces_sampler_arg: float = Field(
        1.0, ge=0, le=1, description="Share of the requests that are traced where no caller decided before."
    )
    otel_service_name: str = Field("ai-appliance-gateway", description="The service's name in traces.")
    observability_enabled: bool = Field(True, description="Whether the listener for health and metrics is opened.")
    observability_host: str = Field("127.0.0.1", description="Address of that listener; it asks for no token.")
    observability_port: int = Field(8801, ge=1, le=65535, description="Port of that listener.")
    metrics_enabled: bool = Field(True, description="Whether `/metrics` answers (404 otherwise).")
    request_log_enabled: bool = Field(True, description="Whether each request is logged as one JSON line.")
    request_log_path: Path = Field(HOME / "data/requests.jsonl", description="File of the request log.")
    request_log_max_bytes: int = Field(50_000_000, ge=1_000, description="Size at which the request log is rotated.")
    request_log_keep: int = Field(3, ge=1, le=100, description="Rotated request logs that are kept.")
    upstream_connect_timeout_sec: float = Field(5, gt=0, description="Longest wait for a connection to a backend.")
    upstream_first_byte_timeout_sec: float = Field(
        600, gt=0, description="Longest wait for the first byte of a backend's answer."
    )
    upstream_idle_timeout_sec: float = Field(300, gt=0, description="Longest silence within a backend's answer.")
    upstream_max_response_bytes: int = Field(
        64 * 1024 * 1024, ge=1024, description="Largest non-streamed answer that is taken from a backend."
    )
    backend_verify_tls: bool = Field(True, description="Whether certificates of https backends are verified.")
    backend_ca_bundle: Path | None = Field(None, description="CA certificates (PEM) for https backends.")
    backend_client_cert: str = Field(
        "", description="Client certificate for https backends: a PEM file, or certificate and key, comma-separated."
    )
    health_check_interval_sec: float = Field(30, gt=0, description="Pause between probes of a ready backend.")
    health_check_timeout_sec: float = Field(5, gt=0, description="Longest wait for the answer to a probe.")

    @field_validator(
        "gateway_tls_cert_path",
        "gateway_tls_key_path",
        "gateway_token_policies_path",
        "backend_ca_bundle",
        mode="before",
    )
    @classmethod
    def _may_be_empty(cls, value: object) -> object:
        return value or None  # as the earlier gateway's env files leave what they do not use

    @field_validator("ip_allowlist", "trust_proxy_cidrs", mode="before")
    @classmethod
    def _split_networks(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(ipaddress.ip_network(part.strip(), strict=False) for part in value.split(",") if part.strip())

    def variable(self, name: str, environment: Mapping[str, str]) -> str:
        """What `${name}` stands for in a file: by the environment, the env file or a setting; "" for nothing."""
        value = environment.get(name) or self._env_file_lines.get(name)
        if not value and name.lower() in type(self).model_fields:
            value = getattr(self, name.lower())
        return value if isinstance(value, str) else ""

    def tokens(self) -> tuple[str, ...]:
        """The accepted tokens.

        Raises:
            Refusal: there is none, or one that is short or a known placeholder. The message shows no token.
        """
        several = [part.strip() for part in self.gateway_bearer_tokens.get_secret_value().split(",") if part.strip()]
        name = "GATEWAY_BEARER_TOKENS" if several else "GATEWAY_BEARER_TOKEN"
        tokens = several or [self.gateway_bearer_token.get_secret_value().strip()]
        for token in tokens:
            if not token:
                raise Refusal(f"{name} is not set; make a token with: {MAKE_ONE}")
            if len(token) < TOKEN_MIN_CHARS or token.lower() in PLACEHOLDERS:
                short = f"{len(token)} characters long, at least {TOKEN_MIN_CHARS} are needed"
                why = "a known placeholder" if len(token) >= TOKEN_MIN_CHARS else short
                raise Refusal(f"{name} is {why}; make a token with: {MAKE_ONE}")
            if not token.isascii() or any(char.isspace() or not char.isprintable() for char in token):
                raise Refusal(f"{name} may hold only printable ASCII without spaces; make one with: {MAKE_ONE}")
        return tuple(tokens)


def load_settings(env_file: Path | None = None, **overrides: object) -> Settings:
    """Reads the settings; `overrides` (field name to value, None = not given) beat environment and file.

    Raises:
        Refusal: a value is not of its type or range, or the env file cannot be read; one line per problem.
    """
    if env_file is not None:
        try:
            env_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise Refusal(f"env file {env_file} cannot be read ({_reason(error)}); check its path and mode") from None
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        settings = Settings(_env_file=env_file, _env_file_encoding="utf-8", **given)  # type: ignore[call-arg, arg-type]  # pydantic-settings' own arguments
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, e['loc'])).upper()}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors()
        ]
        raise Refusal(*problems) from None
    if env_file is not None:
        source = DotEnvSettingsSource(Settings, env_file=env_file, env_file_encoding="utf-8", case_sensitive=True)
        settings._env_file_lines = source.env_vars
    return settings


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "not UTF-8"
