"""Traces: spans of requests and of calls to backends, as a collector gets them."""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests.support.collector import Collector, collector, values
from tests.support.gateways import TOKEN, Gateway, gateway, write_files
from tests.support.upstream import Upstream
from tests.support.waiting import until

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


@pytest.fixture(scope="module")
def traces() -> Iterator[Collector]:
    with collector() as running:
        yield running


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory, backend: Upstream, traces: Collector) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("traced")
    write_files(home, backend.url)
    with gateway(home, OTEL_EXPORTER_OTLP_ENDPOINT=traces.url, OTEL_SERVICE_NAME="our-gateway") as running:
        yield running


def ask(traced: Gateway, traces: Collector, model: str, spans: int = 2, **more: object) -> dict[int, Span]:
    """The spans of one chat, by kind."""
    headers = more.pop("headers", {})
    assert isinstance(headers, dict)
    body = {"model": model, "messages": [{"role": "user", "content": "a secret question"}], **more}
    answer = traced.client.post("/v1/chat/completions", json=body, headers=headers)
    found = traces.of(answer.headers["x-request-id"])
    assert len(found) == spans
    return {span.kind: span for span in found}


def test_a_chat_is_a_server_span_with_a_client_span_in_it(traced: Gateway, traces: Collector, seen: Upstream) -> None:
    began = time.time_ns()
    spans = ask(traced, traces, "fast")
    ended = time.time_ns()
    server, client = spans[Span.SPAN_KIND_SERVER], spans[Span.SPAN_KIND_CLIENT]
    assert traces.resource["service.name"] == "our-gateway"
    assert server.name == "POST /v1/chat/completions"
    assert not server.parent_span_id
    assert client.name == "chat echo"
    assert client.trace_id == server.trace_id
    assert client.parent_span_id == server.span_id
    clock = 1_000_000_000  # ns by which the two clocks of a span may disagree with one alone, which may be set
    assert began - clock <= server.start_time_unix_nano <= client.start_time_unix_nano
    assert client.end_time_unix_nano <= server.end_time_unix_nano <= ended + clock
    wanted = {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "url.path": "/v1/chat/completions",
        "url.scheme": "http",
        "http.response.status_code": 200,
        "network.protocol.version": "1.1",
        "client.address": "127.0.0.1",
        "gateway.router_reason": "alias:model",
    }
    assert values(server.attributes).items() >= wanted.items()
    asked = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "test",
        "gen_ai.request.model": "echo",
        "gen_ai.usage.input_tokens": 1,
        "gen_ai.usage.output_tokens": 1,
        "server.address": "127.0.0.1",
        "server.port": seen.port,
        "gateway.backend": "test@here",
    }
    assert values(client.attributes) == asked
    assert server.status.code == client.status.code == Status.STATUS_CODE_UNSET
    # What the backend was told names the client span as its parent.
    parent = seen.seen[-1].headers["traceparent"]
    assert parent == f"00-{client.trace_id.hex()}-{client.span_id.hex()}-01"


def test_no_span_holds_words_or_tokens(traced: Gateway, traces: Collector) -> None:
    spans = ask(traced, traces, "fast", user="somebody")
    text = "".join(map(str, spans.values()))
    assert "secret" not in text
    assert "Hello" not in text
    assert TOKEN not in text


def test_a_stream_tells_its_first_chunk(traced: Gateway, traces: Collector) -> None:
    client = ask(traced, traces, "fast", stream=True)[Span.SPAN_KIND_CLIENT]
    attributes = values(client.attributes)
    assert attributes["gen_ai.request.stream"] is True
    first = attributes["gen_ai.response.time_to_first_chunk"]
    assert 0 < first <= (client.end_time_unix_nano - client.start_time_unix_nano) / 1e9
    event = next(event for event in client.events if event.name == "gen_ai.first_chunk")
    assert client.start_time_unix_nano < event.time_unix_nano < client.end_time_unix_nano


