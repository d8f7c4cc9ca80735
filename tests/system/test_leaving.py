"""When a client leaves, its backend sees it at once; when a gateway is stopped, answers under way end well."""

import asyncio
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from gateway.steps import Steps

from tests.support.authority import LOCAL, Authority
from tests.support.gateways import TOKEN, Gateway, gateway, write_files
from tests.support.hostile import deaf
from tests.support.sockets import connect, read_to_end, read_until, send
from tests.support.upstream import DONE, EVENT, Upstream, upstream
from tests.support.waiting import PATIENCE_SEC, until


def chat(port: int, model: str, stream: bool = False) -> socket.socket:
    """A request on a connection of its own, not waited for."""
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "stream": stream}
    return send(port, "/v1/chat/completions", body)


@pytest.mark.parametrize(
    ("model", "stream"),
    [("hang", False), ("hang", True), ("hang-mid", True)],
    ids=["non-streaming", "before the first token", "mid-stream"],
)
def test_backend_sees_its_client_leave(served: Gateway, seen: Upstream, model: str, stream: bool) -> None:
    with chat(served.port, model, stream) as connection:
        seen.wait_for(1)
        if model == "hang-mid":
            read_until(connection, b"data: ")
    seen.wait_for(1, left=True)
    served.wait_until_idle()
    entry = served.log_entry(lambda entry: entry.get("upstream_model") == model)
    assert entry["abort_reason"] == "client_disconnected"
    assert entry["status"] == (200 if model == "hang-mid" else 499)


def test_stop_cuts_what_does_not_end(tmp_path: Path, backend: Upstream, seen: Upstream) -> None:
    """Half of an answer is not to look like all of it, nor none like one."""
    write_files(tmp_path, backend.url)
    with gateway(tmp_path, GATEWAY_SHUTDOWN_TIMEOUT_SEC="1") as running:
        with chat(running.port, "hang-mid", stream=True) as begun, chat(running.port, "hang") as silent:
            seen.wait_for(2)
            read_until(begun, b"data: ")
            running.process.send_signal(signal.SIGTERM)
            assert not rest(begun).endswith(b"0\r\n\r\n")
            assert rest(silent) == b""
        assert running.process.wait(PATIENCE_SEC) == 0
        assert [entry.get("abort_reason") for entry in running.log_entries(2)].count("shutdown") == 2


def rest(connection: socket.socket) -> bytes:
    """What comes until the connection is closed or reset."""
    received = b""
    with suppress(ConnectionResetError):
        while data := connection.recv(65536):
            received += data
    return received


def test_told_again_and_again_to_stop_it_still_ends_well(tmp_path: Path, backend: Upstream) -> None:
    write_files(tmp_path, backend.url)
    with gateway(tmp_path) as running:
        deadline = time.monotonic() + PATIENCE_SEC
        while running.process.poll() is None:
            assert time.monotonic() < deadline, "it goes on"
            running.process.send_signal(signal.SIGTERM)
            time.sleep(0.001)  # more often than `until` looks: its last moments are short
    assert running.process.returncode == 0


