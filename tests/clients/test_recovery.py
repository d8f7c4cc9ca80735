"""The model's process is killed in the middle of a stream: what a client sees until the service manager has it back."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.clients.appliance import Appliance
from tests.support.waiting import until

COUNT: Any = [{"role": "user", "content": "Count to a thousand."}]
LONG: dict[str, Any] = {"model": "default", "messages": COUNT, "max_tokens": 1500, "ignore_eos": True, "stream": True}
BACK = 120  # seconds that the service manager and the model's start may take


@pytest.fixture
def root(appliance: Appliance) -> Path:
    if appliance.root is None:
        pytest.skip("only an appliance that the tests provisioned may be broken; unset APPLIANCE_URL")
    return appliance.root


@pytest.fixture
def http(appliance: Appliance) -> Iterator[httpx.Client]:
    with appliance.http() as client:
        yield client


@contextmanager
def model_killed(root: Path) -> Iterator[None]:
    """SIGKILL to the process that supervisor runs as llamacpp, which has to wait for the end of the block with it."""
    control = root / "var/lib/supervisor/env/bin/supervisorctl"
    ask: list[str | Path] = [control, "-c", root / "etc/appliance/supervisord.conf", "pid", "llamacpp"]
    pid = int(subprocess.run(ask, capture_output=True, text=True, check=True).stdout)
    supervisor = int((root / "run/supervisord.pid").read_text())
    os.kill(supervisor, signal.SIGSTOP)
    try:
        os.kill(pid, signal.SIGKILL)
        yield
    finally:
        os.kill(supervisor, signal.SIGCONT)


def is_back(http: httpx.Client) -> bool:
    """What is not a 200 must be a 503 that says what is wrong."""
    answer = http.post("/chat/completions", json={"model": "default", "messages": COUNT, "max_tokens": 4})
    if answer.status_code == 200:
        return True
    assert answer.status_code == 503, answer.text
    error = answer.json()["error"]
    assert error["code"] == "backend_not_ready"
    assert "llamacpp" in error["message"]
    assert int(answer.headers["retry-after"]) > 0
    return False


def test_model_killed_mid_stream(root: Path, http: httpx.Client) -> None:
    with http.stream("POST", "/chat/completions", json=LONG) as response:
        assert response.status_code == 200
        lines = response.iter_lines()
        received = [next(lines) for _ in range(8)]
        with model_killed(root):
            received += lines
            assert not is_back(http)
    assert "data: [DONE]" not in received
    last = [line for line in received if line][-1]
    assert '"error"' in last and '"message"' in last
    until(lambda: is_back(http), "the model does not come back", BACK)


def test_the_sdk_raises_instead_of_ending(root: Path, http: httpx.Client, client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="default", messages=COUNT, max_tokens=1500, stream=True, extra_body={"ignore_eos": True}
    )
    next(stream)
    with model_killed(root):
        with pytest.raises(openai.APIError, match="llamacpp"):
            list(stream)
        with pytest.raises(openai.InternalServerError) as error:
            client.chat.completions.create(model="default", messages=COUNT, max_tokens=4)
        assert error.value.status_code == 503
    until(lambda: is_back(http), "the model does not come back", BACK)
