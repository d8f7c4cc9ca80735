"""The settings that name backends, and those of talking to them."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from gateway.config.settings import HOME, OptionalPath, Section


class BackendSettings(Section, heading="Backends, aliases, routing"):
    gateway_backends_path: Path = Field(HOME / "app/backends.yaml", description="The backends, rendered by Ansible.")
    ollama_base_url: str = Field(
        "", description="An Ollama server; makes a backend of class `ollama` when there is none."
    )
    mlx_base_url: str = Field("", description="An MLX server; a backend of class `mlx` where there is none.")


class UpstreamSettings(Section, heading="Talking to backends"):
    upstream_connect_timeout_sec: float = Field(5, gt=0, description="Longest wait for a connection to a backend.")
    upstream_first_byte_timeout_sec: float = Field(
        600, gt=0, description="Longest wait for the first byte of a backend's answer."
    )
    upstream_idle_timeout_sec: float = Field(300, gt=0, description="Longest silence within a backend's answer.")
    upstream_max_response_bytes: int = Field(
        64 * 1024 * 1024, ge=1024, description="Largest non-streamed answer that is taken from a backend."
    )
    backend_verify_tls: bool = Field(True, description="Whether certificates of https backends are verified.")
    backend_ca_bundle: OptionalPath = Field(None, description="CA certificates (PEM) for https backends.")
    backend_client_cert: str = Field(
        "", description="Client certificate for https backends: a PEM file, or certificate and key, comma-separated."
    )
    health_check_interval_sec: float = Field(30, gt=0, description="Pause between probes of a ready backend.")
    health_check_timeout_sec: float = Field(5, gt=0, description="Longest wait for the answer to a probe.")
