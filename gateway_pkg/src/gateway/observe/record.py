"""What is kept of each request: its counts in the metrics, its line in the request log, its spans."""

from __future__ import annotations

from collections.abc import Container
from time import perf_counter, time
from typing import TYPE_CHECKING, Any

import orjson

from gateway.http.exchange import Exchange
from gateway.observe.linelog import LineLog
from gateway.observe.metrics import Metrics, Series, Tokens
from gateway.routing.registry import Route
from gateway.upstream.usage import Usage

if TYPE_CHECKING:
    from gateway.observe.tracing import Tracer  # imported only where traces are on

LOGGED_CHARS = 20_000
CHARS_PER_TOKEN = 4
ROWS_MAX = 1_000
# Whose work is counted in tokens also where the backend did not count it.
ESTIMATED = frozenset({"chat", "completions", "embeddings", "rerank"})
WITH_TEXT_OUT = frozenset({"chat", "completions"})


class _Row:
    """Where the requests of one route and status are counted; `tokens` is None until the first that is told."""

    __slots__ = ("is_estimable", "series", "tokens")

    def __init__(self, series: Series, *, is_estimable: bool) -> None:
        self.series = series
        self.tokens: Tokens | None = None
        self.is_estimable = is_estimable


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
        # By a route's log fields, which tell it from all others and whose hash is made once, and a status.
        self._rows: dict[tuple[bytes, int], _Row] = {}

    def __call__(self, exchange: Exchange) -> None:
        duration_ms = (perf_counter() - exchange.started) * 1000
        route, caller, metrics = exchange.route, exchange.caller, self._metrics
        spent = None
        if caller is not None:
            spent = metrics.callers.get(caller.name) or metrics.caller(caller.name)
            spent.requests += 1
        if route is None:
            metrics.series(self._label(exchange), exchange.status, "").duration.observe(duration_ms)
        else:
            row = self._rows.get((route.log_fields, exchange.status))
            if row is None:
                row = self._row(exchange, route)
            row.series.duration.observe(duration_ms)
            if exchange.upstream_ms:
                row.series.upstream.observe(exchange.upstream_ms)
            if exchange.first_byte_at:
                row.series.first_token.observe(exchange.first_byte_ms)
            if exchange.queued_ms:
                metrics.queued(route.decision.backend_class, exchange.queued_ms)
            if exchange.retried:
                metrics.retried(route.decision.backend_class)
            if exchange.usage is not None or row.is_estimable:
                self._count_tokens(exchange, route, row, spent)
        if exchange.abort_reason is not None:
            metrics.aborted(exchange.abort_reason)
        if self._log is not None:
            self._log.write(_line(exchange, duration_ms))
        if self._tracer is not None:
            self._tracer.record(exchange, self._label(exchange))

    def _label(self, exchange: Exchange) -> str:
        path: str = exchange.scope["path"]
        # Else the template of the page that answered: paths from outside make no series of their own.
        return path if path in self._paths else getattr(exchange.scope.get("route"), "path", "other")

    def _row(self, exchange: Exchange, route: Route) -> _Row:
        if len(self._rows) >= ROWS_MAX:
            self._rows.clear()
        series = self._metrics.series(self._label(exchange), exchange.status, route.decision.backend_class)
        row = _Row(series, is_estimable=exchange.status == 200 and route.capability in ESTIMATED)
        self._rows[route.log_fields, exchange.status] = row
        return row

    def _count_tokens(self, exchange: Exchange, route: Route, row: _Row, spent: Tokens | None) -> None:
        usage = exchange.usage or estimate(exchange, route.capability)
        tokens = row.tokens
        if tokens is None:
            tokens = row.tokens = self._metrics.model(route.decision.backend_class, route.decision.model)
        tokens.add(usage)
        if spent is not None and exchange.caller is not None:
            spent.add(usage)
            exchange.caller.spend(usage.input_tokens + usage.output_tokens)


def estimate(exchange: Exchange, capability: str) -> Usage:
    """Tokens in and out where the backend told none, or its client left before it could.

    Characters by 4; but a stream's bytes are mostly not text, and one of its events is about one token.
    """
    output = exchange.chunks_out if exchange.streamed else exchange.bytes_out // CHARS_PER_TOKEN
    return Usage(exchange.bytes_in // CHARS_PER_TOKEN, output if capability in WITH_TEXT_OUT else 0, True)


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
    if exchange.usage is not None and not exchange.usage.is_estimated:
        entry["input_tokens"] = exchange.usage.input_tokens
        entry["output_tokens"] = exchange.usage.output_tokens
    if exchange.queued_ms:
        entry["queued_ms"] = int(exchange.queued_ms * 1000) / 1000
    if exchange.retried:
        entry["retried"] = True
    entry["has_tools"] = exchange.has_tools
    entry["upstream_ms"] = int(exchange.upstream_ms * 1000) / 1000
    return b"".join((b"{", route.log_fields, b",", orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE)[1:]))
