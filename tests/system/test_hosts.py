"""Several hosts of a class, the queue, the usage of streams, aliases with caps: routing as its clients see it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateways import Gateway, gateway, two_hosts, write_files
from tests.support.sockets import send
from tests.support.upstream import DONE, EVENT, USAGE, Upstream, upstream
from tests.support.waiting import until
from tests.support.wire import Script, wire

STREAM = b"".join(EVENT % number for number in range(3))
HI = [{"role": "user", "content": "Hi"}]


def test_host_that_is_gone_costs_its_clients_nothing(tmp_path: Path) -> None:
    """Probes are rare here, so that a request is the first to find out."""
    rare: Any = {"HEALTH_CHECK_INTERVAL_SEC": "600"}
    with upstream() as gone, upstream() as there, two_hosts(tmp_path, gone.url, there.url, **rare) as running:
        assert running.chat("echo").status_code == 200
        assert len(gone.seen) == 1  # of equally loaded hosts the first one is taken
        gone.refuse()
        assert [running.chat("echo").status_code for _ in range(4)] == [200] * 4
        assert len(there.seen) == 4
        assert running.value("gateway_retries_total", backend_class="test") == 1
        assert running.log_entry(lambda entry: bool(entry.get("retried")))["backend"] == "test@there"


def test_a_class_is_ready_while_one_of_its_hosts_is(tmp_path: Path) -> None:
    often: Any = {"HEALTH_CHECK_INTERVAL_SEC": "0.05"}
    with upstream() as here, upstream() as there, two_hosts(tmp_path, here.url, there.url, **often) as running:

        def ready() -> tuple[int, list[bool]]:
            report = running.observe.get("/readyz")
            return report.status_code, [state["ready"] for state in report.json()["backends"].values()]

        here.healthy = False
        until(lambda: ready() == (200, [False, True]), "one of two is not enough")
        there.healthy = False
        until(lambda: ready() == (503, [False, False]), "none is enough")


def test_connection_that_is_dropped_is_tried_once_and_no_more(tmp_path: Path) -> None:
    with upstream() as here, upstream() as there, two_hosts(tmp_path, here.url, there.url) as running:
        assert running.chat("die-before").status_code == 503
        assert (len(here.seen), len(there.seen)) == (1, 1)


# A request to each kind of route, as httpx names its parts.
POISON: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"json": {"model": "echo", "messages": HI}},
    "/v1/completions": {"json": {"model": "echo", "prompt": "Hi"}},
    "/v1/embeddings": {"json": {"model": "echo", "input": "Hi"}},
    "/v1/responses": {"json": {"model": "echo", "input": "Hi"}},
    "/v1/messages": {"json": {"model": "echo", "max_tokens": 9, "messages": HI}},
    "/v1/rerank": {"json": {"model": "echo", "query": "Hi", "documents": ["Hi"]}},
    "/v1/images/generations": {"json": {"model": "echo", "prompt": "Hi"}},
    "/v1/audio/speech": {"json": {"model": "echo", "input": "Hi"}},
    "/v1/audio/transcriptions": {"data": {"model": "echo"}, "files": {"file": ("a.wav", b"RIFF")}},
}


def test_request_that_ends_its_connections_is_sent_twice_and_takes_no_host_from_others(tmp_path: Path) -> None:
    able = ["chat", "completions", "embeddings", "rerank", "images", "tts", "transcription"]
    kinds = {f"{kind}_BACKEND_CLASS": "test" for kind in ("IMAGES", "TTS", "TRANSCRIPTION")}
    rare: Any = {"HEALTH_CHECK_INTERVAL_SEC": "600", "record": {"supported_capabilities": able}} | kinds
    with upstream() as here, upstream() as there, two_hosts(tmp_path, here.url, there.url, **rare) as running:
        for path, poison in POISON.items():
            for is_kept in (True, False):
                if is_kept:
                    with _begun(running, "hang-mid"):
                        assert running.chat("echo").status_code == 200
                    assert running.chat("echo").status_code == 200
                here.seen.clear()
                there.seen.clear()
                here.always = there.always = "die-before"
                answer = running.client.post(path, **poison)
                here.always = there.always = ""
                assert (answer.status_code, answer.json()["error"].get("code", "")) in (
                    (503, "backend_not_ready"),
                    (503, ""),  # Anthropic's errors have no code
                ), path
                assert len(here.seen) + len(there.seen) == 2, path
                states = running.observe.get("/readyz").json()["backends"].values()
                assert [state["ready"] for state in states] == [True, True], path


@pytest.mark.parametrize("hosts", [1, 2])
def test_client_beside_one_whose_requests_end_their_connections_loses_nothing(tmp_path: Path, hosts: int) -> None:
    with upstream() as here, upstream() as there, two_hosts(tmp_path, here.url, there.url) as running:
        if hosts == 1:
            write_files(tmp_path, here.url)
            assert running.client.post("/v1/gateway/reload").status_code == 200
        for _ in range(15):
            assert running.chat("die-before").status_code == 503
            assert [running.chat("echo").status_code for _ in range(3)] == [200] * 3


def test_nothing_is_tried_again_after_the_first_byte(tmp_path: Path) -> None:
    with upstream() as here, upstream() as there, two_hosts(tmp_path, here.url, there.url) as running:
        answer = running.chat("die-mid", stream=True)
        assert b"upstream_closed" in answer.content
        assert DONE not in answer.content
        assert len(here.seen) + len(there.seen) == 1


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_half_a_head_is_a_first_byte_too(tmp_path: Path, path: str) -> None:
    body = {"model": "echo", "max_tokens": 9, "messages": HI}
    with wire() as here, upstream() as there, two_hosts(tmp_path, here.url, there.url) as running:
        here.script = Script((b"HTTP/1.1 200 OK\r\nContent-Ty",), "close")
        assert running.client.post(path, json=body).status_code == 502
        assert (len(here.seen), len(there.seen)) == (1, 0)


def test_circuit_of_a_host_that_answers_wrongly_is_open_while_another_is_there(tmp_path: Path) -> None:
    with upstream() as here, upstream() as there, two_hosts(tmp_path, here.url, there.url) as running:
        here.always = "status-500"
        statuses = [running.chat("echo").status_code for _ in range(20)]
        assert statuses[:3] == [502] * 3
        # Its circuit is open for 1 s, 2 s, 4 s and so on: on a slow machine it is half-open in between, once or twice.
        assert len(there.seen) == statuses.count(200) > 10


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_only_failures_in_a_row_open_a_circuit(tmp_path: Path, path: str) -> None:
    body = {"model": "echo", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
    with upstream() as here, upstream() as there, two_hosts(tmp_path, here.url, there.url) as running:
        for always, status in [("status-500", 502), ("status-500", 502), ("", 200)] * 2:
            here.always = always
            assert running.client.post(path, json=body).status_code == status
        assert (len(here.seen), len(there.seen)) == (6, 0)


def test_load_is_spread(tmp_path: Path) -> None:
    with ExitStack() as stack:
        here, there = stack.enter_context(upstream()), stack.enter_context(upstream())
        running = stack.enter_context(two_hosts(tmp_path, here.url, there.url))
        for _ in range(4):
            stack.enter_context(_begun(running, "hang-mid"))
        assert (len(here.seen), len(there.seen)) == (2, 2)
        status = running.client.get("/v1/gateway/status").json()
        assert status["admission_control"]["test.chat"]["inflight"] == 4


@pytest.mark.proves("/v1/chat/completions", "stream", "stream_options.include_usage", backend="openai")
def test_usage_event_goes_to_who_asked_for_it(served: Gateway, seen: Upstream) -> None:
    asked = served.chat("echo", stream=True, stream_options={"include_usage": True})
    assert asked.content == STREAM + USAGE + DONE
    not_asked = served.chat("echo", stream=True)
    assert not_asked.content == STREAM + DONE
    declined = served.chat("echo", stream=True, stream_options={"include_usage": False})
    assert declined.content == STREAM + DONE
    assert [request.json["stream_options"] for request in seen.seen] == [{"include_usage": True}] * 3
    entry = served.log_entry(lambda entry: bool(entry.get("output_tokens")))
    assert (entry["input_tokens"], entry["output_tokens"]) == (5, 3)


def test_backend_that_knows_no_stream_options_is_not_asked(tmp_path: Path) -> None:
    with upstream() as backend:
        write_files(tmp_path, backend.url, stream_usage=False)
        with gateway(tmp_path) as running:
            assert running.chat("echo", stream=True).content == STREAM + DONE
            assert "stream_options" not in backend.seen[0].json
            asked = running.chat("echo", stream=True, stream_options={"include_usage": True})
            assert asked.content == STREAM + USAGE + DONE


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
@pytest.mark.parametrize("is_told", [True, False])
def test_the_other_host_is_asked_for_the_usage_that_it_can_tell(tmp_path: Path, path: str, is_told: bool) -> None:
    with upstream() as gone, upstream() as there:
        gone.always = "die-before"
        with two_hosts(tmp_path, gone.url, there.url, usage_told_by=(not is_told, is_told)) as running:
            body = {"model": "echo", "messages": HI, "max_tokens": 9, "stream": True}
            assert running.client.post(path, json=body).status_code == 200
            (first,), (second,) = gone.seen, there.seen
            assert ("stream_options" in first.json, "stream_options" in second.json) == (not is_told, is_told)
            assert running.value("gateway_upstream_failures_total", backend="test@here", kind="closed") == 1


@pytest.fixture
def capped(tmp_path: Path) -> Iterator[tuple[Gateway, Upstream]]:
    with upstream() as backend:
        write_files(tmp_path, backend.url)
        aliases = {
            "default": "test:echo",
            "fast": {"backend": "test", "model": "echo", "tools": False, "max_tokens": 9, "temperature_cap": 0.5},
            "coder": {"backend": "test", "model": "no-done", "tools": True},
        }
        (tmp_path / "model_aliases.json").write_text(json.dumps(aliases))
        settings = {"ROUTER_ENABLE_POLICY": "true", "ROUTER_ENABLE_REQUEST_TYPE": "true"}
        with gateway(tmp_path, None, **settings) as running:
            yield running, backend


@pytest.mark.proves("/v1/chat/completions", "max_tokens", "temperature", "tools", backend="openai")
def test_caps_of_an_alias_reach_the_backend(capped: tuple[Gateway, Upstream]) -> None:
    running, backend = capped
    assert running.chat("fast", max_tokens=50, temperature=0.9, top_p=0.3).status_code == 200
    body = backend.seen[-1].json
    assert (body["model"], body["max_tokens"], body["temperature"], body["top_p"]) == ("echo", 9, 0.5, 0.3)
    refused = running.chat("fast", tools=[{"type": "function", "function": {"name": "f"}}])
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "tools"
    assert refused.json()["error"]["message"] == "tools not allowed for model alias 'fast'"


def test_caps_of_an_alias_hold_for_what_is_translated(capped: tuple[Gateway, Upstream]) -> None:
    running, backend = capped
    body = {"model": "fast", "max_tokens": 50, "temperature": 0.9, "messages": HI}
    assert running.client.post("/v1/messages", json=body).status_code == 200
    sent = backend.seen[-1].json
    assert (sent["max_tokens"], sent["temperature"]) == (9, 0.5)
    body["tools"] = [{"name": "f", "input_schema": {"type": "object"}}]
    refused = running.client.post("/v1/messages", json=body)
    assert refused.status_code == 400
    assert refused.json()["error"]["message"] == "tools not allowed for model alias 'fast'"
    assert running.client.post("/v1/messages", json={**body, "model": "default"}).status_code == 200
    assert running.log_entry(lambda entry: bool(entry.get("has_tools")))["path"] == "/v1/messages"


@pytest.mark.parametrize(
    ("fields", "headers", "reason"),
    [
        ({}, {}, "policy:fast->alias:fast"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, {}, "policy:tools->alias:default"),
        ({}, {"X-Request-Type": "coding"}, "policy:coding->alias:coder"),
        ({"messages": [{"role": "user", "content": "fix my python bug"}]}, {}, "policy:coding->alias:coder"),
        (
            {"messages": [{"role": "user", "content": "fix my python bug"}]},
            {"X-Request-Type": "chat"},
            "policy:fast->alias:fast",
        ),
        ({"messages": [{"role": "user", "content": "word " * 9_000}]}, {}, "policy:long_context->strong"),
        ({"model": "no-done"}, {}, "pinned:model"),
        ({"model": "test:echo"}, {}, "pinned:model"),
        ({}, {"X-Backend": "test"}, "override:x-backend"),
    ],
)
def test_policy_decides_only_where_no_model_is_named(
    capped: tuple[Gateway, Upstream], fields: dict[str, Any], headers: dict[str, str], reason: str
) -> None:
    running, _ = capped
    body = {"model": "auto", "messages": HI, **fields}
    answer = running.client.post("/v1/chat/completions", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-router-reason"] == reason


def test_queue_holds_what_the_slots_cannot(tmp_path: Path) -> None:
    with upstream() as backend:
        write_files(tmp_path, backend.url, concurrency_limits={"chat": 1}, queue={"max": 1, "timeout_sec": 60})
        with gateway(tmp_path) as running, ThreadPoolExecutor(1) as pool:
            with _begun(running, "hang-mid"):
                waiting = pool.submit(running.chat, "echo")
                until(lambda: _queued(running) == 1, "it does not wait")
                full = running.chat("echo")
                assert full.status_code == 429
                assert "queue of 1 is full" in full.json()["error"]["message"]
            assert waiting.result().status_code == 200  # the slot came free when the first one left
            assert running.log_entry(lambda entry: entry.get("queued_ms", 0) > 0)


def test_queue_gives_up_in_time(tmp_path: Path) -> None:
    with upstream() as backend:
        write_files(tmp_path, backend.url, concurrency_limits={"chat": 1}, queue={"max": 1, "timeout_sec": 1})
        with gateway(tmp_path) as running, _begun(running, "hang-mid"):
            timed_out = running.chat("echo")
            assert timed_out.status_code == 429
            assert timed_out.headers["retry-after"]


def test_leaving_the_queue_frees_its_place(tmp_path: Path) -> None:
    with upstream() as backend:
        write_files(tmp_path, backend.url, concurrency_limits={"chat": 1}, queue={"max": 1, "timeout_sec": 60})
        with gateway(tmp_path) as running, _begun(running, "hang-mid"):
            with send(running.port, "/v1/chat/completions", {"model": "echo", "messages": HI}):
                until(lambda: _queued(running) == 1, "it does not wait")
            until(lambda: _queued(running) == 0, "it still waits")
            assert len(backend.seen) == 1


@contextmanager
def _begun(running: Gateway, model: str) -> Iterator[None]:
    """A stream that has begun, until its client leaves at the end of the block."""
    body = {"model": model, "messages": HI, "stream": True}
    with running.client.stream("POST", "/v1/chat/completions", json=body) as answer:
        chunks = answer.iter_raw()
        assert next(chunks)
        yield


def _queued(running: Gateway) -> int:
    count: int = running.client.get("/v1/gateway/status").json()["admission_control"]["test.chat"]["queued"]
    return count
