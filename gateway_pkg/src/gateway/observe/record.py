"""What is kept of each request: its counts in the metrics, its line in the request log, its spans."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from time import perf_counter, time
from typing import TYPE_CHECKING, Any

import orjson

from gateway.access.tokens import Caller
from gateway.backends.registry import Route
from gateway.backends.usage import Usage
from gateway.observe.linelog import LineLog
from gateway.observe.metrics import Metrics, Series, Tokens
from gateway.web.exchange import Exchange

if TYPE_CHECKING:
    from gateway.observe.tracing import Tracer  # imported only where traces are on

LOGGED_CHARS = 20_000
CHARS_PER_TOKEN = 4
ROWS_MAX = 1_000
# Whose work is counted in tokens also where the backend did not count it.
ESTIMATED = frozenset({"chat", "completions", "embeddings", "rerank"})
WITH_TEXT_OUT = frozenset({"chat", "completions"})


# A route's log fields, status, caller, backend, whether the answer was streamed, whether the request had tools.
_Key = tuple[bytes, int, Caller | None, str, bool, bool]


@dataclass(slots=True)
class _Row:
    """What the requests of one key share: where they are counted, how their log lines begin."""

    series: Series
    caller: Tokens | None
    line: bytes
    is_estimable: bool
    model: Tokens | None = None  # not before the first answer whose tokens are known


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
        # A route's log fields tell it from all others, and their hash is made once.
        self._rows: dict[_Key, _Row] = {}

    def record(self, exchange: Exchange) -> None:
        duration_ms = (perf_counter() - exchange.started) * 1000
        if exchange.abort_reason is not None:
            self._metrics.aborted(exchange.abort_reason)
        route = exchange.route
        if route is None:
            line = self._record_page(exchange, duration_ms)
        else:
            slots = exchange.slots
            backend = slots.backend.name if slots is not None else ""
            key = route.log_fields, exchange.status, exchange.caller, backend, exchange.streamed, exchange.has_tools
            row = self._rows.get(key)
            if row is None:
                row = self._row(exchange, route, key)
            self._record_work(exchange, route, row, duration_ms)
            line = row.line
        if self._log is not None:
            self._log.write(_line(exchange, line, duration_ms))
        if self._tracer is not None:
            self._tracer.record(exchange, self._label(exchange))

    def _record_page(self, exchange: Exchange, duration_ms: float) -> bytes:
        """A request that no backend worked for."""
        self._metrics.series(self._label(exchange), exchange.status, "").duration.observe(duration_ms)
        if exchange.caller is not None:
            self._metrics.caller(exchange.caller.name).requests += 1
        scope = exchange.scope
        return _beginning(exchange, {"method": scope["method"], "path": scope["path"][:LOGGED_CHARS]})

    def _record_work(self, exchange: Exchange, route: Route, row: _Row, duration_ms: float) -> None:
        row.series.duration.observe(duration_ms)
        if exchange.upstream_ms:
            row.series.upstream.observe(exchange.upstream_ms)
        if exchange.first_byte_at:
            row.series.first_token.observe(exchange.first_byte_ms)
        if exchange.queued_ms:
            self._metrics.queued(route.decision.backend_class, exchange.queued_ms)
        if exchange.retried:
            self._metrics.retried(route.decision.backend_class)
        spent = row.caller
        if spent is not None:
            spent.requests += 1
        usage = exchange.usage
        if usage is None:
            if not row.is_estimable:
                return
            usage = estimate(exchange, route.capability)
        model = row.model
        if model is None:
            model = self._metrics.model(route.decision.backend_class, route.decision.model)
            if not model.is_other:  # which a model is only until its backend lists it
                row.model = model
        model.add(usage)
        if spent is not None and exchange.caller is not None:
            spent.add(usage)
            exchange.caller.spend(usage.input_tokens + usage.output_tokens)

    def _label(self, exchange: Exchange) -> str:
        path: str = exchange.scope["path"]
        # Else the template of the page that answered: paths from outside make no series of their own.
        return path if path in self._paths else getattr(exchange.scope.get("route"), "path", "other")

    def _row(self, exchange: Exchange, route: Route, key: _Key) -> _Row:
        caller = exchange.caller
        fields = orjson.loads(b"{%b}" % route.log_fields)
        if exchange.slots is not None:
            fields["backend"] = exchange.slots.backend.name
        fields["has_tools"] = exchange.has_tools
        row = _Row(
            self._metrics.series(self._label(exchange), exchange.status, route.decision.backend_class),
            self._metrics.caller(caller.name) if caller is not None else None,
            _beginning(exchange, fields),
            is_estimable=exchange.status == 200 and route.capability in ESTIMATED,
        )
        if len(self._rows) >= ROWS_MAX:
            self._rows.clear()
        self._rows[key] = row
        return row


def estimate(exchange: Exchange, capability: str) -> Usage:
    """Tokens in and out where the backend told none, or its client left before it could.

    Characters by 4; but a stream's bytes are mostly not text, and one of its events is about one token.
    """
    output = exchange.chunks_out if exchange.streamed else exchange.bytes_out // CHARS_PER_TOKEN
    return Usage(exchange.bytes_in // CHARS_PER_TOKEN, output if capability in WITH_TEXT_OUT else 0, True)


def _beginning(exchange: Exchange, fields: dict[str, Any]) -> bytes:
    """A log line up to what is each request's own."""
    fields["token"] = exchange.caller.name if exchange.caller is not None else ""
    fields["status"] = exchange.status
    fields["stream"] = exchange.streamed
    return orjson.dumps(fields)[:-1] + b","


# x * 1000 // 1 / 1000 cuts to three decimals, for a fraction of what `round` costs.


def _line(exchange: Exchange, beginning: bytes, duration_ms: float) -> bytes:
    entry: dict[str, Any] = {
        "ts": time(),
        "request_id": exchange.request_id,
        "duration_ms": duration_ms * 1000 // 1 / 1000,
    }
    if exchange.streamed:
        entry["chunks_out"] = exchange.chunks_out
        entry["bytes_out"] = exchange.bytes_out
        entry["ttft_ms"] = exchange.first_byte_ms * 1000 // 1 / 1000 if exchange.first_byte_at else None
    if exchange.streamed or exchange.abort_reason is not None:
        entry["abort_reason"] = exchange.abort_reason
    if exchange.route is not None:
        usage = exchange.usage
        if usage is not None and not usage.is_estimated:
            entry["input_tokens"] = usage.input_tokens
            entry["output_tokens"] = usage.output_tokens
        if exchange.queued_ms:
            entry["queued_ms"] = exchange.queued_ms * 1000 // 1 / 1000
        if exchange.retried:
            entry["retried"] = True
        entry["upstream_ms"] = exchange.upstream_ms * 1000 // 1 / 1000
    return beginning + orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE)[1:]