@pytest.mark.parametrize(("signals", "is_tls"), [(1, False), (2, True)], ids=["plain, told once", "TLS, told twice"])
def test_stop_waits_for_no_client_for_ever(
    tmp_path: Path, backend: Upstream, seen: Upstream, signals: int, is_tls: bool
) -> None:
    """Whatever they do; with a second signal also where a stop has all the time in the world."""
    authority = Authority(tmp_path)
    authority.server(*LOCAL)
    write_files(tmp_path, backend.url)
    settings = {"GATEWAY_SHUTDOWN_TIMEOUT_SEC": "1" if signals == 1 else "1000"}
    if is_tls:
        settings |= {f"GATEWAY_TLS_{name}_PATH": str(tmp_path / "server.pem") for name in ("CERT", "KEY")}
    body = b'{"model": "%b", "messages": [{"role": "user", "content": "Hi"}]}'
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n".encode()
    hang, echo = (
        head + b"Content-Length: %d\r\n\r\n%b" % (len(text), text) for text in (body % b"hang", body % b"echo")
    )
    script = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n"
    clients = {
        "sends nothing": b"",
        "is idle": b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
        "half a head": head,
        "half a body": head + b"Content-Length: 1000\r\n\r\n{",
        "after a refusal": head + b"X: y\r\nHost: y\r\n\r\n",
        "after an early answer": head.replace(b"Bearer", b"x") + b"Content-Length: 1000\r\n\r\n{",
        "takes nothing": script * 20,
        "waits": hang + echo * 20,
    }
    with gateway(tmp_path, authority.client() if is_tls else None, **settings) as running, ExitStack() as stack:
        for sent in clients.values():
            client = stack.enter_context(connect(running.port, 4096))
            if is_tls:
                client = stack.enter_context(authority.client().wrap_socket(client, server_hostname="localhost"))
            client.sendall(sent)
        seen.wait_for(1)
        for number in range(signals):
            running.process.send_signal(signal.SIGTERM)
            if not number:
                until(lambda: not is_listening(running.port), "it does not stop")
        assert running.process.wait(PATIENCE_SEC) == 0
        assert running.log_entry(lambda entry: entry.get("upstream_model") == "hang")["abort_reason"] == "shutdown"


def is_listening(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_a_step_of_the_stop_that_hangs_is_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("gateway.steps.STOP_STEP_SEC", 0.1)

    async def hang() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    asyncio.run(Steps()._ended(hang))
    assert "hang did not end within" in caplog.text


HELD = """
import threading
from types import SimpleNamespace as Is
from gateway import server
server.{bound} = 0.1
servers = Is(should_exit=False, force_exit=False), Is(force_exit=False)
app = Is(cut=lambda: None)
stop = server._Stop(app, *servers, {patience})
{signals}
threading.Event().wait()  # whatever holds the stop for ever
"""


@pytest.mark.parametrize(
    ("bound", "patience", "signals"), [("STOP_MAX_SEC", 0, "stop()"), ("CUT_MAX_SEC", 3600, "stop(); stop()")]
)
def test_a_stop_that_does_not_end_leaves_with_0(bound: str, patience: int, signals: str) -> None:
    script = HELD.format(bound=bound, patience=patience, signals=signals)
    assert subprocess.run([sys.executable, "-c", script], timeout=PATIENCE_SEC, check=False).returncode == 0


def test_stop_lets_a_stream_end(tmp_path: Path, backend: Upstream) -> None:
    write_files(tmp_path, backend.url)
    with gateway(tmp_path) as running:
        with chat(running.port, "echo", stream=True) as connection:
            received = read_until(connection, b"data: ")
            running.process.send_signal(signal.SIGTERM)
            received += read_to_end(connection)
        assert EVENT % 2 in received
        assert DONE in received
        assert running.process.wait(PATIENCE_SEC) == 0


def test_clients_that_leave_as_their_backend_is_dialled_do_not_hold_the_stop(tmp_path: Path) -> None:
    """One backend accepts, so that some leave in the very moment; the other drops each SYN."""
    with upstream() as backend, deaf() as silent:
        silent.stop_hearing()
        address = f"http://127.0.0.1:{silent.port}/v1"
        write_files(tmp_path, backend.url, {"deaf@here": {"base_url": address}}, concurrency_limits={})
        with gateway(tmp_path, UPSTREAM_CONNECT_TIMEOUT_SEC="60", HEALTH_CHECK_INTERVAL_SEC="600") as running:
            held = []
            for models in (["deaf:x", "hang"] * 300, ["hang"] * 2_000):
                for model in models:
                    chat(running.port, model).close()
                running.wait_until_idle()
                held.append(running.resident_kb())
            assert held[1] - held[0] < 2_500
            chat(running.port, "hang").close()  # the last one may leave as the process does
            running.process.send_signal(signal.SIGTERM)
            assert running.process.wait(PATIENCE_SEC) == 0
