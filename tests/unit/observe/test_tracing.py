"""Parents that clients name, and what a trace that is not sampled costs."""

import asyncio
import re
from types import SimpleNamespace
from typing import Any

import pytest
from gateway.observe.settings import TraceSettings
from gateway.observe.tracing import Tracer, remote_parent
from hypothesis import given
from hypothesis import strategies as st

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = "b7ad6b7169203331"


@given(st.binary(max_size=80), st.one_of(st.none(), st.binary(max_size=600)))
def test_whatever_a_client_sends_is_a_parent_or_none(traceparent: bytes, tracestate: bytes | None) -> None:
    parent = remote_parent(traceparent, tracestate)
    assert parent is None or parent.is_valid


@pytest.mark.parametrize(
    ("traceparent", "is_one"),
    [
        (f"00-{TRACE}-{PARENT}-01", True),
        (f"cc-{TRACE}-{PARENT}-01-what-the-future-will-be-like", True),
        (f"00-{TRACE}-{PARENT}-01-what-the-future-will-be-like", False),
        (f"ff-{TRACE}-{PARENT}-01", False),
        (f"00-{TRACE.upper()}-{PARENT}-01", False),
        (f"00-{'0' * 32}-{PARENT}-01", False),
        (f"00-{TRACE}-{'0' * 16}-01", False),
        (f"00-{TRACE}-{PARENT}", False),
        (f"00-{TRACE}-{PARENT}-01\n", False),
    ],
)
def test_traceparent(traceparent: str, is_one: bool) -> None:
    """The cases of W3C's Trace Context, 3.2.2 and 4."""
    parent = remote_parent(traceparent.encode(), b"a=1")
    assert (parent is not None) is is_one
    if parent is not None:
        assert (parent.trace_id, parent.span_id) == (int(TRACE, 16), int(PARENT, 16))
        assert parent.is_remote
        assert parent.trace_state == {"a": "1"}


def test_what_is_not_sampled_costs_nothing_of_the_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    def made(*_: object) -> None:
        raise AssertionError("an object of the SDK's")

    tracer = Tracer(TraceSettings(otel_exporter_otlp_endpoint="http://127.0.0.1:9", otel_traces_sampler_arg=0))
    try:
        monkeypatch.setattr("gateway.observe.tracing.SpanContext", made)
        exchange: Any = SimpleNamespace(headers={}, scope={})
        backend: Any = None
        lines = tracer.begin(exchange, backend, "chat")
        assert re.fullmatch(rb"traceparent: 00-[0-9a-f]{32}-[0-9a-f]{16}-00\r\n", lines)
        assert tracer.begin(exchange, backend, "chat")[:49] == lines[:49]  # another call of the same trace
        tracer.record(exchange, "/v1/chat/completions")
        assert tracer.counts()["made"] == 0
    finally:
        asyncio.run(tracer.close())
