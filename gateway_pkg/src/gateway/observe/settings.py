"""The settings of traces, health, metrics and the request log."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from gateway.config.settings import HOME, Section


class TraceSettings(Section, heading="Traces"):
    otel_exporter_otlp_endpoint: str = Field(
        "", description="OTLP/HTTP collector of traces, such as `http://127.0.0.1:4318`; empty: no traces."
    )
    otel_traces_sampler_arg: float = Field(
        1.0, ge=0, le=1, description="Share of the requests that are traced where no caller decided before."
    )
    otel_service_name: str = Field("ai-appliance-gateway", description="The service's name in traces.")


class ObserveSettings(Section, heading="Health, metrics, request log"):
    observability_enabled: bool = Field(True, description="Whether the listener for health and metrics is opened.")
    observability_host: str = Field("127.0.0.1", description="Address of that listener; it asks for no token.")
    observability_port: int = Field(8801, ge=1, le=65535, description="Port of that listener.")
    metrics_enabled: bool = Field(True, description="Whether `/metrics` answers (404 otherwise).")
    request_log_enabled: bool = Field(True, description="Whether each request is logged as one JSON line.")
    request_log_path: Path = Field(HOME / "data/requests.jsonl", description="File of the request log.")
    request_log_max_bytes: int = Field(50_000_000, ge=1_000, description="Size at which the request log is rotated.")
    request_log_keep: int = Field(3, ge=1, le=100, description="Rotated request logs that are kept.")
