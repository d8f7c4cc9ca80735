"""The real InvokeAI on the processor behind a gateway, and its double beside it."""

from __future__ import annotations

import base64
import os
import re
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from gateway.backends.protocols import invokeai
from gateway.backends.protocols.base import AnswerError
from gateway.backends.protocols.image_formats import size_of
from gateway.backends.protocols.image_request import Painting, Upload, read_request
from gateway.backends.protocols.steps import Abandoned, Ask, Reply, Steps
from gateway.errors import ApiError

from tests.support.environments import environment
from tests.support.faces.images import fits, loads, png, shape
from tests.support.faces.invokeai import InvokeAI
from tests.support.gateways import gateway, write_files
from tests.support.ports import free_ports
from tests.support.sockets import send
from tests.support.upstream import running, upstream
from tests.support.waiting import until

HERE = Path(__file__).parent
START_SEC = 300
MODEL = "random-sd1"
PATIENCE_SEC = 60  # one image on a busy processor takes some seconds
CONFIG = "schema_version: 4.0.3\nhost: 127.0.0.1\nport: {port}\ndevice: cpu\nprecision: float32\n"


@pytest.fixture(scope="module")
def invoke(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server with one model of random weights."""
    python = environment(HERE / "invokeai.txt", HERE / "torch.txt") / "python"
    root = tmp_path_factory.mktemp("invokeai")
    model = root / MODEL
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    subprocess.run([python, HERE / "sd1_model.py", model], check=True, env=env, capture_output=True)
    (port,) = free_ports(1)
    (root / "invokeai.yaml").write_text(CONFIG.format(port=port))
    with (root / "server.log").open("wb") as log:
        process = subprocess.Popen([python, HERE / "invokeai_web.py", "--root", root], env=env, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}"
            with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
                until(lambda: _version(client, process, root / "server.log"), "InvokeAI is not up", START_SEC)
                _install(client, model)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _version(client: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> str:
    """What it says its version is; empty before it is up."""
    assert process.poll() is None, log.read_text()[-2000:]
    try:
        return str(client.get("/api/v1/app/version").json()["version"])
    except httpx.TransportError:
        return ""


def _install(client: httpx.Client, model: Path) -> None:
    source = {"source": str(model), "inplace": "true"}
    client.post("/api/v2/models/install", params=source, json={"name": MODEL}).raise_for_status()
    models = {"model_type": "main"}
    until(lambda: client.get("/api/v2/models/", params=models).json()["models"], "the model is not installed", 60)


@pytest.fixture(scope="module")
def painter(invoke: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A gateway's client, whose images InvokeAI makes; beside it what a gateway's fixture knows by that all is up."""
    home = tmp_path_factory.mktemp("gateway")
    with upstream() as chat:
        record = {"base_url": invoke, "protocol": "invokeai", "supported_capabilities": ["images"]}
        write_files(home, chat.url, {"gpu_heavy@here": record})
        with gateway(home) as served:
            served.client.timeout = httpx.Timeout(2 * PATIENCE_SEC)
            yield served.client


def generate(painter: httpx.Client, **fields: Any) -> httpx.Response:
    body = {"prompt": "a cat", "size": "64x64", "steps": 2, "response_format": "b64_json", **fields}
    return painter.post("/v1/images/generations", json=body)


def images(answer: httpx.Response) -> list[bytes]:
    assert answer.status_code == 200, answer.text
    return [base64.b64decode(item["b64_json"]) for item in answer.json()["data"]]


def pixels(data: bytes) -> bytes:
    """A PNG without what it tells of its making."""
    at, found = 8, b""
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        if data[at + 4 : at + 8] in (b"IHDR", b"IDAT"):
            found += data[at + 8 : at + 8 + length]
        at += length + 12
    return found


def queue(invoke: str) -> dict[str, int]:
    state: dict[str, int] = httpx.get(f"{invoke}/api/v1/queue/default/status", trust_env=False).json()["queue"]
    return state


def left_there(invoke: str) -> int:
    """How many images that are nobody's the server keeps."""
    count: int = httpx.get(f"{invoke}/api/v1/images/intermediates", trust_env=False).json()
    return count


@pytest.mark.proves("/v1/images/generations", "prompt", "n", "size", "steps", "response_format", backend="invokeai")
def test_images_have_their_size_and_none_is_left_there(painter: httpx.Client, invoke: str) -> None:
    before = left_there(invoke)
    answer = generate(painter, n=2, size="128x64")
    assert [size_of(image) for image in images(answer)] == [(128, 64)] * 2
    about = answer.json()["_gateway"]
    assert about["request"]["model"] == MODEL
    assert about["model_reason"] == "omit:model"
    assert left_there(invoke) == before


@pytest.mark.proves("/v1/images/generations", "seed", "n", backend="invokeai")
def test_images_of_a_batch_follow_its_seeds(painter: httpx.Client) -> None:
    batch = [pixels(image) for image in images(generate(painter, n=3, seed=11))]
    alone = [pixels(image) for seed in (11, 12, 13) for image in images(generate(painter, seed=seed))]
    assert batch == alone
    assert len(set(batch)) == 3


@pytest.mark.proves("/v1/images/generations", "model", backend="invokeai")
def test_model_by_name(painter: httpx.Client) -> None:
    assert generate(painter, model=MODEL).status_code == 200
    error = generate(painter, model="no-such-model")
    assert (error.status_code, error.json()["error"]["param"]) == (404, "model")
    assert MODEL in error.json()["error"]["message"]


@pytest.mark.proves("/v1/images/generations", "scheduler", "guidance_scale", "negative_prompt", backend="invokeai")
def test_options_of_the_sampler(painter: httpx.Client) -> None:
    fields = {"scheduler": "euler_a", "guidance_scale": 3.5, "negative_prompt": "a dog"}
    answer = generate(painter, **fields)
    assert images(answer)
    sent = answer.json()["_gateway"]["request"]
    assert (sent["scheduler"], sent["cfg_scale"], sent["negative_prompt"]) == ("euler_a", 3.5, "a dog")
    error = generate(painter, scheduler="magic")
    assert (error.status_code, error.json()["error"]["param"]) == (400, "scheduler")


@pytest.mark.proves("/v1/images/edits", "image", "prompt", "strength", "size", "steps", "seed", backend="invokeai")
def test_edit(painter: httpx.Client, invoke: str) -> None:
    before = left_there(invoke)
    files = {"image": ("cat.png", png(64, 64, "source"), "image/png")}
    data = {"prompt": "a dog", "steps": "4", "seed": "3", "strength": "0.5", "response_format": "b64_json"}
    (same,) = images(painter.post("/v1/images/edits", data=data, files=files))
    (larger,) = images(painter.post("/v1/images/edits", data={**data, "size": "128x64"}, files=files))
    assert (size_of(same), size_of(larger)) == ((64, 64), (128, 64))
    assert left_there(invoke) == before


def test_client_that_leaves_stops_the_work(painter: httpx.Client, invoke: str) -> None:
    before = queue(invoke)["canceled"]
    body = {"prompt": "slow", "size": "512x512", "steps": 500, "n": 2}
    assert painter.base_url.port is not None
    with send(painter.base_url.port, "/v1/images/generations", body):
        until(lambda: queue(invoke)["pending"] + queue(invoke)["in_progress"] == 2, "nothing to do", PATIENCE_SEC)
    until(lambda: queue(invoke)["canceled"] == before + 2, "not cancelled", PATIENCE_SEC)
    assert generate(painter).status_code == 200


def test_image_by_url(painter: httpx.Client) -> None:
    answer = generate(painter, response_format="url")
    url = answer.json()["data"][0]["url"]
    assert size_of(painter.get(url).content) == (64, 64)


Heard = list[tuple[str, str, int, str, Any]]
SOURCE = Upload("a.png", "image/png", png(64, 64))


def paint(images: tuple[Upload, ...] = (), **fields: Any) -> Steps[Painting]:
    return invokeai.paint(read_request({"prompt": "a cat", "size": "64x64", "steps": 1, **fields}, "", 10**6, images))


TALKS: dict[str, Callable[[], Steps[Painting]]] = {
    "generation": lambda: paint(n=2, seed=5),
    "edit": lambda: paint((SOURCE,), seed=5),
    "unknown scheduler": lambda: paint(scheduler="magic"),
}


def listen(url: str, steps: Steps[Painting], until: str = "") -> Heard:
    """What is asked and answered, polls once each; the talk is abandoned when it asks for the path `until`."""
    heard: dict[tuple[str, str], tuple[str, str, int, str, Any]] = {}
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
        try:
            step = next(steps)
            while True:
                if not isinstance(step, Ask):
                    time.sleep(step.seconds if step is not None else 0)
                    step = steps.send(Reply(0, b""))
                    continue
                headers = {"Content-Type": step.content_type} if step.body else {}
                answer = client.request(step.method, step.path, content=step.body or None, headers=headers)
                kind = answer.headers["content-type"].partition(";")[0]
                content = shape(loads(answer.content)) if kind == "application/json" else kind
                path = _pattern(step.path)
                heard[step.method, path] = (step.method, path, answer.status_code, kind, content)
                if until and step.path.endswith(until):
                    step = steps.throw(Abandoned())
                    until = ""
                else:
                    step = steps.send(Reply(answer.status_code, answer.content))
        except (StopIteration, Abandoned, AnswerError, ApiError):
            return list(heard.values())


def _pattern(path: str) -> str:
    """A path without the ids that are different each time."""
    return re.sub(r"[0-9a-f]{8}-[0-9a-f-]{27}(\.png)?|(?<=/i/)\d+$", "ID", urlsplit(path).path)


def _anonymous(content: Any) -> Any:
    """Ids of nodes are keys in what a session tells."""
    if isinstance(content, dict):
        return {_pattern(key): _anonymous(value) for key, value in content.items()}
    return [_anonymous(value) for value in content] if isinstance(content, list) else content


def compare(real: Heard, double: Heard) -> None:
    assert [entry[:4] for entry in double] == [entry[:4] for entry in real]
    for (_, path, *_, told), (*_, known) in zip(double, real, strict=True):
        assert fits(_anonymous(told), _anonymous(known)), (path, told, known)


@pytest.mark.parametrize("talk", TALKS)
def test_the_double_is_true(invoke: str, talk: str) -> None:
    with running(InvokeAI()) as double:
        compare(listen(invoke, TALKS[talk]()), listen(f"http://127.0.0.1:{double.port}", TALKS[talk]()))


def test_the_double_is_true_when_a_batch_is_cancelled(invoke: str) -> None:
    with running(InvokeAI()) as double:
        urls = invoke, f"http://127.0.0.1:{double.port}"
        real, other = (listen(url, paint(n=2), until="/enqueue_batch") for url in urls)
    assert real[-1][:2] == ("PUT", "/api/v1/queue/default/cancel_by_batch_ids")
    compare(real, other)
