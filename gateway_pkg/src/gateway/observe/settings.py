"""The settings of traces, health, metrics and the request log."""

from __future__ import annotations

from pathlib import Path

from gateway.config.settings import HOME, Section, setting


class TraceSettings(Section, heading="Traces"):
    otel_exporter_otlp_endpoint: str = setting(
        "", "OTLP/HTTP collector of traces, such as `http://127.0.0.1:4318`; empty: no traces."
    )
    otel_traces_sampler_arg: float = setting(
        1.0, "Share of traced requests, among those without a client's sampling decision.", ge=0, le=1
    )
    otel_service_name: str = setting("ai-appliance-gateway", "The service's name in traces.")


class ObserveSettings(Section, heading="Health, metrics, request log"):
    observability_enabled: bool = setting(True, "Whether the listener for health and metrics is open.")
    observability_host: str = setting("127.0.0.1", "Address of that listener; it asks for no token.")
    observability_port: int = setting(8801, "Port of that listener.", ge=1, le=65535)
    metrics_enabled: bool = setting(True, "Whether `/metrics` answers (404 otherwise).")
    request_log_enabled: bool = setting(True, "Whether the request log has a JSON line for each request.")
    request_log_path: Path = setting(HOME / "data/requests.jsonl", "File of the request log.")
    request_log_max_bytes: int = setting(50_000_000, "Size at which the request log rotates.", ge=1_000)
    request_log_keep: int = setting(3, "Number of rotated request logs to keep.", ge=1, le=100)
