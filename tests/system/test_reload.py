"""Backends, aliases and policies are read again while streams go on; what is broken stays as it last was."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import IO, Any

import httpx
import pytest

from tests.support.gateways import TOKEN, Gateway, environment, gateway, write_files
from tests.support.ports import free_ports
from tests.support.upstream import DONE, EVENT, Seen, Upstream, _write, running
from tests.support.waiting import PATIENCE_SEC, until
from tests.support.wire import chunked

BOT = "bot-token-0123456789abcdefgh"
BROKEN = {
    "backends.yaml": "backends: [",
    "model_aliases.json": '{"aliases": {"fast": "no class"}}',
    "policies.json": f'{{"{BOT}": {{"requests_per_min": 1}}}}',
}


@dataclass
class Held(Upstream):
    """Streams one event, and the rest when `go` is set."""

    go: threading.Event = field(default_factory=threading.Event)

    async def _act(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not seen.json.get("stream"):
            await super()._act(seen, reader, writer)
            return
        events = chunked("text/event-stream", [EVENT % number for number in range(50)] + [DONE])
        await _write(writer, b"".join(events[:2]))
        await asyncio.to_thread(self.go.wait, PATIENCE_SEC)
        await _write(writer, b"".join(events[2:]))


WHOLE_STREAM = b"".join(EVENT % number for number in range(50)) + DONE


@contextmanager
def reloadable(home: Path, url: str, **settings: str) -> Iterator[Gateway]:
    write_files(home, url)
    policies = home / "policies.json"
    policies.write_text("{}")
    settings |= {"GATEWAY_BEARER_TOKENS": f"{TOKEN},{BOT}", "GATEWAY_TOKEN_POLICIES_PATH": str(policies)}
    with gateway(home, None, **settings) as started:
        yield started


def reload(running_gateway: Gateway) -> tuple[int, dict[str, Any]]:
    answer = running_gateway.client.post("/v1/gateway/reload")
    return answer.status_code, answer.json()


def write_aliases(home: Path, **aliases: str) -> None:
    (home / "model_aliases.json").write_text(json.dumps({"aliases": {"default": "test:echo", **aliases}}))


@contextmanager
def held(home: Path) -> Iterator[tuple[Gateway, Held, Held]]:
    """A gateway before the first of two such servers."""
    with running(Held()) as first, running(Held()) as second, reloadable(home, first.url) as served:
        try:
            yield served, first, second
        finally:
            first.go.set()
            second.go.set()


@contextmanager
def streaming(served: Gateway, server: Held) -> Iterator[None]:
    """A stream that is under way during the block and comes whole."""
    body = {"model": "fast", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    with served.client.stream("POST", "/v1/chat/completions", json=body) as stream:
        chunks = stream.iter_raw()
        received = next(chunks)
        assert received == EVENT % 0
        yield
        server.go.set()
        assert received + b"".join(chunks) == WHOLE_STREAM


def test_stream_goes_on_while_its_backend_and_aliases_change(tmp_path: Path) -> None:
    with held(tmp_path) as (served, first, second):
        with streaming(served, first):
            write_files(tmp_path, second.url)
            write_aliases(tmp_path, fast="test:echo", new="test:echo")
            (tmp_path / "policies.json").write_text(BROKEN["policies.json"])
            served.process.send_signal(signal.SIGHUP)
            until(lambda: served.chat("new").status_code == 200, "the new alias is not known")
            second.seen.clear()
            assert served.chat("fast").status_code == 200
            assert len(second.seen) == 1
        # Its slot is given back to whom it was of: nothing of the new backend's is counted down.
        chats = served.client.get("/v1/gateway/status").json()["admission_control"]["test.chat"]
        assert (chats["inflight"], chats["available"]) == (0, 64)


def test_broken_files_keep_the_last_good_ones_mid_stream(tmp_path: Path) -> None:
    with held(tmp_path) as (served, first, _):
        with streaming(served, first):
            good = {name: (tmp_path / name).read_text() for name in BROKEN}
            for name, text in BROKEN.items():
                (tmp_path / name).write_text(text)
            status, report = reload(served)
            assert (status, report["ok"], report["reloaded"]) == (409, False, [])
            assert [Path(kept["file"]).name for kept in report["kept"]] == list(BROKEN)
            assert "did you mean 'requests_per_minute'?" in report["kept"][2]["problems"][0]
            assert BOT not in json.dumps(report)
            assert served.chat("fast").status_code == 200
            # What is mended is taken, one file at a time, though the others are still broken.
            write_aliases(tmp_path, fast="test:echo", mended="test:echo")
            served.process.send_signal(signal.SIGHUP)
            until(lambda: served.chat("mended").status_code == 200, "the mended file was not read")
            for name, text in good.items():
                (tmp_path / name).write_text(text)
        status, report = reload(served)
        assert (status, report["ok"], report["kept"]) == (200, True, [])
        assert [Path(file).name for file in report["reloaded"]] == list(BROKEN)
        assert served.chat("mended").status_code == 404


@pytest.mark.parametrize("name", BROKEN)
def test_file_that_vanishes_keeps_the_last_good_one(reloaded: Gateway, name: str) -> None:
    path = reloaded.home / name
    good = path.read_text()
    path.unlink()
    status, report = reload(reloaded)
    path.write_text(good)
    (kept,) = report["kept"]
    assert (status, Path(kept["file"]).name, len(report["reloaded"])) == (409, name, 2)
    assert "does not exist" in kept["problems"][0]
    assert reloaded.chat("fast").status_code == 200


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory: pytest.TempPathFactory, backend: Upstream) -> Iterator[Gateway]:
    with reloadable(tmp_path_factory.mktemp("reloaded"), backend.url) as served:
        yield served


def test_policies_change_under_way(tmp_path: Path, backend: Upstream) -> None:
    with reloadable(tmp_path, backend.url) as served, httpx.Client(timeout=PATIENCE_SEC) as bot:
        bot.headers["Authorization"] = f"Bearer {BOT}"
        url = f"http://127.0.0.1:{served.port}/v1/chat/completions"
        body = {"model": "fast", "messages": [{"role": "user", "content": "Hi"}]}

        def put(policy: dict[str, Any]) -> None:
            (tmp_path / "policies.json").write_text(json.dumps({BOT: policy}))
            assert reload(served)[0] == 200

        assert bot.post(url, json=body).status_code == 200
        put({"requests_per_minute": 2})
        assert [bot.post(url, json=body).status_code for _ in range(3)] == [200, 200, 429]
        put({"requests_per_minute": 3})
        assert [bot.post(url, json=body).status_code for _ in range(2)] == [200, 429]
        put({"models_allowlist": ["other"]})
        assert bot.post(url, json=body).status_code == 403
        (tmp_path / "policies.json").write_text("{")
        assert reload(served)[0] == 409
        assert bot.post(url, json=body).status_code == 403
        put({})
        assert bot.post(url, json=body).status_code == 200
        # A token that is known by its policy is not an operator's.
        refused = bot.post(f"http://127.0.0.1:{served.port}/v1/gateway/reload")
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "admin_required")
        entries = served.log_entries(16)
        assert {entry["token"] for entry in entries} == {
            sha256(token.encode()).hexdigest()[:8] for token in (TOKEN, BOT)
        }


def test_backends_come_and_go(tmp_path: Path) -> None:
    with held(tmp_path) as (served, first, second):
        write_files(tmp_path, first.url, {"other@here": {"base_url": second.url}})
        assert reload(served)[0] == 200
        assert served.chat("other:echo").status_code == 200
        assert len(second.seen) == 1
        # The prober knows the new one, and its models are listed.
        until(lambda: "other:echo" in served.client.get("/v1/models").text, "the new backend is not probed")
        write_files(tmp_path, first.url)
        assert reload(served)[0] == 200
        assert served.chat("other:echo").status_code == 404
        assert list(served.client.get("/v1/gateway/status").json()["backend_health"]) == ["test"]


def test_many_reloads_at_once(reloaded: Gateway) -> None:
    with ThreadPoolExecutor(8) as threads:
        reloads = [threads.submit(reload, reloaded) for _ in range(24)]
        for _ in range(24):
            reloaded.process.send_signal(signal.SIGHUP)
            assert reloaded.chat("fast").status_code == 200
        assert {future.result()[0] for future in reloads} == {200}
    write_aliases(reloaded.home, last="test:echo", fast="test:echo")
    reloaded.process.send_signal(signal.SIGHUP)
    until(lambda: reloaded.chat("last").status_code == 200, "the last signal was lost")


def test_a_signal_before_the_gateway_is_up_waits_for_it(tmp_path: Path, backend: Upstream) -> None:
    """It may come after the files were read for the start: then what they say now counts as soon as it can."""
    write_files(tmp_path, backend.url)
    aliases, changed = tmp_path / "model_aliases.json", tmp_path / "changed.json"
    changed.write_text('{"after": "test:echo"}')
    aliases.unlink()
    os.mkfifo(aliases)
    port, observe_port = free_ports(2)
    env = environment(tmp_path, GATEWAY_PORT=str(port), OBSERVABILITY_PORT=str(observe_port))
    with subprocess.Popen([sys.executable, "-m", "gateway", "serve"], env=env, stderr=subprocess.DEVNULL) as process:
        try:
            with _open_when_read(aliases) as fifo:
                process.send_signal(signal.SIGHUP)
                changed.replace(aliases)
                fifo.write('{"before": "test:echo"}')
            headers = {"Authorization": f"Bearer {TOKEN}"}
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, trust_env=False) as client:
                until(lambda: _aliases(client) == {"after"}, "it did not reload")
        finally:
            process.terminate()
        assert process.wait(20) == 0


def _open_when_read(fifo: Path) -> IO[str]:
    """To write to somebody who has opened it and waits for what is in it."""
    opened: list[int] = []

    def is_open() -> bool:
        with contextlib.suppress(OSError):  # nobody reads it yet
            opened.append(os.open(fifo, os.O_WRONLY | os.O_NONBLOCK))
        return bool(opened)

    until(is_open, f"{fifo} is not read")
    return os.fdopen(opened[0], "w")


def _aliases(client: httpx.Client) -> set[str]:
    """The aliases that a gateway lists, none before it is up."""
    try:
        return {model["id"] for model in client.get("/v1/models").json()["data"]} & {"before", "after"}
    except httpx.TransportError:
        return set()
