"""What is measured: each a program in front of the trivial upstream, started the way its users start it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import yaml

from tests.bench.load import Target, once
from tests.bench.processes import GATEWAY_CORE, LOAD_CORE, running
from tests.support.environments import environment
from tests.support.ports import free_ports

HERE = Path(__file__).parent
BUILD = HERE.parents[1] / "build" / "bench"
TOKEN = "bench-" + hashlib.sha256(os.urandom(32)).hexdigest()
START_LIMIT = 120  # seconds


@dataclass(frozen=True)
class Subject:
    """A running program under measurement."""

    name: str
    target: Target
    pid: int
    started: float  # seconds from its start to the first 200 of a chat


class Start(Protocol):
    """How a subject is started: its directory, the upstream's port, and how many connections it may have there."""

    def __call__(
        self, place: Path, upstream_port: int, connections: int | None = None
    ) -> contextlib.AbstractContextManager[Subject]: ...


@contextlib.contextmanager
def started(
    name: str, argv: list[str | Path], port: int, log: Path, environment: dict[str, str], token: str
) -> Iterator[Subject]:
    """Start `argv` on the gateway's core and wait for the first 200 of a chat through it."""
    target = Target(port, token)
    request = target.request()
    began = time.monotonic()
    with running(argv, GATEWAY_CORE, log, environment) as process:
        answer = b""
        while not answer.startswith(b"HTTP/1.1 200"):
            if process.poll() is not None or time.monotonic() - began > START_LIMIT:
                tail = log.read_text(errors="replace")[-2000:]
                sys.exit(f"bench: {name} did not start; last answer {answer[:300]!r}; its log ends:\n{tail}")
            time.sleep(0.005)
            with contextlib.suppress(OSError):
                answer = once(target, request)
        yield Subject(name, target, process.pid, time.monotonic() - began)


@contextlib.contextmanager
def upstream() -> Iterator[Target]:
    """The trivial upstream, on the core of the load generator."""
    process = subprocess.Popen(
        ["taskset", "--cpu-list", str(LOAD_CORE), sys.executable, str(HERE / "upstream.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin and process.stdout
    try:
        yield Target(int(process.stdout.readline()))
    finally:
        process.stdin.close()
        process.wait(10)


def gateway(
    place: Path, upstream_port: int, connections: int | None = None
) -> contextlib.AbstractContextManager[Subject]:
    """The gateway with everything on: token, alias, admission, metrics, request log to disk."""
    backend: dict[str, object] = {
        "class": "bench",
        "base_url": f"http://127.0.0.1:{upstream_port}/v1",
        "description": "the trivial upstream",
        "supported_capabilities": ["chat"],
        "concurrency_limits": {"chat": 256},
        "health": {"liveness": "/health", "readiness": "/health"},
        "optional": False,
    }
    if connections:
        backend["max_connections"] = connections
    aliases = {
        "default": {"backend": "bench", "model": "bench-model"},
        "hang": {"backend": "bench", "model": "bench-hang"},
        "endless": {"backend": "bench", "model": "bench-endless"},
        "stamped": {"backend": "bench", "model": "bench-stamped"},
    }
    (place / "backends.yaml").write_text(yaml.safe_dump({"backends": {"bench@local": backend}}))
    (place / "model_aliases.json").write_text(json.dumps({"aliases": aliases}))
    (place / ".env").write_text(f"GATEWAY_BEARER_TOKEN={TOKEN}\n")
    (place / ".env").chmod(0o600)
    port = free_ports(1)[0]
    environment = {
        "GATEWAY_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "OBSERVABILITY_HOST": "127.0.0.1",
        "OBSERVABILITY_PORT": str(free_ports(1)[0]),
        "GATEWAY_BACKENDS_PATH": str(place / "backends.yaml"),
        "MODEL_ALIASES_PATH": str(place / "model_aliases.json"),
        "REQUEST_LOG_PATH": str(place / "requests.jsonl"),
        "GATEWAY_DB_PATH": str(place / "gateway.sqlite"),
        "UI_IMAGE_DIR": str(place / "images"),
    }
    argv: list[str | Path] = [Path(sys.executable).with_name("gateway"), "serve", "--env-file", place / ".env"]
    return started("gateway", argv, port, place / "gateway.log", environment, TOKEN)


def passthrough(place: Path, upstream_port: int) -> contextlib.AbstractContextManager[Subject]:
    """A bare pass-through on the same server and client as the gateway: what neither of them can be faster than."""
    port = free_ports(1)[0]
    argv: list[str | Path] = [sys.executable, HERE / "passthrough.py", str(port), str(upstream_port)]
    return started("pass-through", argv, port, place / "passthrough.log", {}, "")


def install_litellm() -> Path:
    """The directory of its programs."""
    return environment(HERE / "litellm.txt")


def litellm(
    place: Path, upstream_port: int, connections: int | None = None
) -> contextlib.AbstractContextManager[Subject]:
    """LiteLLM's proxy, one worker, with a key; it has no limit of connections, so a limit of parallel requests."""
    models = {"default": "bench-model", "hang": "bench-hang", "endless": "bench-endless", "stamped": "bench-stamped"}
    limit = {"max_parallel_requests": connections} if connections else {}
    config = {
        "model_list": [
            {
                "model_name": alias,
                "litellm_params": {
                    "model": f"openai/{model}",
                    "api_base": f"http://127.0.0.1:{upstream_port}/v1",
                    "api_key": "none",
                    **limit,
                },
            }
            for alias, model in models.items()
        ],
        "general_settings": {"master_key": f"sk-{TOKEN}"},
        "litellm_settings": {"telemetry": False},
    }
    (place / "litellm.yaml").write_text(yaml.safe_dump(config))
    port = free_ports(1)[0]
    variables = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR"}
    argv: list[str | Path] = [install_litellm() / "litellm", "--config", place / "litellm.yaml"]
    argv += ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    return started("LiteLLM", argv, port, place / "litellm.log", variables, f"sk-{TOKEN}")
