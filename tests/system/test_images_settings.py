"""What settings and backend records say about images, each with a gateway of its own; and the placeholder."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import yaml
from gateway.app import load_settings
from gateway.backends.records import load_backends

from tests.support.faces.a1111 import A1111
from tests.support.faces.images import ImageServer, OpenAIImages
from tests.support.gateways import TOKEN, gateway
from tests.support.sockets import send
from tests.support.studio import (
    EDITS,
    GENERATIONS,
    KINDS,
    PICTURE,
    Studio,
    refusal,
    usual,
    write_backends,
)
from tests.support.upstream import Upstream, running
from tests.support.waiting import until


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
        with gateway(tmp_path, IMAGES_BACKEND_CLASS="openai", IMAGES_HTTP_TIMEOUT_SEC="0.2") as running_gateway:
            error = refusal(Studio(running_gateway, {"openai": server}).generate("openai", model="slow"), 504)
            assert "IMAGES_HTTP_TIMEOUT_SEC" in error["message"]


POLICIES: list[tuple[dict[str, Any], str | None, str]] = [
    ({}, None, "url"),
    ({"images_format": "b64_json"}, None, "b64_json"),
    ({"images_format": "b64_json"}, "url", "images_format"),
    ({"images_format": "url"}, "b64_json", "images_format"),
    ({"images_allow_base64": False}, "b64_json", "images_allow_base64"),
    ({"images_allow_base64": False}, None, "url"),
    ({"images_max_bytes": 50}, None, "images_max_bytes"),
]


def test_payload_policy(tmp_path: Path, backend: Upstream) -> None:
    with running(OpenAIImages()) as server:
        classes: dict[str, ImageServer] = {f"class-{number}": server for number in range(len(POLICIES))}
        write_backends(tmp_path, backend, classes, protocol="openai")
        content = yaml.safe_load((tmp_path / "backends.yaml").read_text())
        for number, (policy, _, _) in enumerate(POLICIES):
            content["backends"][f"class-{number}"]["payload_policy"] = policy
        (tmp_path / "backends.yaml").write_text(yaml.safe_dump(content))
        with gateway(tmp_path) as running_gateway:
            studio = Studio(running_gateway, {})
            answers = [
                studio.generate(f"class-{number}", response_format=wanted)
                for number, (_, wanted, _) in enumerate(POLICIES)
            ]
    for (_, _, outcome), answer in zip(POLICIES, answers, strict=True):
        if outcome in ("url", "b64_json"):
            assert set(answer.json()["data"][0]) == {outcome}
        else:
            assert outcome in answer.json()["error"]["message"]
            assert answer.status_code == (502 if outcome == "images_max_bytes" else 400)


@pytest.mark.parametrize(
    ("setting", "kind"),
    [
        ("http_a1111", "a1111"),
        ("http_openai_images", "openai"),
        ("http_openai_images", "nexa"),
        ("http_invokeai", "invokeai"),
        ("http_comfyui", "comfyui"),
    ],
)
def test_setting_says_what_the_class_speaks(tmp_path: Path, backend: Upstream, setting: str, kind: str) -> None:
    with running(KINDS[kind]()) as server:
        path = server.probes[0].removeprefix("GET ")
        record = {"protocol": "nexa" if kind == "nexa" else "openai", "health": {"liveness": path, "readiness": path}}
        write_backends(tmp_path, backend, {"gpu_heavy": server}, **record)
        with gateway(tmp_path, IMAGES_BACKEND=setting) as running_gateway:
            body = {"prompt": "a cat", "size": "64x64", **usual(kind)}
            answer = running_gateway.client.post(GENERATIONS, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["_gateway"]["backend"] == setting
    assert answer.headers["x-backend-used"] == "gpu_heavy"


def test_url_of_an_image_server_is_enough(tmp_path: Path, backend: Upstream) -> None:
    with running(A1111()) as server:
        write_backends(tmp_path, backend, {})
        url = f"http://127.0.0.1:{server.port}"
        with gateway(tmp_path, IMAGES_BACKEND="http_a1111", IMAGES_HTTP_BASE_URL=url) as running_gateway:
            answer = running_gateway.client.post(GENERATIONS, json={"prompt": "a cat", "size": "64x64"})
    assert answer.json()["_gateway"]["backend"] == "http_a1111", answer.text


@pytest.mark.parametrize(("host", "is_used"), [("127.0.0.1", False), ("localhost", False), ("elsewhere.test", True)])
def test_url_of_an_image_server_beside_a_record(
    tmp_path: Path, backend: Upstream, monkeypatch: pytest.MonkeyPatch, host: str, is_used: bool
) -> None:
    monkeypatch.setenv("GATEWAY_BEARER_TOKEN", TOKEN)
    with running(OpenAIImages()) as server:
        write_backends(tmp_path, backend, {"gpu_heavy": server}, protocol="openai")
    url = f"http://{host}:7860"
    settings = load_settings(None, gateway_backends_path=tmp_path / "backends.yaml", images_http_base_url=url)
    records = load_backends(settings).records
    assert (records["gpu_heavy"].base_url == url) is is_used
    assert records["chat"].base_url == backend.url


def test_public_base_url_begins_the_url(tmp_path: Path, backend: Upstream) -> None:
    write_backends(tmp_path, backend, {})
    with gateway(tmp_path, PUBLIC_BASE_URL="https://gateway.test/") as running_gateway:
        url = running_gateway.client.post(GENERATIONS, json={"prompt": "x"}).json()["data"][0]["url"]
        assert url.startswith("https://gateway.test/ui/images/")


@pytest.mark.proves(GENERATIONS, "prompt", "n", "size", "seed", "steps", "response_format", backend="mock")
def test_mock_needs_no_backend_and_always_draws_the_same(tmp_path: Path, backend: Upstream) -> None:
    write_backends(tmp_path, backend, {})
    with gateway(tmp_path) as running_gateway:
        client = running_gateway.client
        body = {"prompt": "<script>alert(1)</script>", "n": 2, "size": "200x100", "steps": 3, "seed": 9}
        body["response_format"] = "b64_json"
        first, second = (client.post(GENERATIONS, json=body) for _ in range(2))
        assert first.json()["data"] == second.json()["data"]
        images = [base64.b64decode(item["b64_json"]) for item in first.json()["data"]]
        assert images[0] != images[1]
        assert b"<script" not in images[0]
        assert b'width="200" height="100"' in images[0]
        assert b"steps: 3" in images[0]
        assert b"seed: 9" in images[0]
        assert first.json()["_gateway"]["mime"] == "image/svg+xml"
        assert first.headers["x-backend-used"] == "mock"
        assert refusal(client.post(GENERATIONS, json={**body, "output_format": "png"}))["param"] == "output_format"
        files = {"image": ("a.png", PICTURE, "image/png")}
        edited = client.post(EDITS, data={"prompt": "x"}, files=files)
        assert edited.status_code == 200, edited.text
        assert client.post(GENERATIONS, json={**body, "something": 10**30}).status_code == 200
        # No backend at all is no obstacle to being ready: nothing that the mock needs is missing.
        assert client.get("/readyz").status_code == 200


def test_mock_beside_image_servers(tmp_path: Path, backend: Upstream) -> None:
    with running(OpenAIImages()) as server:
        write_backends(tmp_path, backend, {"gpu_heavy": server}, protocol="openai")
        with gateway(tmp_path, IMAGES_BACKEND="mock") as running_gateway:
            client = running_gateway.client
            body = {"prompt": "x", "size": "64x64"}
            assert client.post(GENERATIONS, json=body).headers["x-backend-used"] == "mock"
            pinned = client.post(GENERATIONS, json=body, headers={"X-Backend": "gpu_heavy"})
            assert pinned.headers["x-backend-used"] == "gpu_heavy"


def test_image_is_a_data_url_when_it_cannot_be_stored(tmp_path: Path, backend: Upstream) -> None:
    write_backends(tmp_path, backend, {})
    blocked = tmp_path / "a file"
    blocked.write_text("")
    with gateway(tmp_path, UI_IMAGE_DIR=str(blocked / "images")) as running_gateway:
        url = running_gateway.client.post(GENERATIONS, json={"prompt": "x"}).json()["data"][0]["url"]
        assert url.startswith("data:image/svg+xml;base64,")
        for report in (running_gateway.observe.get("/readyz"), running_gateway.client.get("/v1/gateway/status")):
            assert (report.status_code, [*report.json()["problems"]]) == (200, ["images"])
        blocked.unlink()
        url = running_gateway.client.post(GENERATIONS, json={"prompt": "x"}).json()["data"][0]["url"]
        assert url.startswith("/ui/images/")
        assert running_gateway.client.get("/readyz").json()["problems"] == {}


def test_no_data_url_where_base64_is_not_allowed(tmp_path: Path, backend: Upstream) -> None:
    with running(OpenAIImages()) as server:
        write_backends(tmp_path, backend, {"openai": server}, payload_policy={"images_allow_base64": False})
        with gateway(tmp_path, UI_IMAGE_MAX_BYTES="10") as running_gateway:
            answer = Studio(running_gateway, {}).generate("openai")
    assert refusal(answer, 503)["code"] == "storage_unavailable"


@pytest.mark.parametrize(
    ("settings", "prompt", "model", "reason"),
    [
        ({"IMAGES_OPENAI_MODEL": "usual"}, "a cat", "usual", "config:model"),
        ({"IMAGES_ENABLE_REQUEST_TYPE": "true"}, "a cat", "gpu_fast", "policy:images->fast"),
        ({"IMAGES_ENABLE_REQUEST_TYPE": "true"}, "a photorealistic cat", "gpu_slow", "policy:images->slow"),
    ],
)
def test_model_is_chosen(
    tmp_path: Path, backend: Upstream, settings: dict[str, Any], prompt: str, model: str, reason: str
) -> None:
    with running(OpenAIImages()) as server:
        write_backends(tmp_path, backend, {"openai": server})
        with gateway(tmp_path, IMAGES_BACKEND_CLASS="openai", **settings) as running_gateway:
            answer = running_gateway.client.post(GENERATIONS, json={"prompt": prompt, "size": "64x64"})
    about = answer.json()["_gateway"]
    assert (about["model"], about["model_reason"]) == (model, reason)
    assert server.asked(GENERATIONS)[0].json["model"] == model
