"""OpenTelemetry traces with the GenAI semantic conventions, when a collector is configured.

A request costs the event loop some random digits at its beginning, and where it is sampled two finished spans at its
end; they go out from a thread of the SDK's, whose queue drops what the collector does not take. The SDK's own objects
are made for spans alone: they cost ten times what a request that is not sampled does. Without a collector nothing of
this is imported. No span holds a prompt, an answer or a token.

Names: https://github.com/open-telemetry/semantic-conventions-genai (docs/gen-ai/gen-ai-spans.md) and the HTTP
conventions 1.41.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from random import Random
from time import perf_counter, time_ns
from typing import Any, NamedTuple

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from gateway import __version__, background
from gateway.backends.request import Request
from gateway.backends.slots import Backend
from gateway.errors import Refusal
from gateway.observe.settings import TraceSettings
from gateway.web.exchange import Exchange
from gateway.wire.origin import Origin

log = logging.getLogger(__name__)

TRACE = "gateway.trace"  # in a request's scope, once it has one
QUEUE_MAX_SPANS = 8_192
BATCH_MAX_SPANS = 512
BATCH_SEC = 1.0
EXPORT_SEC = 3.0
# W3C Trace Context; a later version may have more fields behind these.
TRACEPARENT = re.compile(
    rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-[!-~]*)?"
)
TRACESTATE = re.compile(rb"[ -~]{1,512}")
# gen_ai.operation.name, where the conventions have a name for it.
OPERATIONS = {"completions": "text_completion"}
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_ERROR = Status(StatusCode.ERROR)
_UNSET = Status(StatusCode.UNSET)


class Call(NamedTuple):
    """One request to a backend: whom, and when it began (time.perf_counter seconds)."""

    span_id: int
    backend: Backend
    operation: str
    started: float


@dataclass(slots=True)
class Trace:
    """What is known of a request's trace until the request is over.

    `span_id` is the request's own; `calls` are kept where it `is_sampled`.
    """

    trace_id: int
    span_id: int
    is_sampled: bool
    parent: SpanContext | None
    calls: list[Call] = field(default_factory=list)

    def context(self, span_id: int) -> SpanContext:
        """That of one of its spans, for the SDK; it is sampled."""
        state = self.parent.trace_state if self.parent is not None else None
        return SpanContext(self.trace_id, span_id, False, _SAMPLED, state)


class Tracer:
    """Makes spans of exchanges and hands them to a collector by OTLP/HTTP."""

    def __init__(self, settings: TraceSettings) -> None:
        """Raises Refusal when the collector's base URL is malformed."""
        endpoint = settings.otel_exporter_otlp_endpoint
        try:
            Origin.parse(endpoint)
        except ValueError as error:
            raise Refusal(f"OTEL_EXPORTER_OTLP_ENDPOINT: {error}; give one such as http://127.0.0.1:4318") from None
        self._threshold = round(settings.otel_traces_sampler_arg * (1 << 64))
        self._exporter = _Exporter(f"{endpoint.rstrip('/')}/v1/traces")
        self._processor = BatchSpanProcessor(
            self._exporter,
            max_queue_size=QUEUE_MAX_SPANS,
            schedule_delay_millis=BATCH_SEC * 1000,
            max_export_batch_size=BATCH_MAX_SPANS,
        )
        about = {"service.name": settings.otel_service_name, "service.version": __version__}
        self._resource = Resource.create(about)
        self._scope = InstrumentationScope("gateway", __version__)
        self._random = Random()  # noqa: S311  # ids are to be unique, not secret
        self._made = 0

    def begin(self, exchange: Request, backend: Backend, capability: str) -> bytes:
        """Call it before each request to a backend; returns header lines to send with the request."""
        trace = self._trace(exchange)
        span_id = self._span_id()
        if trace.is_sampled:
            trace.calls.append(Call(span_id, backend, OPERATIONS.get(capability, capability), perf_counter()))
        lines = b"traceparent: 00-%032x-%016x-%02x\r\n" % (trace.trace_id, span_id, trace.is_sampled)
        if trace.parent is not None and trace.parent.trace_state:
            lines += b"tracestate: %b\r\n" % trace.parent.trace_state.to_header().encode("ascii")
        return lines

    def record(self, exchange: Exchange, route: str) -> None:
        """Makes the spans of a request that is over; `route` is the template of its path."""
        trace = self._trace(exchange)
        if not trace.is_sampled:
            return
        now = perf_counter()
        # Time on the wall of what perf_counter called 0, in ns.
        zero = time_ns() - int(now * 1e9)
        if not trace.calls and (slots := exchange.slots) is not None:
            # A backend whose protocol takes several requests: one span for all of them.
            operation = OPERATIONS.get(slots.capability, slots.capability)
            trace.calls.append(Call(self._span_id(), slots.backend, operation, now - exchange.upstream_ms / 1000))
        for call, following in zip_longest(trace.calls, trace.calls[1:]):
            self._end_call(exchange, trace, call, following, now, zero)
        self._end_request(exchange, trace, route, now, zero)

    def counts(self) -> dict[str, int]:
        """Spans by state: made, delivered to the collector, failed. The rest waits, or was dropped unseen."""
        return {"made": self._made, "delivered": self._exporter.delivered, "failed": self._exporter.failed}

    async def close(self) -> None:
        """Delivers the spans that wait; takes at most twice EXPORT_SEC."""
        self._exporter.close_soon()
        await asyncio.to_thread(self._processor.shutdown)

    def _trace(self, exchange: Request) -> Trace:
        trace: Trace | None = exchange.scope.get(TRACE)
        if trace is None:
            parent = remote_parent(exchange.headers.get(b"traceparent"), exchange.headers.get(b"tracestate"))
            if parent is None:
                trace_id = self._random.getrandbits(128) or 1
                is_sampled = trace_id & 0xFFFFFFFFFFFFFFFF < self._threshold  # as the SDK's sampler by ratio decides
            else:
                trace_id, is_sampled = parent.trace_id, parent.trace_flags.sampled
            trace = exchange.scope[TRACE] = Trace(trace_id, self._span_id(), is_sampled, parent)
        return trace

    def _span_id(self) -> int:
        return self._random.getrandbits(64) or 1

    def _end_call(
        self, exchange: Exchange, trace: Trace, call: Call, following: Call | None, now: float, zero: int
    ) -> None:
        route, origin = exchange.route, call.backend.pool.origin
        model = route.decision.model if route is not None else ""
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": call.operation,
            "gen_ai.provider.name": call.backend.record.backend_class,
            "gen_ai.request.model": model,
            "server.address": origin.host,
            "server.port": origin.port,
            "gateway.backend": call.backend.name,
        }
        events: list[Event] = []
        error: str | None = None
        ended = now
        if following is not None:
            # Another one was begun since this one had failed before its first byte.
            ended, error = following.started, "connection_failed"
        else:
            error = _error_type(exchange)
            if exchange.streamed:
                attributes["gen_ai.request.stream"] = True
            if exchange.first_byte_at:
                attributes["gen_ai.response.time_to_first_chunk"] = exchange.first_byte_at - call.started
                events.append(Event("gen_ai.first_chunk", timestamp=zero + int(exchange.first_byte_at * 1e9)))
            usage = exchange.usage
            if usage is not None and not usage.is_estimated:
                attributes["gen_ai.usage.input_tokens"] = usage.input_tokens
                attributes["gen_ai.usage.output_tokens"] = usage.output_tokens
        if error is not None:
            attributes["error.type"] = error
        self._end(
            name=f"{call.operation} {model}".rstrip(),
            context=trace.context(call.span_id),
            parent=trace.context(trace.span_id),
            kind=SpanKind.CLIENT,
            attributes=attributes,
            events=events,
            status=_ERROR if error is not None else _UNSET,
            start_time=zero + int(call.started * 1e9),
            end_time=zero + int(ended * 1e9),
        )

    def _end_request(self, exchange: Exchange, trace: Trace, route: str, now: float, zero: int) -> None:
        scope = exchange.scope
        method = scope["method"] if scope["method"] in METHODS else "_OTHER"
        attributes: dict[str, Any] = {
            "http.request.method": method,
            "http.route": route,
            "url.scheme": scope["scheme"],
            "url.path": scope["path"][:1024],
            "http.response.status_code": exchange.status,
            "network.protocol.version": scope["http_version"],
            "gateway.request_id": exchange.request_id,
        }
        if scope["client"]:
            attributes["client.address"] = scope["client"][0]
        if exchange.caller is not None:
            attributes["gateway.caller"] = exchange.caller.name
        if exchange.route is not None:
            attributes["gateway.router_reason"] = exchange.route.decision.reason
        if exchange.queued_ms:
            attributes["gateway.queued_ms"] = exchange.queued_ms
        error = _error_type(exchange)
        if error is not None:
            attributes["error.type"] = error
        # An answer of 400 to 499 is the client's error, not this server's.
        is_error = exchange.status >= 500 or exchange.abort_reason not in (None, "client_disconnected")
        self._end(
            name=f"{method} {route}",
            context=trace.context(trace.span_id),
            parent=trace.parent,
            kind=SpanKind.SERVER,
            attributes=attributes,
            status=_ERROR if is_error else _UNSET,
            start_time=zero + int(exchange.started * 1e9),
            end_time=zero + int(now * 1e9),
        )

    def _end(self, **span: Any) -> None:
        """Makes a span of the arguments of ReadableSpan."""
        self._made += 1
        self._processor.on_end(ReadableSpan(resource=self._resource, instrumentation_scope=self._scope, **span))


