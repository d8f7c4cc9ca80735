"""What is kept of each request: its counts in the metrics, its line in the request log, its spans."""

from __future__ import annotations

from collections.abc import Container
from time import perf_counter, time
from typing import TYPE_CHECKING, Any

import orjson

from gateway.http.exchange import Exchange
from gateway.observe.linelog import LineLog
from gateway.observe.metrics import Metrics
from gateway.routing.registry import Route

if TYPE_CHECKING:
    from gateway.observe.tracing import Tracer  # imported only where traces are on

LOGGED_CHARS = 20_000
CHARS_PER_TOKEN = 4
# Whose work is counted in tokens also where the backend did not count it.
ESTIMATED = frozenset({"chat", "completions", "embeddings", "rerank"})
WITH_TEXT_OUT = frozenset({"chat", "completions"})


class Recorder:
    """Records a request once, when its last byte is out or its client gone."""

    def __init__(
        self, paths: Container[str], metrics: Metrics, log: LineLog | None, tracer: Tracer | None = None
    ) -> None:
        """`paths` are those of the endpoints: they name their requests as they are."""
        self._paths = paths
        self._metrics = metrics
        self._log = log
        self._tracer = tracer

    def __call__(self, exchange: Exchange) -> None:
        duration_ms = (perf_counter() - exchange.started) * 1000
        label = exchange.scope["path"]
        if label not in self._paths:
            # The template of the route that answered: paths from outside make no series of their own.
            label = getattr(exchange.scope.get("route"), "path", "other")
        metrics, route, caller = self._metrics, exchange.route, exchange.caller
        series = metrics.series(label, exchange.status, route.decision.backend_class if route is not None else "")
        series.duration.observe(duration_ms)
        if caller is not None:
            metrics.caller(caller.name).requests += 1
        if exchange.first_byte_at:
            series.first_token.observe(exchange.first_byte_ms)
        if exchange.abort_reason is not None:
            metrics.aborted(exchange.abort_reason)
        if route is not None:
            if exchange.upstream_ms:
                series.upstream.observe(exchange.upstream_ms)
            self._count_work(exchange, route)
        if self._log is not None:
            self._log.write(_line(exchange, duration_ms))
        if self._tracer is not None:
            self._tracer.record(exchange, label)

    def _count_work(self, exchange: Exchange, route: Route) -> None:
        metrics, decision, usage = self._metrics, route.decision, exchange.usage
        if exchange.queued_ms:
            metrics.queued(decision.backend_class, exchange.queued_ms)
        if exchange.retried:
            metrics.retried(decision.backend_class)
        if usage is not None:
            input_tokens, output_tokens, is_estimated = usage.input_tokens, usage.output_tokens, False
        elif exchange.status == 200 and route.capability in ESTIMATED:
            input_tokens, output_tokens = estimate(exchange, route.capability)
            is_estimated = True
        else:
            return
        metrics.model(decision.backend_class, decision.model).add(input_tokens, output_tokens, is_estimated)
        if exchange.caller is not None:
            metrics.caller(exchange.caller.name).add(input_tokens, output_tokens, is_estimated)
            exchange.caller.spend(input_tokens + output_tokens)


def estimate(exchange: Exchange, capability: str) -> tuple[int, int]:
    """Tokens in and out where the backend told none, or its client left before it could.

    Characters by 4; but a stream's bytes are mostly not text, and one of its events is about one token.
    """
    if capability not in WITH_TEXT_OUT:
        return exchange.bytes_in // CHARS_PER_TOKEN, 0
    output = exchange.chunks_out if exchange.streamed else exchange.bytes_out // CHARS_PER_TOKEN
    return exchange.bytes_in // CHARS_PER_TOKEN, output


# int(x * 1000) / 1000 cuts to three decimals, for a fraction of what `round` costs.


def _line(exchange: Exchange, duration_ms: float) -> bytes:
    entry: dict[str, Any] = {
        "ts": time(),
        "request_id": exchange.request_id,
        "token": exchange.caller.name if exchange.caller is not None else "",
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
    if exchange.usage is not None:
        entry["input_tokens"] = exchange.usage.input_tokens
        entry["output_tokens"] = exchange.usage.output_tokens
    if exchange.queued_ms:
        entry["queued_ms"] = int(exchange.queued_ms * 1000) / 1000
    if exchange.retried:
        entry["retried"] = True
    entry["has_tools"] = exchange.has_tools
    entry["upstream_ms"] = int(exchange.upstream_ms * 1000) / 1000
    return b"".join((b"{", route.log_fields, b",", orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE)[1:]))
