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
        path: str = exchange.scope["path"]
        # The template of the route that answered: paths from outside make no series of their own.
        label = path if path in self._hot_paths else getattr(exchange.scope.get("route"), "path", "other")
        self._metrics.request(label, exchange.status, duration_ms)
        if exchange.abort_reason is not None:
            self._metrics.aborted_stream(exchange.abort_reason)
        first_byte_ms = None
        if exchange.first_byte_at:
            first_byte_ms = (exchange.first_byte_at - exchange.started) * 1000
            self._metrics.first_byte(label, first_byte_ms)
        if self._log is not None:
            self._log.write(_line(exchange, path, duration_ms, first_byte_ms))


def _line(exchange: Exchange, path: str, duration_ms: float, first_byte_ms: float | None) -> bytes:
    """One JSON line; its keys are written here in the order of the alphabet, as the contract has them."""
    entry: dict[str, Any]
    if exchange.route is None:
        entry = {
            "abort_reason": exchange.abort_reason,
            "duration_ms": round(duration_ms, 3),
            "method": exchange.scope["method"],
            "path": path[:LOGGED_CHARS],
        }
    else:
        decision = exchange.route.decision
        entry = {
            "abort_reason": exchange.abort_reason,
            "backend": exchange.slots.backend.name if exchange.slots is not None else None,
            "backend_class": decision.backend_class,
            "bytes_out": exchange.bytes_out,
            "chunks_out": exchange.chunks_out,
            "duration_ms": round(duration_ms, 3),
            "has_tools": exchange.has_tools,
            "method": exchange.scope["method"],
            "op": exchange.op,
            "path": path,
        }
    entry["request_id"] = exchange.request_id
    if exchange.route is not None:
        entry["router_reason"] = exchange.route.decision.reason
    entry["status"] = exchange.status
    entry["stream"] = exchange.streamed
    entry["token"] = exchange.caller
    entry["ts"] = round(time(), 3)
    if exchange.streamed:
        entry["ttft_ms"] = None if first_byte_ms is None else round(first_byte_ms, 3)
    if exchange.route is not None:
        entry["upstream_model"] = exchange.route.decision.model
        entry["upstream_ms"] = round(exchange.upstream_ms, 3)
    return orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE)