class _Exporter(SpanExporter):
    """The SDK's exporter, which logs an outage once, not for each batch, and counts. It runs in the SDK's thread."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._inner = OTLPSpanExporter(endpoint=url, timeout=EXPORT_SEC)
        self._is_failing = self._is_closing = False
        self.delivered = self.failed = 0
        # They log every try, every span that a full queue drops, and every malformed tracestate.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        is_hopeless = self._is_closing and self._is_failing
        try:
            result = SpanExportResult.FAILURE if is_hopeless else self._inner.export(spans)
        except Exception:
            background.failed("traces")
            result = SpanExportResult.FAILURE
        if result is SpanExportResult.SUCCESS:
            self.delivered += len(spans)
        else:
            self.failed += len(spans)
        is_failing = result is not SpanExportResult.SUCCESS
        if is_failing and not self._is_failing:
            log.warning("the collector at %s refuses traces; the gateway drops them until it accepts them", self._url)
        elif self._is_failing and not is_failing:
            log.info("the collector at %s accepts traces again", self._url)
        self._is_failing = is_failing
        return result

    def close_soon(self) -> None:
        """From now on the first batch that fails is the last one tried."""
        self._is_closing = True
        if self._is_failing:
            self.shutdown()  # wakes it from its pause between two tries

    def shutdown(self) -> None:
        self._inner.shutdown()  # type: ignore[no-untyped-call]  # the SDK's has no annotation


def remote_parent(traceparent: bytes | None, tracestate: bytes | None) -> SpanContext | None:
    """The span that a client's `traceparent` names; None for a missing or malformed header."""
    found = TRACEPARENT.fullmatch(traceparent) if traceparent is not None else None
    if found is None or (found[1] == b"00" and len(found[0]) != 55):
        return None
    state = TraceState()
    if tracestate is not None and TRACESTATE.fullmatch(tracestate):
        state = TraceState.from_header([tracestate.decode("ascii")])
    return SpanContext(int(found[2], 16), int(found[3], 16), True, TraceFlags(int(found[4], 16) & 1), state)


def _error_type(exchange: Exchange) -> str | None:
    if exchange.abort_reason is not None:
        return exchange.abort_reason
    return str(exchange.status) if exchange.status >= 400 else None
