"""Counts of what the gateway does, and their Prometheus text.

The hot path adds to plain numbers; the library's families are made of them when somebody scrapes.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import accumulate
from typing import TYPE_CHECKING, Literal, NamedTuple

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway import __version__, background
from gateway.backends.registry import Registry
from gateway.backends.usage import Usage
from gateway.observe.linelog import LineLog
from gateway.observe.logs import Dropped
from gateway.routing.policy import Names
from gateway.web.exchange import CLIENT_GONE

if TYPE_CHECKING:
    from gateway.observe.tracing import Tracer

# Milliseconds; the earlier system's tool buckets, extended to the minutes that a large model takes.
BOUNDS = (5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1e3, 2.5e3, 5e3, 1e4, 3e4, 6e4, 3e5)
LAG_BOUNDS = (1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 1e3, 5e3)
CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
# Label values are routes, statuses, classes, models that answered and callers, so series are few; these bound them
# whatever clients and backends send. What is beyond is counted as OTHER.
OTHER = "other"
SERIES_MAX = 500
CALLERS_MAX = 1_000
LABEL_MAX_CHARS = 128
# Models of a class that have series of their own: what an alias or a setting means has places that no other name can
# take, and names that a backend lists have some that those a client invents cannot.
MODELS_MAX = {"aliased": 100, "listed": 100, "unlisted": 20}
STATUSES = frozenset(status.value for status in HTTPStatus) | {CLIENT_GONE}
# Why an answer ends early: the gateway's own codes. A backend's code can be any text.
ABORT_REASONS = frozenset({
    "client_disconnected", "shutdown", "error", "internal_error", "upstream_error", "upstream_closed",
    "upstream_protocol_error", "upstream_timeout", "backend_not_ready", "backend_overloaded",
    "context_length_exceeded", "rate_limit_exceeded", "server_error",
})  # fmt: skip


class Family(NamedTuple):
    """A metric as it is declared: `name` without the suffixes that Prometheus adds."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()


Samples = Iterable[tuple[tuple[str, ...], float]]  # the labels' values, and the number
_BY_TOKENS = ("direction", "estimated")

REQUESTS = Family("gateway_requests", "counter", "Requests answered.", ("path", "status"))
DURATION = Family(
    "gateway_request_duration_ms", "histogram", "Time from a request to its last byte.", ("path", "status")
)
UPSTREAM = Family("gateway_upstream_duration_ms", "histogram", "Time that the backend took.", ("path", "backend_class"))
FIRST_TOKEN = Family(
    "gateway_time_to_first_token_ms",
    "histogram",
    "Time from a request to the first event of its stream.",
    ("path", "backend_class"),
)
ABORTED = Family("gateway_streams_aborted", "counter", "Failed or aborted answers.", ("reason",))
TOKENS = Family(
    "gateway_tokens",
    "counter",
    "Tokens in and out; estimated if the backend reports none: characters by 4, events of a stream.",
    ("backend_class", "model", *_BY_TOKENS),
)
CALLER_REQUESTS = Family("gateway_caller_requests", "counter", "Requests of a bearer token, by its name.", ("caller",))
CALLER_TOKENS = Family(
    "gateway_caller_tokens", "counter", "Tokens of a bearer token, by its name.", ("caller", *_BY_TOKENS)
)
QUEUE_WAITING = Family(
    "gateway_queue_waiting", "gauge", "Requests in a backend class's queue.", ("backend_class", "capability")
)
QUEUED = Family(
    "gateway_queue_wait_ms", "histogram", "Time that requests waited in a backend class's queue.", ("backend_class",)
)
RETRIES = Family("gateway_retries", "counter", "Requests that failed over to another host.", ("backend_class",))
FAILURES = Family(
    "gateway_upstream_failures", "counter", "Requests that a backend failed or refused.", ("backend", "kind")
)
READY = Family("gateway_backend_ready", "gauge", "1 where the last probe found it ready.", ("backend",))
HEALTHY = Family("gateway_backend_healthy", "gauge", "1 where the last probe found it alive.", ("backend",))
INFLIGHT = Family("gateway_backend_inflight", "gauge", "Running requests.", ("backend", "capability"))
LIMIT = Family(
    "gateway_backend_limit", "gauge", "Most running requests; absent without a limit.", ("backend", "capability")
)
CONNECTIONS = Family("gateway_backend_connections", "gauge", "Open connections.", ("backend",))
WAITING = Family("gateway_backend_connections_waiting", "gauge", "Requests that wait for a connection.", ("backend",))
LOOP_LAG = Family("gateway_event_loop_lag_ms", "histogram", "How late the event loop wakes its sampler.")
DROPPED = Family("gateway_request_log_lines_dropped", "counter", "Lines the request log could not hold.")
PROCESS_DROPPED = Family("gateway_process_log_lines_dropped", "counter", "Lines the process log could not hold.")
BACKGROUND = Family(
    "gateway_background_failures", "counter", "Failures of background tasks, which run again.", ("task",)
)
SPANS = Family("gateway_trace_spans", "counter", "Spans, by what became of them.", ("state",))
BUILD = Family("gateway_build_info", "gauge", "Always 1; its label has the version.", ("version",))
FAMILIES = tuple(family for family in globals().values() if isinstance(family, Family))


