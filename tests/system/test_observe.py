"""What the metrics, the request log and the second listener tell of requests, tokens, failures and queues."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from gateway.observe.metrics import LABEL_MAX_CHARS

from tests.support.gateways import TOKEN, Gateway, gateway, write_files
from tests.support.ports import NOBODYS
from tests.support.sockets import send
from tests.support.upstream import DONE, Upstream
from tests.support.waiting import until
from tests.support.wire import EVENTS, JSON, Script, event, framed, head, wire

HI: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}
CHAT = {"path": "/v1/chat/completions"}


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory, backend: Upstream) -> Iterator[Gateway]:
    """A gateway whose backends are `test`, one that is `mute` about usage, some with one slot, and one not there."""
    home = tmp_path_factory.mktemp("observed")
    others: dict[str, dict[str, Any]] = {
        "mute@here": {"stream_usage": False},
        "narrow@here": {"concurrency_limits": {"chat": 1}, "queue": {"max": 1, "timeout_sec": 60}},
        "slow@here": {"concurrency_limits": {"chat": 1}, "cooldown_ms": 60_000},
        "slower@here": {"concurrency_limits": {"chat": 1}, "cooldown_ms": 60_000},
        "gone@here": {"base_url": f"http://127.0.0.1:{NOBODYS}/v1", "optional": True},
    }
    write_files(home, backend.url, others)
    policies = json.dumps({TOKEN: {"name": "operator", "admin": True}})
    with gateway(home, GATEWAY_TOKEN_POLICIES_JSON=policies) as running:
        yield running


@contextmanager
def grows(running: Gateway, by: float, name: str, **labels: str) -> Iterator[None]:
    before = running.value(name, **labels)
    yield
    until(lambda: running.value(name, **labels) - before >= by, f"{name} does not grow")
    assert running.value(name, **labels) - before == by


def test_request_log_has_the_fields_of_the_contract(observed: Gateway) -> None:
    answers = observed.chat("fast"), observed.chat("echo", stream=True), observed.chat("no such model")
    plain, streamed, failed = map(observed.entry_of, answers)
    asked = {"method": "POST", **CHAT, "status": 200, "stream": False, "op": "chat.completions", "token": "operator"}
    reached = {"backend": "test@here", "backend_class": "test", "upstream_model": "echo"}
    used = {"input_tokens": 1, "output_tokens": 1, "router_reason": "alias:model"}
    assert plain.items() >= {**asked, **reached, **used}.items()
    assert 0 < plain["upstream_ms"] <= plain["duration_ms"]
    assert (streamed["stream"], streamed["abort_reason"]) == (True, None)
    assert (streamed["input_tokens"], streamed["output_tokens"]) == (5, 3)
    assert streamed["chunks_out"] >= 1
    assert streamed["bytes_out"] > 100
    assert 0 < streamed["ttft_ms"] <= streamed["duration_ms"]
    assert failed["status"] == 404
    translated = {"model": "fast", "max_tokens": 9, "tools": [{"name": "f", "input_schema": {"type": "object"}}], **HI}
    assert observed.entry_of(observed.client.post("/v1/messages", json=translated))["has_tools"]
    path = observed.home / "data/requests.jsonl"
    assert TOKEN not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("stream", [False, True])
def test_request_is_counted_by_path_status_class_and_caller(observed: Gateway, stream: bool) -> None:
    tokens = {"backend_class": "test", "model": "echo", "estimated": "false"}
    told = (5, 3) if stream else (1, 1)
    with (
        grows(observed, 1, "gateway_requests_total", status="200", **CHAT),
        grows(observed, 1, "gateway_request_duration_ms_count", status="200", **CHAT),
        grows(observed, 1, "gateway_request_duration_ms_bucket", status="200", le="+Inf", **CHAT),
        grows(observed, 1, "gateway_upstream_duration_ms_count", backend_class="test", **CHAT),
        grows(observed, int(stream), "gateway_time_to_first_token_ms_count", backend_class="test", **CHAT),
        grows(observed, 1, "gateway_caller_requests_total", caller="operator"),
        grows(observed, told[0], "gateway_tokens_total", direction="input", **tokens),
        grows(observed, told[1], "gateway_tokens_total", direction="output", **tokens),
        grows(observed, sum(told), "gateway_caller_tokens_total", caller="operator", estimated="false"),
        grows(observed, 0, "gateway_tokens_total", estimated="true"),
    ):
        answer = observed.chat("fast", stream=stream)
        assert ("usage" in answer.text) != stream
    assert observed.value("gateway_request_duration_ms_sum", status="200", **CHAT) > 0
    assert TOKEN not in observed.observe.get("/metrics").text


def test_unknown_paths_are_counted_as_one(observed: Gateway) -> None:
    with (
        grows(observed, 1, "gateway_requests_total", status="404", **CHAT),
        grows(observed, 2, "gateway_requests_total", status="404", path="other"),
    ):
        observed.chat("nothing")
        for number in range(2):
            observed.client.get(f"/no/such/page/{number}")
    assert "no/such" not in observed.observe.get("/metrics").text


def test_tokens_that_nobody_told_are_estimated_and_marked(observed: Gateway) -> None:
    sent = json.dumps({"model": "mute:echo", "stream": True, "messages": [{"role": "user", "content": "x" * 400}]})
    estimated = {"backend_class": "mute", "model": "echo", "estimated": "true"}
    with (
        grows(observed, len(sent) // 4, "gateway_tokens_total", direction="input", **estimated),
        grows(observed, 0, "gateway_tokens_total", estimated="false"),
    ):
        answer = observed.client.post("/v1/chat/completions", content=sent)
    assert "usage" not in answer.text
    assert "input_tokens" not in observed.entry_of(answer)
    # Three events and the terminator; how many writes they are is the network's to say.
    assert 1 <= observed.value("gateway_tokens_total", direction="output", **estimated) <= 4
    assert observed.value("gateway_caller_tokens_total", caller="operator", estimated="true") > 100


def test_embeddings_have_no_tokens_out(observed: Gateway) -> None:
    with (
        grows(observed, 0, "gateway_tokens_total", direction="output"),
        grows(observed, len(b'{"model":"fast","input":"x"}') // 4, "gateway_tokens_total", direction="input"),
    ):
        observed.client.post("/v1/embeddings", json={"model": "fast", "input": "x"})


def test_models_that_did_not_answer_make_no_series(observed: Gateway) -> None:
    for number in range(5):
        assert observed.chat(f"test:status-40{number}").status_code >= 400
    assert "status-40" not in observed.observe.get("/metrics").text


def test_stream_that_breaks_off_is_counted_with_its_reason(observed: Gateway) -> None:
    with grows(observed, 1, "gateway_streams_aborted_total", reason="upstream_closed"):
        observed.chat("die-mid", stream=True)
    body = {"model": "hang-mid", "stream": True, **HI}
    with (
        grows(observed, 1, "gateway_streams_aborted_total", reason="client_disconnected"),
        observed.client.stream("POST", "/v1/chat/completions", json=body) as answer,
    ):
        next(answer.iter_raw())


def test_waiting_in_a_queue_is_seen(observed: Gateway, seen: Upstream) -> None:
    narrow = {"backend_class": "narrow", "capability": "chat"}
    with (
        grows(observed, 2, "gateway_queue_wait_ms_count", backend_class="narrow"),  # the refused one's, too
        ThreadPoolExecutor(1) as pool,
    ):
        with send(observed.port, "/v1/chat/completions", {"model": "narrow:hang", **HI}):
            seen.wait_for(1)
            waiting = pool.submit(observed.chat, "narrow:echo")
            until(lambda: observed.value("gateway_queue_waiting", **narrow) == 1, "it does not wait")
            full = observed.chat("narrow:echo")
            assert (full.status_code, full.headers["retry-after"]) == (429, "5")
            assert full.json()["error"]["code"] == "backend_overloaded"
            assert "queue of 1 is full" in full.json()["error"]["message"]
        answer = waiting.result()
    assert answer.status_code == 200
    entry = observed.entry_of(answer)
    assert 0 < entry["queued_ms"] < entry["duration_ms"]
    assert observed.value("gateway_queue_waiting", **narrow) == 0


@pytest.mark.parametrize(("path", "name"), [("/v1/chat/completions", "slow"), ("/v1/messages", "slower")])
def test_slot_cools_down_after_a_client_has_left(observed: Gateway, seen: Upstream, path: str, name: str) -> None:
    """Until its backend has noticed, it would work for one more than its limit."""
    with send(observed.port, path, {"model": f"{name}:hang", "max_tokens": 9, **HI}):
        seen.wait_for(1)
    assert observed.log_entry(lambda entry: entry.get("backend_class") == name)["abort_reason"] == "client_disconnected"
    assert observed.chat(f"{name}:echo").status_code == 429


def test_both_listeners_show_backends_process_and_loop(observed: Gateway) -> None:
    for text in (observed.observe.get("/metrics").text, observed.client.get("/metrics").text):
        for line in (
            'gateway_backend_healthy{backend="test@here"} 1.0',
            'gateway_backend_ready{backend="test@here"} 1.0',
            'gateway_backend_limit{backend="test@here",capability="chat"} 64.0',
            'capability="embeddings"',
            "gateway_event_loop_lag_ms_bucket",
            "gateway_build_info{version=",
            "process_resident_memory_bytes",
        ):
            assert line in text
        assert 'gateway_backend_limit{backend="test@here",capability="embeddings"}' not in text


def test_second_listener_is_for_health_and_metrics_alone(observed: Gateway) -> None:
    assert observed.observe.get("/health").json() == {"ok": True}
    assert observed.observe.head("/health").status_code == 200
    assert observed.observe.get("/health/upstreams").json()["upstreams"]["test@here"]["ready"] is True
    assert observed.observe.get("/v1/models").status_code == 404
    refused = observed.observe.post("/health")
    assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")


def test_optional_backend_that_is_down_is_reported_not_fatal(observed: Gateway) -> None:
    report = observed.observe.get("/readyz")
    assert (report.status_code, report.json()["ok"]) == (200, True)
    assert report.json()["backends"]["gone@here"]["optional"] is True
    assert observed.chat("gone:x").status_code == 503


@pytest.mark.parametrize(
    ("own", "is_kept"),
    [
        *(("a", True), ("Trace.1:2_3-" + "x" * 116, True)),
        *((harmful, False) for harmful in ("", "with blank", 'quo"te', "x" * 129, "a/b")),
    ],
)
def test_request_id_of_the_client_is_kept_unless_it_could_do_harm(observed: Gateway, own: str, is_kept: bool) -> None:
    answer = observed.client.get("/v1/models", headers={"X-Request-Id": own})
    assert re.fullmatch(re.escape(own) if is_kept else "req-[0-9a-f]{24}", answer.headers["x-request-id"])
    assert observed.entry_of(answer)["path"] == "/v1/models"


def test_process_log_names_the_request(observed: Gateway) -> None:
    answer = observed.client.post("/v1/gateway/reload", headers={"X-Request-Id": "our-reload"})
    assert answer.status_code == 200

    def said() -> list[dict[str, Any]]:
        return [json.loads(line) for line in observed.said.rpartition("\n")[0].splitlines()]

    until(lambda: any(one.get("request_id") == "our-reload" and "reload" in one["message"] for one in said()))
    assert not [one for one in said() if one["logger"] == "gateway.backends.health" and "request_id" in one]


def test_switched_off(tmp_path: Path, backend: Upstream) -> None:
    write_files(tmp_path, backend.url)
    off = {f"{name}_ENABLED": "false" for name in ("OBSERVABILITY", "METRICS", "REQUEST_LOG")}
    with gateway(tmp_path, None, **off) as running:
        assert running.chat("fast").status_code == 200
        answer = running.client.get("/metrics")
        assert answer.status_code == 404
        assert "METRICS_ENABLED" in answer.json()["error"]["message"]
        assert not (tmp_path / "data/requests.jsonl").exists()


def test_page_is_bounded_whatever_clients_and_backends_send(tmp_path: Path) -> None:
    """Each source of a label has its turn: paths, methods, models, classes, statuses, error codes, request types."""

    def script(turn: int) -> Script:
        code = f"{turn} " + "x" * 50_000
        error = {"message": code, "code": code, "type": code, "param": code}
        if turn % 3 == 0:
            return Script((head(EVENTS) + event({"choices": []}) + event({"error": error}) + DONE,), "close")
        if turn % 3 == 1:
            return Script((framed(JSON, b'{"choices": [], "usage": {"prompt_tokens": 1}}'),))
        return Script((framed(JSON, json.dumps({"error": error}).encode(), f"{400 + turn % 200} X"),))

    with wire() as server:
        write_files(tmp_path, server.url)
        with gateway(tmp_path) as running:
            for turn in range(250):
                server.script = script(turn)
                method = "POST" if turn % 5 else f"METHOD{turn}"
                headers = {"X-Request-Type": f"type {turn}", "X-Backend": "test" if turn % 2 else f"class{turn}"}
                body = {"model": f"test:{'m' * 100}{turn}", **HI, "stream": turn % 3 == 0}
                for path in ("/v1/chat/completions", f"/v1/{'y' * 200}{turn}"):
                    running.client.request(method, path, json=body, headers=headers)
            page = running.observe.get("/metrics").text
            assert running.value("gateway_streams_aborted_total", reason="other") > 30
            assert running.value("gateway_tokens_total", model="other") > 30
    assert len(page) < 100_000
    assert max(map(len, re.findall(r'="([^"]*)"', page))) <= LABEL_MAX_CHARS
    lines = (tmp_path / "data/requests.jsonl").read_bytes().splitlines()
    assert max(map(len, lines)) < 2_000
