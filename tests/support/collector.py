"""An OTLP/HTTP collector of traces that tests look into."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.support.http_server import Handler, http_server
from tests.support.waiting import until


@dataclass
class Collector:
    """What has come: spans, and the attributes of the resource that made them."""

    port: int = 0
    status: int = 200
    spans: list[Span] = field(default_factory=list)
    resource: dict[str, Any] = field(default_factory=dict)
    refused: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def of(self, request_id: str) -> list[Span]:
        """The spans of a request: its server span, which ends last and comes last, and what was made within."""

        def found() -> list[Span]:
            spans = list(self.spans)
            asked = [span for span in spans if values(span.attributes).get("gateway.request_id") == request_id]
            within = [span for span in spans if span.parent_span_id in {server.span_id for server in asked}]
            return asked and asked + within

        return until(found, f"no span of {request_id}")

    def take(self, path: str, body: bytes) -> None:
        assert path == "/v1/traces"
        request = ExportTraceServiceRequest.FromString(body)
        for group in request.resource_spans:
            self.resource = values(group.resource.attributes)
            for scope in group.scope_spans:
                self.spans += scope.spans


def values(attributes: Any) -> dict[str, Any]:
    """OTLP's attributes as a dictionary."""
    return {
        attribute.key: getattr(attribute.value, attribute.value.WhichOneof("value") or "string_value")
        for attribute in attributes
    }


@contextmanager
def collector() -> Iterator[Collector]:
    """Runs one in a thread of its own until the end of the block."""
    state = Collector()

    class Taking(Handler, BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.body()
            if state.status == 200:
                state.take(self.path, body)
            else:
                state.refused += 1
            self.answer(state.status)

    with http_server(Taking) as state.port:
        yield state
