"""The launcher of llama.cpp's server, run with the real model: it serves, stops and refuses as the role says."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.support.ports import free_ports
from tests.support.waiting import PATIENCE_SEC, until

LAUNCHER = Path(__file__).parents[2] / "roles/llamacpp/files/llamacpp_server.py"
MODEL = "smollm2-135m-instruct"


def command(port: int, *further: str) -> list[str]:
    arguments = ["--host", "127.0.0.1", "--port", str(port), "--model-name", MODEL]
    sizes = ["--context-size", "512", "--parallel", "2", "--threads", "1"]
    return [sys.executable, "-I", str(LAUNCHER), *arguments, *sizes, *further]


def healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a running server; that SIGTERM ends it with 0 is checked at the end."""
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command(port), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            until(lambda: process.poll() is not None or healthy(url), "not healthy", 120)
            assert process.poll() is None, f"exited with {process.returncode} before it was healthy"
            yield url
        finally:
            process.terminate()
            assert process.wait(PATIENCE_SEC) == 0


@pytest.fixture
def client(server: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0) as sdk:
        yield sdk


def test_the_model_has_the_name_and_the_context_that_were_asked_for(client: openai.OpenAI) -> None:
    (model,) = client.models.list()
    assert model.id == MODEL
    assert model.model_extra is not None
    assert model.model_extra["meta"]["n_ctx"] == 512  # each of the two slots, not both together


def test_it_answers_and_streams(client: openai.OpenAI) -> None:
    question: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Say hello."}]
    answer = client.chat.completions.create(model=MODEL, messages=question, max_tokens=8)
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert 0 < answer.usage.completion_tokens <= 8
    stream = client.chat.completions.create(model=MODEL, messages=question, max_tokens=8, stream=True)
    assert "".join(event.choices[0].delta.content or "" for event in stream if event.choices)


def test_it_shows_metrics_but_no_prompts_of_others_and_no_page(server: str) -> None:
    assert "llamacpp:prompt_tokens_total" in httpx.get(f"{server}/metrics").text
    assert httpx.get(f"{server}/slots").status_code == 501
    assert httpx.get(f"{server}/").status_code == 404


def test_web_pages_may_not_use_it(server: str) -> None:
    answer = httpx.get(f"{server}/health", headers={"origin": "http://elsewhere.example"})
    assert answer.headers.get("access-control-allow-origin", "") == ""


def refusal(*arguments: str, port: int) -> str:
    """The one line with which it gives up, exit code 1; llama.cpp's own log may go on after it."""
    done = subprocess.run(command(port, *arguments), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    (said,) = (line for line in done.stderr.splitlines() if line.startswith("llamacpp: "))
    return said


def test_a_taken_port_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refusal(port=port)
    reason = "Address already in use; choose another --port"
    assert said == f"llamacpp: cannot listen on 127.0.0.1 port {port}: {reason}"


def test_a_missing_model_is_one_clear_line(tmp_path: Path) -> None:
    said = refusal("--model", str(tmp_path / "none.gguf"), port=free_ports(1)[0])
    assert said == f"llamacpp: there is no model {tmp_path}/none.gguf; name a GGUF file with --model"


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"this is not a model")
    assert refusal("--model", str(tmp_path / "bad.gguf"), port=free_ports(1)[0])
