"""What the metrics and the request log tell of tokens, failures, retries and queues."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import pytest
from gateway.backends.records import BackendRecord
from gateway.backends.usage import Usage
from gateway.observe.metrics import (
    BOUNDS,
    CALLERS_MAX,
    LABEL_MAX_CHARS,
    MODELS_MAX,
    OTHER,
    SERIES_MAX,
    Histogram,
    Metrics,
)
from hypothesis import given
from hypothesis import strategies as st

from tests.support.gateways import TOKEN, Gateway, gateway, write_files
from tests.support.registries import record, registry
from tests.support.sockets import send
from tests.support.upstream import DONE, Upstream
from tests.support.waiting import until
from tests.support.wire import EVENTS, JSON, Script, event, framed, head, wire

CALLER = sha256(TOKEN.encode()).hexdigest()[:8]
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"word"}}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":5,"total_tokens":12}}\n\n'


@contextmanager
def grows(running: Gateway, by: float, name: str, **labels: str) -> Iterator[None]:
    before = running.value(name, **labels)
    yield
    until(lambda: running.value(name, **labels) - before >= by, f"{name} does not grow")
    assert running.value(name, **labels) - before == by


def stream(events: bytes) -> Script:
    return Script((head(EVENTS) + events + DONE,), "close")


def test_a_request_is_counted_by_path_status_class_and_caller(served: Gateway) -> None:
    chat = {"path": "/v1/chat/completions"}
    with (
        grows(served, 1, "gateway_requests_total", status="200", **chat),
        grows(served, 1, "gateway_request_duration_ms_count", status="200", **chat),
        grows(served, 1, "gateway_request_duration_ms_bucket", status="200", le="+Inf", **chat),
        grows(served, 1, "gateway_upstream_duration_ms_count", backend_class="test", **chat),
        grows(served, 0, "gateway_time_to_first_token_ms_count", backend_class="test", **chat),
        grows(served, 1, "gateway_caller_requests_total", caller=CALLER),
    ):
        assert served.chat("fast").status_code == 200
    with (
        grows(served, 1, "gateway_time_to_first_token_ms_count", backend_class="test", **chat),
        grows(served, 1, "gateway_request_duration_ms_count", status="200", **chat),
        grows(served, 1, "gateway_upstream_duration_ms_count", backend_class="test", **chat),
    ):
        assert served.chat("fast", stream=True).status_code == 200
    assert served.value("gateway_request_duration_ms_sum", status="200", **chat) > 0
    assert TOKEN not in served.observe.get("/metrics").text


def test_tokens_are_those_that_the_backend_told(served: Gateway) -> None:
    echo = {"backend_class": "test", "model": "echo", "estimated": "false"}
    with (
        grows(served, 1, "gateway_tokens_total", direction="input", **echo),
        grows(served, 1, "gateway_tokens_total", direction="output", **echo),
        grows(served, 2, "gateway_caller_tokens_total", caller=CALLER, estimated="false"),
        grows(served, 0, "gateway_tokens_total", estimated="true"),
    ):
        answer = served.chat("fast")
    entry = served.entry_of(answer)
    assert (entry["input_tokens"], entry["output_tokens"]) == (1, 1)


def test_a_stream_tells_its_tokens_to_the_metrics_and_not_to_who_did_not_ask(tmp_path: Path) -> None:
    with wire() as server:
        server.script = stream(3 * EVENT + USAGE)
        write_files(tmp_path, server.url)
        with gateway(tmp_path) as running:
            answer = running.chat("fast", stream=True)
            assert "usage" not in answer.text
            entry = running.entry_of(answer)
            assert (entry["input_tokens"], entry["output_tokens"]) == (7, 5)
            assert running.value("gateway_tokens_total", direction="input", estimated="false") == 7
            assert running.value("gateway_tokens_total", direction="output", estimated="false") == 5


def test_tokens_that_nobody_told_are_estimated_and_marked(tmp_path: Path) -> None:
    sent = json.dumps({"model": "fast", "stream": True, "messages": [{"role": "user", "content": "x" * 400}]})
    with wire() as server:
        server.script = stream(3 * EVENT)
        write_files(tmp_path, server.url)
        with gateway(tmp_path) as running:
            answer = running.client.post("/v1/chat/completions", content=sent)
            assert answer.status_code == 200
            assert "usage" not in answer.text
            assert "input_tokens" not in running.entry_of(answer)
            estimated = {"model": "echo", "estimated": "true"}
            assert running.value("gateway_tokens_total", direction="input", **estimated) == len(sent) // 4
            # Three events and the terminator; how many writes they are is the network's to say.
            assert 1 <= running.value("gateway_tokens_total", direction="output", **estimated) <= 4
            assert running.value("gateway_tokens_total", estimated="false") == 0
            assert running.value("gateway_caller_tokens_total", caller=CALLER) > 100


def test_embeddings_have_no_tokens_out(served: Gateway) -> None:
    with (
        grows(served, 0, "gateway_tokens_total", direction="output"),
        grows(served, len(b'{"model":"fast","input":"x"}') // 4, "gateway_tokens_total", direction="input"),
    ):
        served.client.post("/v1/embeddings", json={"model": "fast", "input": "x"})


def test_models_that_did_not_answer_make_no_series(served: Gateway) -> None:
    for number in range(5):
        assert served.chat(f"test:status-40{number}").status_code >= 400
    assert "status-40" not in served.observe.get("/metrics").text


@pytest.mark.parametrize(("model", "kind"), [("test:html", "answer"), ("test:status-400", "status_4xx")])
def test_what_a_backend_fails_is_counted_by_its_kind(served: Gateway, model: str, kind: str) -> None:
    with grows(served, 1, "gateway_upstream_failures_total", backend="test@here", kind=kind):
        assert served.chat(model).status_code >= 400
    served.chat("fast")


def test_a_stream_that_breaks_is_counted_with_its_reason(served: Gateway) -> None:
    with grows(served, 1, "gateway_streams_aborted_total", reason="upstream_closed"):
        served.chat("die-mid", stream=True)


def test_a_client_that_leaves_is_counted(served: Gateway, seen: Upstream) -> None:
    left = {"reason": "client_disconnected"}
    before = served.value("gateway_streams_aborted_total", **left)
    body = {"model": "hang-mid", "stream": True, "messages": [{"role": "user", "content": "Hi"}]}
    with served.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        next(answer.iter_raw())
    entry = served.log_entry(lambda entry: entry.get("upstream_model") == "hang-mid")
    assert entry["abort_reason"] == "client_disconnected"
    assert served.value("gateway_streams_aborted_total", **left) == before + 1


def test_waiting_in_a_queue_is_seen(tmp_path: Path, seen: Upstream) -> None:
    write_files(tmp_path, seen.url, concurrency_limits={"chat": 1}, queue={"max": 8, "timeout_sec": 60})
    with gateway(tmp_path) as running:
        assert running.value("gateway_backend_limit", backend="test@here", capability="chat") == 1
        chats = {"backend_class": "test", "capability": "chat"}
        body = {"model": "hang", "messages": [{"role": "user", "content": "Hi"}]}
        with ThreadPoolExecutor(1) as pool:
            with send(running.port, "/v1/chat/completions", body):
                seen.wait_for(1)
                waiting = pool.submit(running.chat, "fast")
                until(lambda: running.value("gateway_queue_waiting", **chats) == 1, "it does not wait")
            answer = waiting.result()
        assert answer.status_code == 200
        entry = running.entry_of(answer)
        assert 0 < entry["queued_ms"] < entry["duration_ms"]
        assert running.value("gateway_queue_wait_ms_count", backend_class="test") == 1
        assert running.value("gateway_queue_waiting", **chats) == 0


def test_both_listeners_show_backends_process_and_loop(served: Gateway) -> None:
    for text in (served.observe.get("/metrics").text, served.client.get("/metrics").text):
        assert 'gateway_backend_healthy{backend="test@here"} 1.0' in text
        assert 'gateway_backend_limit{backend="test@here",capability="chat"} 64.0' in text
        assert 'capability="embeddings"' in text
        assert 'gateway_backend_limit{backend="test@here",capability="embeddings"}' not in text
        assert "gateway_event_loop_lag_ms_bucket" in text
        assert "gateway_build_info{version=" in text
        assert "process_resident_memory_bytes" in text


@pytest.mark.parametrize("own", ["a", "Trace.1:2_3-" + "x" * 116])
def test_the_clients_request_id_is_kept(served: Gateway, own: str) -> None:
    answer = served.client.get("/v1/models", headers={"X-Request-Id": own})
    assert answer.headers["x-request-id"] == own
    assert served.log_entry(lambda entry: entry["request_id"] == own)["path"] == "/v1/models"


@pytest.mark.parametrize("own", ["", "with blank", 'quo"te', "x" * 129, "a/b"])
def test_a_request_id_that_could_do_harm_is_replaced(served: Gateway, own: str) -> None:
    answer = served.client.get("/v1/models", headers={"X-Request-Id": own})
    assert re.fullmatch("req-[0-9a-f]{24}", answer.headers["x-request-id"])


def test_the_process_log_names_the_request(tmp_path: Path, backend: Upstream) -> None:
    write_files(tmp_path, backend.url)
    policies = json.dumps({TOKEN: {"name": "operator", "admin": True}})
    with gateway(tmp_path, GATEWAY_TOKEN_POLICIES_JSON=policies) as running:
        answer = running.client.post("/v1/gateway/reload", headers={"X-Request-Id": "our-reload"})
        assert answer.status_code == 200
    entries = [json.loads(line) for line in running.said.splitlines()]
    assert "our-reload" in {entry.get("request_id") for entry in entries if "reload" in entry["message"]}
    assert not [entry for entry in entries if entry["logger"] == "gateway.backends.health" and "request_id" in entry]
    entry = running.log_entry(lambda entry: entry["request_id"] == "our-reload")
    assert entry["token"] == "operator"


def test_series_are_bounded() -> None:
    metrics = Metrics(registry(a=record()), None)
    for number in range(SERIES_MAX + CALLERS_MAX):
        metrics.series(f"/{number}", 200, "test").duration.observe(1)
        metrics.caller(str(number)).requests += 1
        metrics.aborted(f"reason {number}")
        metrics.series("/v1/chat/completions", number, "test")
    assert len(metrics._series) == SERIES_MAX + 1
    assert len(metrics._callers) == CALLERS_MAX + 1
    assert metrics._aborted == {OTHER: SERIES_MAX + CALLERS_MAX}


def test_made_up_names_leave_real_models_their_series() -> None:
    backends = registry(
        a=record(), b=BackendRecord.model_validate(record().model_dump(by_alias=True) | {"class": "bare"})
    )
    metrics = Metrics(backends, None)
    listing, bare = backends.backends
    listing.models, bare.models = tuple(f"listed {n}" for n in range(300)), ()
    backends.refresh_names()
    for number in range(1_000):
        for backend_class in ("test", "bare"):
            metrics.model(backend_class, f"made up {number}").add(Usage(1, 1))
    own = {name for _, name in metrics._models} - {OTHER}
    assert len(own) == MODELS_MAX["unlisted"]
    assert metrics.model("test", "made up 5").is_other
    assert not metrics.model("test", "listed 7").is_other
    for number in range(300):
        metrics.model("test", f"listed {number}")
    assert len(metrics._models) == MODELS_MAX["unlisted"] + MODELS_MAX["listed"] + 2
    assert not metrics.model("test", "m").is_other  # an alias means it
    listing.models = ("made up 5:latest",)
    backends.refresh_names()
    metrics._taken.clear()
    assert not metrics.model("test", "made up 5").is_other


@given(st.lists(st.floats(0, 1e7), max_size=50), st.lists(st.floats(0, 1e7), max_size=50))
def test_histograms_add_up(some: list[float], more: list[float]) -> None:
    one, other = Histogram(), Histogram()
    for milliseconds in some:
        one.observe(milliseconds)
    for milliseconds in more:
        other.observe(milliseconds)
    one.add(other)
    rows = one.cumulative()
    assert rows[-1] == ("+Inf", len(some) + len(more))
    for (bound, count), limit in zip(rows, BOUNDS, strict=False):
        assert bound == str(limit)
        assert count == sum(each <= limit for each in some + more)
    assert one.sum == pytest.approx(sum(some) + sum(more))


def test_the_page_is_bounded_whatever_clients_and_backends_send(tmp_path: Path) -> None:
    """Each source of a label has its turn: paths, methods, models, classes, statuses, error codes, request types."""

    def script(turn: int) -> Script:
        code = f"{turn} " + "x" * 50_000
        error = {"message": code, "code": code, "type": code, "param": code}
        if turn % 3 == 0:
            return stream(EVENT + event({"error": error}))
        if turn % 3 == 1:
            return Script((framed(JSON, b'{"choices": [], "usage": {"prompt_tokens": 1}}'),))
        return Script((framed(JSON, json.dumps({"error": error}).encode(), f"{400 + turn % 200} X"),))

    with wire() as server:
        write_files(tmp_path, server.url)
        with gateway(tmp_path) as running:
            for turn in range(250):
                server.script = script(turn)
                for path, fields in (
                    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "stream": turn % 3 == 0}),
                    (f"/v1/{'y' * 200}{turn}", {}),
                ):
                    headers = {
                        "X-Request-Type": f"type {turn}",
                        "X-Backend": "test" if turn % 2 else f"class{turn}",
                    }
                    running.client.request(
                        "POST" if turn % 5 else f"METHOD{turn}",
                        path,
                        json={"model": f"test:{'m' * 100}{turn}", **fields},
                        headers=headers,
                    )
            page = running.observe.get("/metrics").text
            assert running.value("gateway_streams_aborted_total", reason="other") > 30
            assert running.value("gateway_tokens_total", model="other") > 30
            assert running.chat("fast").status_code
    assert len(page) < 100_000
    assert max(map(len, re.findall(r'="([^"]*)"', page))) <= LABEL_MAX_CHARS
    lines = (tmp_path / "data/requests.jsonl").read_bytes().splitlines()
    assert max(map(len, lines)) < 2_000
