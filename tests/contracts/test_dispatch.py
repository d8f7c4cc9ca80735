"""What all handlers share of the way to a backend: clients that left before it, hosts that fail before its answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.contracts.test_faults import STREAMS, WHOLE, Way, ask, verdict, write_backends
from tests.support.chat_script import chat_script
from tests.support.gateways import gateway, write_files
from tests.support.sockets import send
from tests.support.upstream import upstream
from tests.support.wire import Script, chunked, wire
from tests.system.test_hosts import two_hosts
from tests.system.test_leaving import wait_until_idle


def test_client_that_leaves_before_its_backend_is_asked(tmp_path: Path) -> None:
    """Stored responses are read beside the event loop: who leaves meanwhile has left when the work begins."""
    with chat_script() as script:
        write_files(tmp_path, script.url)
        with gateway(tmp_path) as running:
            stored = running.client.post("/v1/responses", json={"model": "echo", "input": "Hi"}).json()["id"]
            request = {"model": "hang", "input": "Go on", "previous_response_id": stored}
            for number in range(30):
                headers = {"X-Request-Id": f"leaving-{number}"}
                send(running.port, "/v1/responses", request, headers=headers).close()
            for number in range(30):
                assert running.log_entry(_is(f"leaving-{number}"))["status"] == 499
            wait_until_idle(running)


def test_host_that_another_stood_in_for_has_failed(tmp_path: Path) -> None:
    with upstream() as gone, upstream() as there, two_hosts(tmp_path, gone.url, there.url) as running:
        gone.always = "die-before"
        assert running.chat("echo").status_code == 200
        failures = 'gateway_upstream_failures_total{backend="test@here",kind="closed"} 1.0'
        assert failures in running.client.get("/metrics").text


@pytest.mark.parametrize("way", STREAMS, ids=str)
def test_backend_that_said_all_and_stays(tmp_path: Path, way: Way) -> None:
    """Nobody waits for the end of its message: the client has its answer whole, the next one the slot."""
    with wire() as server:
        write_backends(tmp_path, server)
        server.script = Script(chunked(way.content_type, way.pieces(), is_whole=False), "hang")
        with gateway(tmp_path) as running:
            assert verdict(way, ask(running, way)) == WHOLE
            wait_until_idle(running)


@pytest.mark.parametrize(
    ("path", "content"),
    [("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}), ("/v1/responses", {"input": "Hi"})],
)
def test_time_that_a_silent_backend_took_is_told(tmp_path: Path, path: str, content: dict[str, Any]) -> None:
    with upstream() as backend:
        write_files(tmp_path, backend.url)
        with gateway(tmp_path, UPSTREAM_FIRST_BYTE_TIMEOUT_SEC="0.3") as running:
            assert running.client.post(path, json={"model": "hang", **content}).status_code == 504
            assert running.log_entry(lambda entry: entry["status"] == 504)["upstream_ms"] >= 300


def _is(request_id: str) -> Callable[[dict[str, Any]], bool]:
    return lambda entry: entry["request_id"] == request_id
