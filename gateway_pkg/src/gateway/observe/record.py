"""What is kept of each request: its counts in the metrics, its line in the request log."""

from __future__ import annotations

from collections.abc import Container
from time import perf_counter, time
from typing import Any

import orjson

from gateway.http.exchange import Exchange
from gateway.observe.linelog import LineLog
from gateway.observe.metrics import Metrics

LOGGED_CHARS = 20_000


class Recorder:
    """Records a request once, when its last byte is out or its client gone."""

    def __init__(self, hot_paths: Container[str], metrics: Metrics, log: LineLog | None) -> None:
        self._hot_paths = hot_paths
        self._metrics = metrics
        self._log = log

    def __call__(self, exchange: Exchange) -> None:
        duration_ms = (perf_counter() - exchange.started) * 1000
        label = exchange.scope["path"]
        if label not in self._hot_paths:
            # The template of the route that answered: paths from outside make no series of their own.
            label = getattr(exchange.scope.get("route"), "path", "other")
        self._metrics.request(label, exchange.status, duration_ms)
        if exchange.abort_reason is not None:
            self._metrics.aborted_stream(exchange.abort_reason)
        if exchange.first_byte_at:
            self._metrics.first_byte(label, exchange.first_byte_ms)
        if self._log is not None:
            self._log.write(_line(exchange, duration_ms))


# int(x * 1000) / 1000 cuts to three decimals, for a fraction of what `round` costs.


def _line(exchange: Exchange, duration_ms: float) -> bytes:
    entry: dict[str, Any] = {
        "ts": time(),
        "request_id": exchange.request_id,
        "token": exchange.caller,
        "status": exchange.status,
        "stream": exchange.streamed,
        "duration_ms": int(duration_ms * 1000) / 1000,
    }
    if exchange.streamed:
        entry["chunks_out"] = exchange.chunks_out
        entry["bytes_out"] = exchange.bytes_out
        entry["ttft_ms"] = int(exchange.first_byte_ms * 1000) / 1000 if exchange.first_byte_at else None
    if exchange.streamed or exchange.abort_reason is not None:
        entry["abort_reason"] = exchange.abort_reason
    route = exchange.route
    if route is None:
        entry["method"] = exchange.scope["method"]
        entry["path"] = exchange.scope["path"][:LOGGED_CHARS]
        return orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE)
    if exchange.slots is not None:
        entry["backend"] = exchange.slots.backend.name
    entry["has_tools"] = exchange.has_tools
    entry["upstream_ms"] = int(exchange.upstream_ms * 1000) / 1000
    return b"".join((b"{", route.log_fields, b",", orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE)[1:]))
