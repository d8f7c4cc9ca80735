"""Several hosts of a class, the usage of streams, aliases with caps: routing as its clients see it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateways import Gateway, gateway, write_files
from tests.support.upstream import DONE, EVENT, USAGE, Upstream, upstream
from tests.support.waiting import until
from tests.support.wire import Script, Wire, wire

STREAM = b"".join(EVENT % number for number in range(3))
HI = [{"role": "user", "content": "Hi"}]
ABLE = ["chat", "rerank", "tts", "transcription"]
POISONED = "pair0"  # the class that is asked for everything
TRANSLATED = pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])


@dataclass
class Hosts:
    """A class of two hosts that no test before has asked, `here` and `there`; of equally loaded ones `here` is taken.

    `torn` and `gone` are the first hosts of classes `torn` and `lost`. Probes are rare: a request finds out first.
    """

    gateway: Gateway
    name: str
    here: Upstream
    there: Upstream
    torn: Wire
    gone: Upstream

    def chat(self, model: str, **fields: Any) -> int:
        return self.gateway.chat(f"{self.name}:{model}", **fields).status_code

    def post(self, path: str, name: str = "", **fields: Any) -> int:
        body = {"model": f"{name or self.name}:echo", "max_tokens": 9, "messages": HI, **fields}
        return self.gateway.client.post(path, json=body).status_code

    @property
    def asked(self) -> tuple[int, int]:
        return len(self.here.seen), len(self.there.seen)

    @contextmanager
    def begun(self) -> Iterator[None]:
        """A stream that has begun, until its client leaves at the end of the block."""
        body = {"model": f"{self.name}:hang-mid", "messages": HI, "stream": True}
        with self.gateway.client.stream("POST", "/v1/chat/completions", json=body) as answer:
            chunks = answer.iter_raw()
            assert next(chunks)
            yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hosts, Iterator[int]]]:
    home = tmp_path_factory.mktemp("hosts")
    with upstream() as here, upstream() as there, wire() as torn, upstream() as gone:
        able = {"supported_capabilities": ABLE}
        others: dict[str, dict[str, Any]] = {}
        for name, server in (("torn", torn), ("lost", gone)):
            others |= {f"{name}@here": {"base_url": server.url}, f"{name}@there": {"base_url": there.url}}
        for number in range(20):
            others |= {f"pair{number}@here": able, f"pair{number}@there": {**able, "base_url": there.url}}
        for name, told in (("first", True), ("second", False)):
            others[f"{name}@here"] = {"stream_usage": told}
            others[f"{name}@there"] = {"stream_usage": not told, "base_url": there.url}
        write_files(home, here.url, {**others, "mute": {"stream_usage": False}})
        settings = {f"{kind}_BACKEND_CLASS": POISONED for kind in ("TTS", "TRANSCRIPTION")}
        with gateway(home, None, **settings, HEALTH_CHECK_INTERVAL_SEC="600") as running:
            yield Hosts(running, "", here, there, torn, gone), count(1)


@pytest.fixture
def hosts(made: tuple[Hosts, Iterator[int]]) -> Hosts:
    one, numbers = made
    one.name = f"pair{next(numbers)}"
    for server in (one.here, one.there):
        server.seen.clear()
        server.always = ""
    return one


def test_host_that_is_gone_costs_its_clients_nothing(hosts: Hosts) -> None:
    hosts.name = "lost"
    hosts.gone.refuse()
    assert [hosts.chat("echo") for _ in range(4)] == [200] * 4
    assert len(hosts.there.seen) == 4
    assert hosts.gateway.value("gateway_retries_total", backend_class="lost") == 1
    assert hosts.gateway.value("gateway_upstream_failures_total", backend="lost@here", kind="connect") == 1
    assert hosts.gateway.log_entry(lambda entry: bool(entry.get("retried")))["backend"] == "lost@there"


def test_class_is_ready_while_one_of_its_hosts_is(tmp_path: Path) -> None:
    with upstream() as here, upstream() as there:
        write_files(tmp_path, here.url, {"test@there": {"base_url": there.url}})
        with gateway(tmp_path, HEALTH_CHECK_INTERVAL_SEC="0.05") as running:

            def ready() -> tuple[int, list[bool]]:
                report = running.observe.get("/readyz")
                return report.status_code, [state["ready"] for state in report.json()["backends"].values()]

            here.healthy = False
            until(lambda: ready() == (200, [False, True]), "one of two is not enough")
            assert running.chat("echo").status_code == 200
            there.healthy = False
            until(lambda: ready() == (503, [False, False]), "none is enough")
            answer = running.chat("echo")
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "backend_not_ready")
            assert answer.headers["retry-after"] == "30"
            assert [running.client.get(path).status_code for path in ("/readyz", "/health")] == [503, 200]
            here.healthy = True
            until(lambda: running.chat("echo").status_code == 200, "not probed back in")
            assert ready() == (200, [True, False])


# Requests of the hot route, of a translated one, of a form and so on, as httpx names their parts.
POISON: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"json": {"model": f"{POISONED}:echo", "messages": HI}},
    "/v1/messages": {"json": {"model": f"{POISONED}:echo", "max_tokens": 9, "messages": HI}},
    "/v1/rerank": {"json": {"model": f"{POISONED}:echo", "query": "Hi", "documents": ["Hi"]}},
    "/v1/audio/speech": {"json": {"model": f"{POISONED}:echo", "input": "Hi"}},
    "/v1/audio/transcriptions": {"data": {"model": f"{POISONED}:echo"}, "files": {"file": ("a.wav", b"RIFF")}},
}


def test_request_that_ends_its_connections_is_sent_twice_and_takes_no_host_from_others(hosts: Hosts) -> None:
    hosts.name = POISONED
    for path, poison in POISON.items():
        for is_kept in (True, False):
            if is_kept:
                with hosts.begun():
                    assert hosts.chat("echo") == 200
                assert hosts.chat("echo") == 200
            hosts.here.seen.clear()
            hosts.there.seen.clear()
            hosts.here.always = hosts.there.always = "die-before"
            answer = hosts.gateway.client.post(path, **poison)
            hosts.here.always = hosts.there.always = ""
            assert (answer.status_code, answer.json()["error"].get("code", "")) in (
                (503, "backend_not_ready"),
                (503, ""),  # Anthropic's errors have no code
            ), path
            assert sum(hosts.asked) == 2, path
            states = hosts.gateway.observe.get("/readyz").json()["backends"]
            assert [states[f"{POISONED}@{place}"]["ready"] for place in ("here", "there")] == [True, True], path


def test_nothing_is_tried_again_after_the_first_byte(hosts: Hosts) -> None:
    answer = hosts.gateway.chat(f"{hosts.name}:die-mid", stream=True)
    assert b"upstream_closed" in answer.content
    assert DONE not in answer.content
    assert sum(hosts.asked) == 1


@TRANSLATED
def test_half_a_head_is_a_first_byte_too(hosts: Hosts, path: str) -> None:
    hosts.torn.seen.clear()
    hosts.torn.script = Script((b"HTTP/1.1 200 OK\r\nContent-Ty",), "close")
    assert hosts.post(path, "torn") == 502
    assert (len(hosts.torn.seen), hosts.asked) == (1, (0, 0))


@TRANSLATED
def test_only_failures_in_a_row_open_a_circuit(hosts: Hosts, path: str) -> None:
    for always, status in [("status-500", 502), ("status-500", 502), ("", 200)] * 2:
        hosts.here.always = always
        assert hosts.post(path) == status
    assert hosts.asked == (6, 0)


@pytest.mark.proves("/v1/chat/completions", "stream", "stream_options.include_usage", backend="openai")
@pytest.mark.parametrize("name", ["test", "mute"])
def test_usage_event_goes_to_who_asked_for_it(hosts: Hosts, name: str) -> None:
    """Every backend but one that knows no stream options is asked for it."""
    for options in ({"include_usage": True}, {"include_usage": False}, None):
        fields = {"stream_options": options} if options else {}
        answer = hosts.gateway.chat(f"{name}:echo", stream=True, **fields)
        assert answer.content == STREAM + (USAGE if options and options["include_usage"] else b"") + DONE
        sent = options if name == "mute" else {"include_usage": True}
        assert hosts.here.seen.pop().json.get("stream_options") == sent
        told = hosts.gateway.entry_of(answer).get("output_tokens")
        assert told == (3 if sent and sent["include_usage"] else None)


@TRANSLATED
@pytest.mark.parametrize("name", ["first", "second"])
def test_the_other_host_is_asked_for_the_usage_that_it_can_tell(hosts: Hosts, path: str, name: str) -> None:
    hosts.here.always = "die-before"
    assert hosts.post(path, name, stream=True) == 200
    (first,), (second,) = hosts.here.seen, hosts.there.seen
    assert ("stream_options" in first.json, "stream_options" in second.json) == (name == "first", name == "second")


@pytest.fixture(scope="module")
def capped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Gateway, Upstream]]:
    home = tmp_path_factory.mktemp("capped")
    with upstream() as backend:
        write_files(home, backend.url)
        aliases = {
            "default": "test:echo",
            "fast": {"backend": "test", "model": "echo", "tools": False, "max_tokens": 9, "temperature_cap": 0.5},
            "coder": {"backend": "test", "model": "no-done", "tools": True},
        }
        (home / "model_aliases.json").write_text(json.dumps(aliases))
        settings = {"ROUTER_ENABLE_POLICY": "true", "ROUTER_ENABLE_REQUEST_TYPE": "true"}
        with gateway(home, None, **settings) as running:
            yield running, backend


@pytest.mark.parametrize(
    ("fields", "headers", "reason"),
    [
        ({}, {}, "policy:fast->alias:fast"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, {}, "policy:tools->alias:default"),
        ({}, {"X-Request-Type": "coding"}, "policy:coding->alias:coder"),
        ({"messages": [{"role": "user", "content": "fix my python bug"}]}, {}, "policy:coding->alias:coder"),
        ({"model": "no-done"}, {}, "pinned:model"),
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
    assert running.entry_of(answer)["has_tools"] == ("tools" in fields)
