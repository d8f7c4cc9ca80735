"""The gateway of the wheel as a process of its own: a token in the environment, one file with backends, no more."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import yaml

from tests.clients.appliance import Appliance, poll
from tests.gateway.conftest import free_ports

TOKEN = "a-token-of-this-test-0123456789"


def backends(url: str) -> dict[str, object]:
    record = {"class": "tools", "base_url": url, "supported_capabilities": ["chat"]}
    return {"backends": {"tools@here": {**record, "health": {"liveness": "/v1/models", "readiness": "/v1/models"}}}}


def environment(place: Path, token: str = TOKEN) -> dict[str, str]:
    """Only what is needed: nothing of the caller's own settings."""
    port = free_ports(1)[0]
    return {"PATH": os.environ["PATH"], "GATEWAY_BEARER_TOKEN": token, "OBSERVABILITY_PORT": str(port)}


def command(program: Path, place: Path, port: int) -> list[str | Path]:
    return [program, "serve", "--backends", place / "backends.yaml", "--data-dir", place, "--port", str(port)]


@contextmanager
def serving(program: Path, place: Path, url: str) -> Iterator[Appliance]:
    """`gateway serve --backends backends.yaml` until the end of the block; it must end well by itself on SIGTERM."""
    (place / "backends.yaml").write_text(yaml.safe_dump(backends(url)))
    port = free_ports(1)[0]
    with (place / "stderr").open("w") as stderr:
        process = subprocess.Popen(command(program, place, port), env=environment(place), stderr=stderr, cwd=place)
        try:
            poll(lambda: _health(process, port, place / "stderr"), "the gateway did not answer", 20)
            yield Appliance(f"http://127.0.0.1:{port}/v1", TOKEN)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            finally:
                process.kill()
    assert process.returncode == 0, (place / "stderr").read_text()


def _health(process: subprocess.Popen[bytes], port: int, stderr: Path) -> bool | None:
    assert process.poll() is None, stderr.read_text()
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).is_success or None
    except httpx.TransportError:
        return None
