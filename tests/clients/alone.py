"""The gateway of the wheel as a process of its own: a token in the environment, one file with backends, no more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from release.build import build_wheel
from tests.clients.appliance import Appliance
from tests.clients.servers import started
from tests.support.ansible_run import ROOT
from tests.support.ports import free_ports

TOKEN = "a-token-of-this-test-0123456789"
Record = dict[str, Any]


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`gateway` of the wheel, in a virtual environment that holds nothing but it and what it depends on."""
    place = tmp_path_factory.mktemp("wheel")
    wheel = build_wheel(ROOT / "gateway_pkg", place)
    uv = Path(sys.executable).with_name("uv")
    install: list[str | Path] = [uv, "pip", "install", "--quiet", "--python", place / "venv" / "bin" / "python"]
    commands: tuple[list[str | Path], ...] = (
        [uv, "venv", "--quiet", "--python", sys.executable, place / "venv"],
        [*install, "--require-hashes", "-r", ROOT / "release" / "locks" / "gateway.txt"],
        [*install, "--no-deps", wheel],
    )
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return place / "venv" / "bin" / "gateway"


def record(backend_class: str, url: str, *capabilities: str, **fields: Any) -> Record:
    """A backend that is alive when it lists its models; chat is what it can when nothing is named."""
    health = {"liveness": "/v1/models", "readiness": "/v1/models"}
    common = {"class": backend_class, "base_url": url, "supported_capabilities": list(capabilities or ("chat",))}
    return {**common, "health": health, **fields}


def environment(place: Path, token: str = TOKEN) -> dict[str, str]:
    """Only what is needed: nothing of the caller's own settings."""
    port = free_ports(1)[0]
    return {"PATH": os.environ["PATH"], "GATEWAY_BEARER_TOKEN": token, "OBSERVABILITY_PORT": str(port)}


def command(program: Path, place: Path, port: int) -> list[str | Path]:
    return [program, "serve", "--backends", place / "backends.yaml", "--data-dir", place, "--port", str(port)]


@contextmanager
def fronting(
    program: Path, place: Path, records: Mapping[str, Record], aliases: Mapping[str, Any] | None = None, **settings: str
) -> Iterator[Appliance]:
    """`gateway serve --backends backends.yaml` until the end of the block; it must end well by itself on SIGTERM."""
    (place / "backends.yaml").write_text(yaml.safe_dump({"backends": dict(records)}))
    env = environment(place) | settings
    if aliases is not None:
        (place / "model_aliases.json").write_text(json.dumps({"aliases": dict(aliases)}))
        env["MODEL_ALIASES_PATH"] = str(place / "model_aliases.json")
    port = free_ports(1)[0]
    url, log = f"http://127.0.0.1:{port}", place / "stderr"
    with started(command(program, place, port), f"{url}/health", log, inherited=env) as process:
        yield Appliance(f"{url}/v1", TOKEN)
    assert process.returncode == 0, log.read_text()
