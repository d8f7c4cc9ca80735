"""Counts of what the gateway does, and their Prometheus text.

The hot path adds to plain numbers; the library's families are made of them when somebody scrapes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.observe.linelog import LineLog
from gateway.routing.registry import Registry

# Milliseconds; the earlier system's tool buckets, extended to the minutes that a large model takes.
BOUNDS = (5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1e3, 2.5e3, 5e3, 1e4, 3e4, 6e4, 3e5)
CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
# Label values are routes and statuses, so series are few; this bounds them whatever happens.
SERIES_MAX = 1_000


class Histogram:
    """Observations in milliseconds, counted by `BOUNDS`."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS) + 1)
        self.sum = 0.0

    def observe(self, milliseconds: float) -> None:
        self.counts[bisect_left(BOUNDS, milliseconds)] += 1
        self.sum += milliseconds

    def cumulative(self) -> list[tuple[str, float]]:
        total, rows = 0, []
        for bound, count in zip((*map(str, BOUNDS), "+Inf"), self.counts, strict=True):
            total += count
            rows.append((bound, float(total)))
        return rows


class Metrics(Collector):
    """The gateway's own metrics."""

    def __init__(self, registry: Registry, request_log: LineLog | None) -> None:
        self._registry = registry
        self._requests: dict[tuple[str, int], Histogram] = {}
        self._first_byte: dict[str, Histogram] = {}
        self.aborted: dict[str, int] = {}
        self._request_log = request_log
        self._collectors = CollectorRegistry(auto_describe=False)
        self._collectors.register(self)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._collectors)

    def request(self, path: str, status: int, milliseconds: float) -> None:
        """Counts an answered request."""
        series = self._requests.get((path, status))
        if series is None:
            if len(self._requests) >= SERIES_MAX:
                path, status = "other", 0
            series = self._requests.setdefault((path, status), Histogram())
        series.observe(milliseconds)

    def first_byte(self, path: str, milliseconds: float) -> None:
        """Counts the time until a stream's first byte went out."""
        self._first_byte.setdefault(path, Histogram()).observe(milliseconds)

    def aborted_stream(self, reason: str) -> None:
        self.aborted[reason] = self.aborted.get(reason, 0) + 1

    def text(self) -> bytes:
        """Prometheus' text format, version 0.0.4."""
        return generate_latest(self._collectors)

    def collect(self) -> Iterator[Metric]:
        labels = ("path", "status")
        total = CounterMetricFamily("gateway_requests", "Requests answered.", labels=labels)
        duration = HistogramMetricFamily(
            "gateway_request_duration_ms", "Time from request to last byte.", labels=labels
        )
        for (path, status), series in self._requests.items():
            total.add_metric((path, str(status)), sum(series.counts))
            duration.add_metric((path, str(status)), series.cumulative(), series.sum)
        first_byte = HistogramMetricFamily(
            "gateway_time_to_first_byte_ms", "Time from request to a stream's first event.", labels=("path",)
        )
        for path, series in self._first_byte.items():
            first_byte.add_metric((path,), series.cumulative(), series.sum)
        aborted = CounterMetricFamily("gateway_streams_aborted", "Streams that did not end well.", labels=("reason",))
        for reason, count in self.aborted.items():
            aborted.add_metric((reason,), count)
        dropped = CounterMetricFamily("gateway_request_log_lines_dropped", "Lines the request log could not hold.")
        dropped.add_metric((), self._request_log.dropped if self._request_log is not None else 0)
        yield from (total, duration, first_byte, aborted, dropped)
        yield from self._backends()

    def _backends(self) -> Iterator[Metric]:
        ready = GaugeMetricFamily(
            "gateway_backend_ready", "1 where the last probe found it ready.", labels=("backend",)
        )
        inflight = GaugeMetricFamily(
            "gateway_backend_inflight", "Requests under way.", labels=("backend", "capability")
        )
        connections = GaugeMetricFamily("gateway_backend_connections", "Open connections.", labels=("backend",))
        for backend in self._registry.backends:
            ready.add_metric((backend.name,), float(backend.ready))
            connections.add_metric((backend.name,), float(backend.pool.open_connections))
            for capability, slots in backend.slots.items():
                inflight.add_metric((backend.name, capability), float(slots.inflight))
        yield from (ready, inflight, connections)
