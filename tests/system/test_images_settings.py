"""What settings and backend records say about images; and the placeholder."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from gateway.app import load_settings
from gateway.backends.protocols import comfyui, invokeai
from gateway.backends.protocols.image_formats import size_of
from gateway.backends.records import load_backends

from tests.support.faces.images import OpenAIImages
from tests.support.gateways import TOKEN, gateway
from tests.support.in_process import InProcess, in_process
from tests.support.sockets import send
from tests.support.sound import good
from tests.support.studio import GENERATIONS, Studio, refusal, write_backends
from tests.support.upstream import Upstream, running
from tests.support.waiting import until

CAT = {"prompt": "a cat", "size": "64x64"}
SERVER = {"gpu_heavy": ("openai", "/v1", ["images"])}
NO_SERVER = {"open": ("openai", "/v1", ["chat"])}


async def told(gateway: InProcess, body: dict[str, Any] = CAT, backend: str = "") -> tuple[int, dict[str, Any]]:
    """Status and content of an answer."""
    headers = [(b"x-backend", backend.encode())] if backend else []
    answer = await gateway.post(GENERATIONS, json.dumps(body).encode(), headers)
    content: dict[str, Any] = json.loads(answer.body)
    if answer.status == 200:
        content["used"] = answer.headers[b"x-backend-used"].decode()
    return answer.status, content


def test_limits_of_a_backend_hold_for_images(tmp_path: Path, backend: Upstream) -> None:
    with running(OpenAIImages()) as server:
        write_backends(tmp_path, backend, {"openai": server}, concurrency_limits={"images": 1})
        with gateway(tmp_path, IMAGES_BACKEND_CLASS="openai") as running_gateway:
            studio = Studio(running_gateway, {"openai": server})
            with send(running_gateway.port, GENERATIONS, {"prompt": "x", "model": "slow"}):
                server.wait_for(1)
                assert refusal(studio.generate("openai"), 429)["code"] == "backend_overloaded"
            server.wait_for(1, left=True)
            until(lambda: studio.generate("openai").status_code == 200, "the slot is held")
            assert refusal(studio.generate("openai", model="busy"), 429)["code"] == "busy"


async def test_time_limit_of_images(tmp_path: Path) -> None:
    async with in_process(tmp_path, good, SERVER, images_backend_class="gpu_heavy") as gateway:
        gateway.double.answer = lambda *_: b""
        status, content = await told(gateway)
    assert status == 504
    assert "IMAGES_HTTP_TIMEOUT_SEC" in content["error"]["message"]


@pytest.mark.parametrize(
    ("policy", "wanted", "outcome"),
    [
        ({}, None, "url"),
        ({"images_format": "b64_json"}, None, "b64_json"),
        ({"images_format": "b64_json"}, "url", "images_format"),
        ({"images_format": "url"}, "b64_json", "images_format"),
        ({"images_allow_base64": False}, "b64_json", "images_allow_base64"),
        ({"images_allow_base64": False}, None, "url"),
        ({"images_max_bytes": 50}, None, "images_max_bytes"),
    ],
)
async def test_payload_policy(tmp_path: Path, policy: dict[str, Any], wanted: str | None, outcome: str) -> None:
    record = {"payload_policy": policy}
    async with in_process(tmp_path, good, SERVER, record=record, images_backend_class="gpu_heavy") as gateway:
        status, content = await told(gateway, {**CAT, "response_format": wanted})
    if outcome in ("url", "b64_json"):
        assert outcome in content["data"][0]
    else:
        assert outcome in content["error"]["message"]
        assert status == (502 if outcome == "images_max_bytes" else 400)


async def test_no_data_url_where_base64_is_not_allowed(tmp_path: Path) -> None:
    settings: Any = {"record": {"payload_policy": {"images_allow_base64": False}}, "ui_image_max_bytes": 10}
    async with in_process(tmp_path, good, SERVER, images_backend_class="gpu_heavy", **settings) as gateway:
        status, content = await told(gateway)
    assert (status, content["error"]["code"]) == (503, "storage_unavailable")


@pytest.mark.parametrize(
    ("setting", "protocol", "asked"),
    [
        ("http_a1111", "openai", "/sdapi/v1/txt2img"),
        ("http_openai_images", "openai", "/v1/images/generations"),
        ("http_openai_images", "nexa", "/v1/images/generations"),
        ("http_invokeai", "openai", "/api/v1/queue/default/enqueue_batch"),
        ("http_comfyui", "openai", "/prompt"),
    ],
)
async def test_setting_says_what_the_class_speaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, protocol: str, asked: str
) -> None:
    for module in (invokeai, comfyui):
        monkeypatch.setattr(module, "POLL_SEC", 0.001)
    server = {"gpu_heavy": (protocol, "", ["images"])}
    settings: Any = {"images_backend": setting, "images_http_timeout_sec": 9}
    async with in_process(tmp_path, good, server, images_backend_class="gpu_heavy", **settings) as gateway:
        status, content = await told(gateway, CAT if protocol == "nexa" else {**CAT, "seed": 7})  # as its one image's
        assert asked in [path for path, _ in gateway.double.seen]
    assert (status, content["_gateway"]["backend"], content["used"]) == (200, setting, "gpu_heavy")


@pytest.mark.parametrize(
    ("has_record", "host", "is_used"),
    [
        (True, "127.0.0.1", False),
        (True, "localhost", False),
        (True, "elsewhere.test", True),
        (False, "localhost", True),
    ],
)
def test_url_of_an_image_server(
    tmp_path: Path, backend: Upstream, monkeypatch: pytest.MonkeyPatch, has_record: bool, host: str, is_used: bool
) -> None:
    """It is enough by itself; beside a record only what is not on loopback counts."""
    monkeypatch.setenv("GATEWAY_BEARER_TOKEN", TOKEN)
    write_backends(tmp_path, backend, {"gpu_heavy": OpenAIImages(1)} if has_record else {}, protocol="openai")
    url = f"http://{host}:7860"
    given: Any = {"images_backend": "http_a1111", "images_http_base_url": url}
    records = load_backends(load_settings(None, gateway_backends_path=tmp_path / "backends.yaml", **given)).records
    assert (records["gpu_heavy"].base_url == url) is is_used
    assert records["gpu_heavy"].protocol == ("openai" if has_record else "a1111")
    assert records["chat"].base_url == backend.url


@pytest.mark.parametrize(
    ("settings", "prompt", "model", "reason"),
    [
        ({"images_openai_model": "usual"}, "a cat", "usual", "config:model"),
        ({"images_enable_request_type": True}, "a cat", "gpu_fast", "policy:images->fast"),
        ({"images_enable_request_type": True}, "a photorealistic cat", "gpu_slow", "policy:images->slow"),
    ],
)
async def test_model_is_chosen(tmp_path: Path, settings: dict[str, Any], prompt: str, model: str, reason: str) -> None:
    async with in_process(tmp_path, good, SERVER, images_backend_class="gpu_heavy", **settings) as gateway:
        _, content = await told(gateway, {**CAT, "prompt": prompt})
        ((_, body),) = gateway.double.seen[-1:]
    about = content["_gateway"]
    assert (about["model"], about["model_reason"]) == (model, reason)
    assert json.loads(body)["model"] == model


@pytest.mark.proves(GENERATIONS, "prompt", "n", "size", "seed", "steps", "response_format", backend="mock")
async def test_mock_needs_no_backend_and_always_draws_the_same(tmp_path: Path) -> None:
    async with in_process(tmp_path, good, NO_SERVER) as gateway:
        body: dict[str, Any] = {"prompt": "<script>", "n": 2, "size": "200x100", "steps": 3, "seed": 9}
        body["response_format"] = "b64_json"
        (_, first), (_, second) = await told(gateway, body), await told(gateway, body)
        assert first["data"] == second["data"]
        images = [base64.b64decode(item["b64_json"]) for item in first["data"]]
        assert images[0] != images[1]
        assert size_of(images[0]) == (200, 100)
        for words in (b"<script>", b"steps: 3", b"seed: 9"):
            assert words in images[0]
        assert (first["_gateway"]["mime"], first["used"]) == ("image/png", "mock")
        status, refused = await told(gateway, {**body, "output_format": "svg"})
        assert (status, refused["error"]["param"]) == (400, "output_format")
        for model, form in (("gpt-image-1", "b64_json"), ("dall-e-3", "url")):
            assert list((await told(gateway, {"prompt": "a cat", "model": model}))[1]["data"][0]) == [form]
        assert (await told(gateway, {**body, "something": 10**30}))[0] == 200
        # No backend at all is no obstacle to being ready: nothing that the mock needs is missing.
        assert (await gateway.ask("GET", "/readyz", b"")).status == 200


async def test_mock_beside_image_servers(tmp_path: Path) -> None:
    settings: Any = {"images_backend": "mock", "images_backend_class": "gpu_heavy"}
    async with in_process(tmp_path, good, SERVER, **settings) as gateway:
        assert (await told(gateway))[1]["used"] == "mock"
        assert (await told(gateway, backend="gpu_heavy"))[1]["used"] == "gpu_heavy"


async def test_image_is_a_data_url_when_it_cannot_be_stored(tmp_path: Path) -> None:
    blocked = tmp_path / "a file"
    blocked.write_text("")
    settings: Any = {"ui_image_dir": blocked / "images", "public_base_url": "https://gateway.test/"}
    async with in_process(tmp_path, good, NO_SERVER, **settings) as gateway:

        async def url() -> str:
            return str((await told(gateway))[1]["data"][0]["url"])

        async def problems(path: str) -> tuple[int, list[str]]:
            answer = await gateway.ask("GET", path, b"")
            return answer.status, [*json.loads(answer.body)["problems"]]

        assert (await url()).startswith("data:image/png;base64,")
        assert [await problems(path) for path in ("/readyz", "/v1/gateway/status")] == [(200, ["images"])] * 2
        blocked.unlink()
        assert (await url()).startswith("https://gateway.test/ui/images/")
        assert await problems("/readyz") == (200, [])
