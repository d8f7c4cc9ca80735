"""The gateway as a real process on real sockets, in front of the shared small model server."""

from __future__ import annotations

import json
import os
import re
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx
import pytest
import yaml

from tests.support import forks
from tests.support.forks import Forked
from tests.support.ports import free_ports
from tests.support.upstream import Upstream, upstream
from tests.support.waiting import PATIENCE_SEC, until

TOKEN = "test-token-0123456789abcdef"  # a test's own


@dataclass
class Gateway:
    """A running gateway. `client` sends the token, `observe` asks the second listener."""

    process: Forked | subprocess.Popen[bytes]
    port: int
    observe_port: int
    home: Path
    client: httpx.Client
    observe: httpx.Client

    def chat(self, model: str, **fields: Any) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], **fields}
        return self.client.post("/v1/chat/completions", json=body)

    def log_entries(self, count: int) -> list[dict[str, Any]]:
        """The request log's entries, once it has `count` of them."""
        return until(lambda: entries if len(entries := self._log()) >= count else [], f"not {count} entries")

    def log_entry(self, fits: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first entry that fits, once there is one."""
        return until(lambda: next(filter(fits, self._log()), {}), "no entry that fits")

    def entry_of(self, answer: httpx.Response) -> dict[str, Any]:
        """The entry of the request that was answered so."""
        return self.log_entry(lambda entry: bool(entry["request_id"] == answer.headers["x-request-id"]))

    @property
    def said(self) -> str:
        """The process log."""
        return (self.home / "process.log").read_text()

    def end(self) -> str:
        """Stops it, unless it has; the process log."""
        self.process.terminate()
        try:
            self.process.wait(PATIENCE_SEC)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(PATIENCE_SEC)
            raise
        return self.said

    def samples(self, name: str) -> dict[frozenset[tuple[str, str]], float]:
        """A metric's values by their labels."""
        found = {}
        for line in self.observe.get("/metrics").text.splitlines():
            if match := re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line):
                found[frozenset(re.findall(r'(\w+)="([^"]*)"', match[1] or ""))] = float(match[2])
        return found

    def value(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that have these labels."""
        return sum(number for has, number in self.samples(name).items() if has >= labels.items())

    def inflight(self) -> float:
        """The slots that are taken."""
        return self.value("gateway_backend_inflight")

    def is_idle(self) -> bool:
        """Nothing holds a slot or waits for one or for a connection, by the metrics and by the status."""
        waiting = map(self.value, ("gateway_backend_connections_waiting", "gateway_queue_waiting"))
        return not any((self.inflight(), self.held(), *waiting))

    def held(self) -> int:
        """The requests that have a slot or wait for one, by the status."""
        status = self.client.get("/v1/gateway/status").json()["admission_control"].values()
        return sum(one["inflight"] + one["queued"] for one in status)

    def wait_until_idle(self) -> None:
        until(self.is_idle, "something is held")

    def resident_kb(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0])

    def open_files(self) -> int:
        return sum(1 for _ in Path(f"/proc/{self.process.pid}/fd").iterdir())

    def _log(self) -> list[dict[str, Any]]:
        path = self.home / "data/requests.jsonl"
        whole = path.read_text().rpartition("\n")[0] if path.exists() else ""  # one may be half written
        return [json.loads(line) for line in whole.splitlines()]


def write_files(home: Path, url: str, /, also: Mapping[str, Mapping[str, Any]] = {}, **record: Any) -> None:
    """backends.yaml with one backend of class `test`, aliases, an empty data directory.

    `also` are more backends, by class and place; what a record leaves open is as the first backend's.
    """
    (home / "data").mkdir(exist_ok=True)
    common = {"base_url": url, "supported_capabilities": ["chat", "completions", "embeddings"]}
    records = {"test@here": {"class": "test", **common, "concurrency_limits": {"chat": 64}, **record}}
    for name, other in also.items():
        records[name] = {"class": name.partition("@")[0], **common, **other}
    (home / "backends.yaml").write_text(yaml.safe_dump({"backends": records}, sort_keys=False))
    aliases = {"default": "test:echo", "fast": {"backend": "test", "model": "echo"}}
    (home / "model_aliases.json").write_text(json.dumps({"aliases": aliases}))


def environment(home: Path, **settings: str) -> dict[str, str]:
    """What a gateway process is started with: nothing of the caller's own settings."""
    return {
        "PATH": os.environ["PATH"],
        "GATEWAY_BEARER_TOKEN": TOKEN,
        "GATEWAY_BACKENDS_PATH": str(home / "backends.yaml"),
        "MODEL_ALIASES_PATH": str(home / "model_aliases.json"),
        "REQUEST_LOG_PATH": str(home / "data/requests.jsonl"),
        "GATEWAY_DB_PATH": str(home / "data/gateway.sqlite"),
        "UI_IMAGE_DIR": str(home / "data/ui_images"),
        **settings,
    }


@contextmanager
def gateway(home: Path, tls: ssl.SSLContext | None = None, /, **settings: str) -> Iterator[Gateway]:
    """Runs `gateway serve`, asked by https with `tls`, until the end of the block.

    Fails when it does not end well by itself on SIGTERM.
    """
    port, observe_port = free_ports(2)
    env = environment(home, GATEWAY_PORT=str(port), OBSERVABILITY_PORT=str(observe_port), **settings)
    with (home / "process.log").open("w") as stderr:
        process = (_program if "PYTHONPATH" in env else forks.start)(env, stderr)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    scheme = "https" if tls else "http"
    common: Any = {"timeout": PATIENCE_SEC, "trust_env": False, "verify": tls or False}
    with (
        httpx.Client(base_url=f"{scheme}://127.0.0.1:{port}", headers=headers, **common) as client,
        httpx.Client(base_url=f"http://127.0.0.1:{observe_port}", **common) as observe,
    ):
        running = Gateway(process, port, observe_port, home, client, observe)
        try:
            until(lambda: _is_up(running), "the gateway did not come up")
            yield running
        finally:
            said = running.end()
    assert process.returncode == 0, said[-4000:]
    assert "Traceback" not in said, said


def _program(env: dict[str, str], stderr: IO[str]) -> subprocess.Popen[bytes]:
    """One that reads its PYTHONPATH."""
    return subprocess.Popen([sys.executable, "-m", "gateway", "serve"], env=env, stderr=stderr)


def _is_up(running: Gateway) -> bool:
    """Not before the backends are probed, so that the models' names are known."""
    assert running.process.poll() is None, f"the gateway ended: {running.said}"
    try:
        return "test:echo" in running.client.get("/v1/models").text
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def backend() -> Iterator[Upstream]:
    with upstream() as double:
        yield double


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, backend: Upstream) -> Iterator[Gateway]:
    """A gateway that a module's tests share."""
    home = tmp_path_factory.mktemp("gateway")
    write_files(home, backend.url)
    with gateway(home) as running:
        yield running


@pytest.fixture
def seen(backend: Upstream) -> Upstream:
    """The module's backend, with nothing seen yet."""
    backend.seen.clear()
    return backend


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., str]:
    """Runs a gateway that must refuse to start with exit code 2; gives what it said on stderr."""

    def run(**settings: str) -> str:
        path = tmp_path / "refused.log"
        with path.open("w") as stderr:
            status = forks.start(environment(tmp_path, **settings), stderr).wait(PATIENCE_SEC)
        said = path.read_text()
        assert status == 2, said
        assert "Traceback" not in said
        return said

    return run
