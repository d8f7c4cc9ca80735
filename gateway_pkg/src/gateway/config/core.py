"""The settings of the process itself: its listener, and its database."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from gateway.config.settings import HOME, OptionalPath, Section


class ListenerSettings(Section, heading="Listener and process"):
    gateway_host: str = Field("127.0.0.1", description="Address of the API listener.")
    gateway_port: int = Field(8800, ge=1, le=65535, description="Port of the API listener.")
    gateway_tls_cert_path: OptionalPath = Field(None, description="Certificate chain (PEM) of the API listener.")
    gateway_tls_key_path: OptionalPath = Field(None, description="Private key (PEM) of the API listener.")
    gateway_shutdown_timeout_sec: float = Field(
        60, ge=0, description="How long a stop waits for answers and streams under way."
    )
    gateway_log_level: str = Field(
        "INFO", pattern="(?i)^(debug|info|warning|error)$", description="Level of the process log on stderr."
    )


class StorageSettings(Section, heading="What is stored"):
    gateway_db_path: Path = Field(
        HOME / "data/gateway.sqlite", description="Stored responses, music jobs, and what tokens have used."
    )
