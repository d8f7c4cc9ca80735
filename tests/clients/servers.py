"""Real model servers, each a process of its own on a free port of loopback, ready before it is handed out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import yaml

from tests.support.environments import ROOT, environment
from tests.support.ports import free_ports
from tests.support.waiting import PATIENCE_SEC, until

HERE = Path(__file__).parent
HEAVY = ROOT / "tests" / "heavy"
LITELLM_KEY = "sk-litellm-of-this-test"
LITELLM_MODEL = "through-litellm"
SMOLLM2 = "smollm2-135m-instruct"
MLX_MODEL = "default_model"  # what mlx_lm.server calls the model that it was started with


@contextmanager
def started(
    argv: Sequence[str | Path],
    url: str,
    log: Path,
    variables: Mapping[str, str] | None = None,
    seconds: float = 120,
    inherited: Mapping[str, str] = os.environ,
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs `argv` until the end of the block, from when `url` answers 200; its output goes to `log`.

    Ended by SIGTERM to it and what it started, by SIGKILL after PATIENCE_SEC.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            env={**inherited, **(variables or {})},
            start_new_session=True,
        )
    try:
        until(lambda: _answers(process, url, log), f"{url} does not answer, see {log},", seconds)
        yield process
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(PATIENCE_SEC)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answers(process: subprocess.Popen[bytes], url: str, log: Path) -> bool:
    assert process.poll() is None, log.read_text(errors="replace")[-3000:]
    try:
        return httpx.get(url, trust_env=False, timeout=5).is_success
    except httpx.TransportError:
        return False


@contextmanager
def llamacpp(place: Path) -> Iterator[str]:
    """llama.cpp with SmolLM2 and a chat template that offers tools, which the model's own does not; its API's URL."""
    port = free_ports(1)[0]
    url = f"http://127.0.0.1:{port}"
    with started([sys.executable, HERE / "llamacpp.py", str(port)], f"{url}/health", place / "llamacpp.log"):
        yield f"{url}/v1"


@contextmanager
def mlx(place: Path) -> Iterator[str]:
    """mlx_lm.server with the model of mlx_model.py; its API's URL."""
    programs = environment(HERE / "mlx.txt")
    model, cache = place / "mlx-model", place / "huggingface"
    model.mkdir()
    (cache / "hub").mkdir(parents=True)  # without it /v1/models breaks off
    subprocess.run([programs / "python", HERE / "mlx_model.py", model], check=True)
    port = free_ports(1)[0]
    argv: list[str | Path] = [programs / "mlx_lm.server", "--model", model, "--host", "127.0.0.1", "--port", str(port)]
    url = f"http://127.0.0.1:{port}"
    with started(argv, f"{url}/health", place / "mlx.log", {"HF_HOME": str(cache), "HF_HUB_OFFLINE": "1"}):
        yield f"{url}/v1"


@contextmanager
def optillm(place: Path, upstream: str) -> Iterator[str]:
    """OptiLLM in front of a server that speaks OpenAI's API; its API's URL. No `--approach`: prefixes need that."""
    program = environment(HEAVY / "optillm.txt", HEAVY / "torch.txt") / "optillm"
    port = free_ports(1)[0]
    argv: list[str | Path] = [program, "--base-url", upstream, "--host", "127.0.0.1", "--port", str(port)]
    variables = {"OPENAI_API_KEY": "none", "HF_HUB_OFFLINE": "1", "HF_HOME": str(place / "huggingface")}
    url = f"http://127.0.0.1:{port}"
    with started(argv, f"{url}/health", place / "optillm.log", variables, seconds=300):
        yield f"{url}/v1"


@contextmanager
def litellm(place: Path, upstream: str, model: str) -> Iterator[str]:
    """LiteLLM's proxy with a key, in front of a server that speaks OpenAI's API; its API's URL."""
    served = {"model": f"openai/{model}", "api_base": upstream, "api_key": "none"}
    config = {
        "model_list": [{"model_name": LITELLM_MODEL, "litellm_params": served}],
        "general_settings": {"master_key": LITELLM_KEY},
        "litellm_settings": {"telemetry": False, "num_retries": 0},
    }
    (place / "litellm.yaml").write_text(yaml.safe_dump(config))
    port = free_ports(1)[0]
    program = environment(ROOT / "tests" / "bench" / "litellm.txt") / "litellm"
    argv: list[str | Path] = [program, "--config", place / "litellm.yaml", "--host", "127.0.0.1", "--port", str(port)]
    variables = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MODE": "PRODUCTION", "LITELLM_LOG": "ERROR"}
    url = f"http://127.0.0.1:{port}"
    with started(argv, f"{url}/health/liveliness", place / "litellm.log", variables, seconds=300):
        yield f"{url}/v1"
