"""The settings that name backends, and those of talking to them."""

from __future__ import annotations

from pathlib import Path

from gateway.config.settings import HOME, OptionalPath, Section, setting


class BackendSettings(Section, heading="Backends, aliases, routing"):
    gateway_backends_path: Path = setting(HOME / "app/backends.yaml", "File of the backends; Ansible renders it.")
    ollama_base_url: str = setting(
        "", "URL of an Ollama server; makes a backend of class `ollama` unless one is configured."
    )
    mlx_base_url: str = setting("", "URL of an MLX server; makes a backend of class `mlx` unless one is configured.")


class UpstreamSettings(Section, heading="Talking to backends"):
    upstream_connect_timeout_sec: float = setting(5, "Longest wait for a connection to a backend.", gt=0)
    upstream_first_byte_timeout_sec: float = setting(
        600, "Longest wait for the first byte of a backend's answer.", gt=0
    )
    upstream_idle_timeout_sec: float = setting(300, "Longest silence within a backend's answer.", gt=0)
    upstream_max_response_bytes: int = setting(64 * 1024 * 1024, "Largest non-streamed answer of a backend.", ge=1024)
    backend_verify_tls: bool = setting(True, "Whether the gateway verifies certificates of https backends.")
    backend_ca_bundle: OptionalPath = setting(None, "CA certificates (PEM) for https backends.")
    backend_client_cert: str = setting(
        "", "Client certificate for https backends: a PEM file, or certificate and key, comma-separated."
    )
    health_check_interval_sec: float = setting(30, "Pause between probes of a ready backend.", gt=0)
    health_check_timeout_sec: float = setting(5, "Longest wait for the answer to a probe.", gt=0)
