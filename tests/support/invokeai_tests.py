"""What InvokeAI does behind the gateway: tests of its double and of the real one, each with an `invoke` of its own."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import yaml
from gateway.backends.protocols.image_formats import size_of

from tests.support.faces.images import png
from tests.support.gateways import gateway
from tests.support.sockets import send
from tests.support.upstream import upstream
from tests.support.waiting import until

MODEL = "random-sd1"
PATIENCE_SEC = 60  # one image of the real one on a busy processor takes some seconds


@pytest.fixture(scope="module")
def painter(invoke: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A gateway's client, whose images InvokeAI makes."""
    home = tmp_path_factory.mktemp("invokeai")
    (home / "data").mkdir()
    (home / "model_aliases.json").write_text("{}")
    with upstream() as chat:
        record = {
            "class": "gpu_heavy",
            "base_url": invoke,
            "protocol": "invokeai",
            "supported_capabilities": ["images"],
        }
        # Beside it the server by which a gateway's fixture knows that all is up.
        other = {"class": "test", "base_url": chat.url, "supported_capabilities": ["chat"]}
        (home / "backends.yaml").write_text(yaml.safe_dump({"backends": {"invokeai": record, "chat": other}}))
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
