"""The settings of the process itself: its listener, and its database."""

from __future__ import annotations

from pathlib import Path

from gateway.config.settings import HOME, OptionalPath, Section, setting


class ListenerSettings(Section, heading="Listener and process"):
    gateway_host: str = setting("127.0.0.1", "Address of the API listener.")
    gateway_port: int = setting(8800, "Port of the API listener.", ge=1, le=65535)
    gateway_tls_cert_path: OptionalPath = setting(None, "Certificate chain (PEM) of the API listener.")
    gateway_tls_key_path: OptionalPath = setting(None, "Private key (PEM) of the API listener.")
    gateway_shutdown_timeout_sec: float = setting(60, "How long a stop waits for running answers and streams.", ge=0)
    gateway_log_level: str = setting(
        "INFO", "Level of the process log on stderr.", pattern="(?i)^(debug|info|warning|error)$"
    )


class StorageSettings(Section, heading="What is stored"):
    gateway_db_path: Path = setting(
        HOME / "data/gateway.sqlite", "Database of stored responses, music jobs, and usage of tokens."
    )