class Histogram:
    """Observations in milliseconds, counted by `bounds`."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...] = BOUNDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, milliseconds: float) -> None:
        self.counts[bisect_left(self.bounds, milliseconds)] += 1
        self.sum += milliseconds

    def add(self, other: Histogram) -> None:
        """Adds the counts of another histogram with the same bounds."""
        self.counts = [mine + more for mine, more in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum

    @property
    def count(self) -> int:
        return sum(self.counts)

    def cumulative(self) -> list[tuple[str, float]]:
        return list(zip((*map(str, self.bounds), "+Inf"), map(float, accumulate(self.counts)), strict=True))


@dataclass(slots=True)
class Series:
    """The requests of one path, status and backend class ("" where none was decided)."""

    duration: Histogram = field(default_factory=Histogram)
    upstream: Histogram = field(default_factory=Histogram)
    first_token: Histogram = field(default_factory=Histogram)


class Tokens:
    """Requests of one model or caller, and their tokens; `is_other` for those without a series of their own."""

    __slots__ = ("estimated_input", "estimated_output", "input", "is_other", "output", "requests")

    def __init__(self, *, is_other: bool = False) -> None:
        self.is_other = is_other
        self.requests = self.input = self.output = self.estimated_input = self.estimated_output = 0

    def add(self, usage: Usage) -> None:
        if usage.is_estimated:
            self.estimated_input += usage.input_tokens
            self.estimated_output += usage.output_tokens
        else:
            self.input += usage.input_tokens
            self.output += usage.output_tokens

    def samples(self) -> Iterator[tuple[str, str, int]]:
        """(direction, estimated, count), without those that are 0."""
        rows = (
            ("input", "false", self.input),
            ("output", "false", self.output),
            ("input", "true", self.estimated_input),
            ("output", "true", self.estimated_output),
        )
        return (row for row in rows if row[2])


class Metrics(Collector):
    """The gateway's own metrics."""

    def __init__(
        self,
        registry: Registry,
        request_log: LineLog | None,
        tracer: Tracer | None = None,
        of_features: Sequence[Callable[[], Iterable[tuple[Family, Samples]]]] = (),
    ) -> None:
        self._registry = registry
        self._of_features = of_features
        self._request_log = request_log
        self._tracer = tracer
        self._series: dict[tuple[str, int, str], Series] = {}
        self._models: dict[tuple[str, ...], Tokens] = {}
        self._taken: Counter[tuple[str, str]] = Counter()  # of MODELS_MAX, by its key and class
        self._kinds: dict[tuple[str, str], str] = {}  # of `_names`: MODELS_MAX's key by class and model
        self._names: Names | None = None
        self._callers: dict[str, Tokens] = {}
        self._queued: dict[str, Histogram] = {}
        self._retries: Counter[str] = Counter()
        self._aborted: Counter[str] = Counter()
        self.loop_lag = Histogram(LAG_BOUNDS)
        self._collectors = CollectorRegistry(auto_describe=False)
        self._collectors.register(self)
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._collectors)

    def series(self, path: str, status: int, backend_class: str) -> Series:
        """Where requests of this kind are counted."""
        series = self._series.get((path, status, backend_class))
        if series is None:
            if status not in STATUSES:
                status = status // 100 * 100
            if len(self._series) >= SERIES_MAX and (path, status, backend_class) not in self._series:
                path, status, backend_class = OTHER, 0, ""
            series = self._series.setdefault((path, status, backend_class), Series())
        return series

    def model(self, backend_class: str, model: str) -> Tokens:
        """Where a model's tokens are counted; to be asked only for models that answered, not for any name sent.

        A name that the class's backends do not list is OTHER until they do.
        """
        tokens = self._models.get((backend_class, model))
        if tokens is None:
            kind = self._kind(backend_class, model)
            if len(model) > LABEL_MAX_CHARS or self._taken[kind, backend_class] >= MODELS_MAX.get(kind, 0):
                return self._models.setdefault((backend_class, OTHER), Tokens(is_other=True))
            self._taken[kind, backend_class] += 1
            tokens = self._models[backend_class, model] = Tokens()
        return tokens

    def _kind(self, backend_class: str, model: str) -> str:
        """MODELS_MAX's key for a model; "" where its class lists models, and not this one."""
        names = self._registry.names
        if names is not self._names:
            self._names = names
            self._kinds = {(name, model): "listed" for name, models in names.served.items() for model in models}
            meant = {(alias.backend, alias.model) for alias in names.aliases.values()}
            meant |= {*names.strong.items(), *names.fast.items(), names.embedder}
            self._kinds |= dict.fromkeys(meant, "aliased")
        for name in (model, f"{model}:latest"):  # Ollama lists each model with its tag
            if kind := self._kinds.get((backend_class, name)):
                return kind
        return "" if names.served.get(backend_class) else "unlisted"

    def caller(self, name: str) -> Tokens:
        """Where a bearer token's requests are counted."""
        tokens = self._callers.get(name)
        if tokens is None:
            tokens = self._callers.setdefault(name if len(self._callers) < CALLERS_MAX else OTHER, Tokens())
        return tokens

    def queued(self, backend_class: str, milliseconds: float) -> None:
        """Counts the wait of a request for its slot."""
        self._queued.setdefault(backend_class, Histogram()).observe(milliseconds)

    def retried(self, backend_class: str) -> None:
        self._retries[backend_class] += 1

    def aborted(self, reason: str) -> None:
        """Counts an answer that a disconnect or an error in mid-stream ended."""
        self._aborted[reason if reason in ABORT_REASONS else OTHER] += 1

    def text(self) -> bytes:
        """Prometheus' text format, version 0.0.4."""
        return generate_latest(self._collectors)

    def collect(self) -> Iterator[Metric]:
        yield from self._requests()
        yield _numbers(TOKENS, _tokens(self._models))
        yield _numbers(CALLER_REQUESTS, (((name,), tokens.requests) for name, tokens in self._callers.items()))
        yield _numbers(CALLER_TOKENS, _tokens({(name,): tokens for name, tokens in self._callers.items()}))
        queues = {
            (backend.record.backend_class, name): slots.queue
            for backend in self._registry.backends
            for name, slots in backend.slots.items()
            if slots.queue is not None
        }
        yield _numbers(QUEUE_WAITING, ((labels, len(queue)) for labels, queue in queues.items()))
        yield _histograms(QUEUED, {(name,): waits for name, waits in self._queued.items()})
        yield _numbers(RETRIES, (((name,), count) for name, count in self._retries.items()))
        yield _numbers(ABORTED, (((reason,), count) for reason, count in self._aborted.items()))
        yield from self._backends()
        yield _histograms(LOOP_LAG, {(): self.loop_lag})
        yield _numbers(DROPPED, [((), self._request_log.dropped if self._request_log is not None else 0)])
        yield _numbers(PROCESS_DROPPED, [((), Dropped.lines)])
        yield _numbers(BACKGROUND, (((task,), count) for task, count in tuple(background.failures.items())))
        if self._tracer is not None:
            yield _numbers(SPANS, (((state,), count) for state, count in self._tracer.counts().items()))
        for samples in self._of_features:
            yield from (_numbers(family, values) for family, values in samples())
        yield _numbers(BUILD, [((__version__,), 1)])

    def _requests(self) -> Iterator[Metric]:
        durations: dict[tuple[str, ...], Histogram] = {}
        upstream: dict[tuple[str, ...], Histogram] = {}
        first_token: dict[tuple[str, ...], Histogram] = {}
        for (path, status, backend_class), series in self._series.items():
            durations.setdefault((path, str(status)), Histogram()).add(series.duration)
            if backend_class:
                upstream.setdefault((path, backend_class), Histogram()).add(series.upstream)
                first_token.setdefault((path, backend_class), Histogram()).add(series.first_token)
        yield _numbers(REQUESTS, ((labels, histogram.count) for labels, histogram in durations.items()))
        yield _histograms(DURATION, durations)
        yield _histograms(UPSTREAM, upstream)
        yield _histograms(FIRST_TOKEN, first_token)

    def _backends(self) -> Iterator[Metric]:
        backends = self._registry.backends
        slots = [((backend.name, name), slots) for backend in backends for name, slots in backend.slots.items()]
        yield _numbers(READY, (((backend.name,), backend.ready) for backend in backends))
        yield _numbers(HEALTHY, (((backend.name,), backend.healthy) for backend in backends))
        yield _numbers(INFLIGHT, ((labels, each.inflight) for labels, each in slots))
        yield _numbers(LIMIT, ((labels, each.limit) for labels, each in slots if each.limit != sys.maxsize))
        yield _numbers(CONNECTIONS, (((backend.name,), backend.pool.open_connections) for backend in backends))
        yield _numbers(WAITING, (((backend.name,), backend.pool.waiting) for backend in backends))
        yield _numbers(
            FAILURES,
            (((backend.name, kind), count) for backend in backends for kind, count in backend.failures.items()),
        )


def _tokens(counted: Mapping[tuple[str, ...], Tokens]) -> Samples:
    return (
        ((*labels, direction, estimated), count)
        for labels, tokens in counted.items()
        for direction, estimated, count in tokens.samples()
    )


def _numbers(family: Family, samples: Samples) -> Metric:
    kind = CounterMetricFamily if family.kind == "counter" else GaugeMetricFamily
    made = kind(family.name, family.help, labels=family.labels)
    for labels, value in samples:
        made.add_metric(labels, float(value))
    return made


def _histograms(family: Family, series: Mapping[tuple[str, ...], Histogram]) -> Metric:
    made = HistogramMetricFamily(family.name, family.help, labels=family.labels)
    for labels, histogram in series.items():
        if histogram.count:
            made.add_metric(labels, histogram.cumulative(), histogram.sum)
    return made