def test_embeddings_have_their_operation(traced: Gateway, traces: Collector) -> None:
    answer = traced.client.post("/v1/embeddings", json={"model": "fast", "input": "x"})
    spans = traces.of(answer.headers["x-request-id"])
    client = next(span for span in spans if span.kind == Span.SPAN_KIND_CLIENT)
    assert client.name == "embeddings echo"
    assert values(client.attributes)["gen_ai.operation.name"] == "embeddings"


def test_a_request_without_a_backend_is_one_span(traced: Gateway, traces: Collector) -> None:
    server = ask(traced, traces, "no such model", spans=1)[Span.SPAN_KIND_SERVER]
    attributes = values(server.attributes)
    assert attributes["http.response.status_code"] == 404
    assert attributes["error.type"] == "404"
    assert server.status.code == Status.STATUS_CODE_UNSET  # by the conventions a 4xx is no error of a server


@pytest.mark.parametrize(
    ("model", "stream", "error"), [("test:cut", False, "502"), ("die-mid", True, "upstream_closed")]
)
def test_a_backend_that_fails_is_an_error(
    traced: Gateway, traces: Collector, model: str, stream: bool, error: str
) -> None:
    spans = ask(traced, traces, model, stream=stream)
    for span in spans.values():
        assert span.status.code == Status.STATUS_CODE_ERROR
        assert values(span.attributes)["error.type"] == error


def test_the_client_that_traces_decides(traced: Gateway, traces: Collector, seen: Upstream) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=value,other=1"}
    spans = ask(traced, traces, "fast", headers=headers)
    server = spans[Span.SPAN_KIND_SERVER]
    assert server.trace_id.hex() == TRACE
    assert server.parent_span_id.hex() == PARENT
    assert server.trace_state == "vendor=value,other=1"
    asked = seen.seen[-1].headers
    assert asked["traceparent"].startswith(f"00-{TRACE}-")
    assert asked["traceparent"].endswith("-01")
    assert asked["tracestate"] == "vendor=value,other=1"
    traced.client.post(
        "/v1/chat/completions",
        json={"model": "fast", "messages": [{"role": "user", "content": "x"}]},
        headers={"traceparent": f"00-{TRACE}-{PARENT}-00"},
    )
    assert seen.seen[-1].headers["traceparent"].startswith(f"00-{TRACE}-")
    assert seen.seen[-1].headers["traceparent"].endswith("-00")
    ask(traced, traces, "fast")
    assert sum(span.trace_id.hex() == TRACE for span in traces.spans) == 2  # those of the first request alone


def test_no_share_of_requests_is_traced_where_none_is_wanted(tmp_path: Path, backend: Upstream) -> None:
    write_files(tmp_path, backend.url)
    with collector() as traces:
        with gateway(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=traces.url, OTEL_TRACES_SAMPLER_ARG="0") as running:
            running.chat("fast")
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
            running.client.post("/v1/embeddings", json={"model": "fast", "input": "x"}, headers=headers)
        # A gateway that stops delivers what waits.
        assert {span.trace_id.hex() for span in traces.spans} == {TRACE}


@pytest.mark.parametrize("how", ["hangs", "answers 503"])
def test_a_collector_that_is_no_use_hurts_no_request(tmp_path: Path, backend: Upstream, how: str) -> None:
    write_files(tmp_path, backend.url)
    with collector() as traces, socket.create_server(("127.0.0.1", 0)) as silent:
        traces.status = 503
        port = silent.getsockname()[1] if how == "hangs" else traces.port
        with gateway(tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{port}") as running:
            for _ in range(3):
                assert running.chat("fast").status_code == 200
            none = 'spans_total{state="failed"} 0.0'
            until(lambda: none not in running.observe.get("/metrics").text, "no span has failed")
            for _ in range(3):
                assert running.chat("fast").status_code == 200
    said = [json.loads(line)["message"] for line in running.said.splitlines() if "collector" in line]
    at = f"the collector at http://127.0.0.1:{port}/v1/traces"
    assert said == [f"{at} refuses traces; the gateway drops them until it accepts them"]
