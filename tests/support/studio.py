"""A gateway in front of a double of each kind of image server."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.faces.a1111 import A1111
from tests.support.faces.comfyui import ComfyUI
from tests.support.faces.images import ImageServer, OpenAIImages, png
from tests.support.faces.invokeai import InvokeAI
from tests.support.faces.nexa import MODEL as NEXA_MODEL
from tests.support.faces.nexa import Nexa
from tests.support.gateways import Gateway, gateway
from tests.support.upstream import Upstream, running

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
KINDS: dict[str, Callable[[], ImageServer]] = {
    "openai": OpenAIImages,
    "nexa": Nexa,
    "a1111": A1111,
    "comfyui": ComfyUI,
    "invokeai": InvokeAI,
}
SAMPLED = ("a1111", "comfyui", "invokeai")  # whose fields are a diffusion model's
NAMES_OF = {"steps": 3, "num_inference_steps": 3, "guidance_scale": 2.5, "guidance": 2.5, "cfg_scale": 2.5}
PICTURE = png(64, 64, "source")
MASK = png(64, 64, "mask", alpha=True)


@dataclass
class Studio:
    """A gateway in front of one image server of each kind; a class is called as its protocol."""

    gateway: Gateway
    servers: dict[str, Any]

    def generate(self, kind: str, **fields: Any) -> httpx.Response:
        body = {"prompt": "a cat", "size": "64x64", **usual(kind), **fields}
        return self.gateway.client.post(GENERATIONS, json=body, headers={"X-Backend": kind})

    def edit(self, kind: str, *files: tuple[str, bytes], **fields: Any) -> httpx.Response:
        parts = [(name, (f"{name}.png", data, "image/png")) for name, data in files or (("image", PICTURE),)]
        data = {"prompt": "a dog", **usual(kind), **fields}
        return self.gateway.client.post(EDITS, data=data, files=parts, headers={"X-Backend": kind})

    def ask(self, route: str, kind: str, **fields: Any) -> httpx.Response:
        """A generation or an edit; what a form says is text."""
        if route == GENERATIONS:
            return self.generate(kind, **fields)
        return self.edit(kind, **{name: str(value).lower() for name, value in fields.items()})

    def image(self, item: dict[str, str]) -> bytes:
        """The bytes of one item of an answer."""
        if "b64_json" in item:
            return base64.b64decode(item["b64_json"])
        return self.gateway.client.get(item["url"], headers={"Authorization": ""}).raise_for_status().content

    def cleared(self) -> Studio:
        """The same, with nothing seen yet."""
        for server in self.servers.values():
            server.seen.clear()
            server.faults.clear()
        self.servers["invokeai"].images.clear()
        return self


def usual(kind: str) -> dict[str, str]:
    """What a kind of server has to be sent in any case."""
    return {"model": NEXA_MODEL} if kind == "nexa" else {}


def write_backends(home: Path, chat: Upstream, servers: dict[str, ImageServer], **record: Any) -> None:
    records: dict[str, dict[str, Any]] = {
        kind: {
            "class": kind,
            "base_url": f"http://127.0.0.1:{server.port}",
            "protocol": kind,
            "supported_capabilities": ["images"],
            "concurrency_limits": {"images": 4},
            **record,
        }
        for kind, server in servers.items()
    }
    records["chat"] = {"class": "test", "base_url": chat.url, "supported_capabilities": ["chat"]}
    (home / "data").mkdir(exist_ok=True)
    (home / "backends.yaml").write_text(yaml.safe_dump({"backends": records}))
    (home / "model_aliases.json").write_text('{"aliases": {"painter": "comfyui:second.safetensors"}}')


def refusal(answer: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    return error


@pytest.fixture(scope="module")
def whole_studio(tmp_path_factory: pytest.TempPathFactory, backend: Upstream) -> Iterator[Studio]:
    home = tmp_path_factory.mktemp("images")
    with ExitStack() as stack:
        servers = {kind: stack.enter_context(running(make())) for kind, make in KINDS.items()}
        write_backends(home, backend, servers)
        yield Studio(stack.enter_context(gateway(home, IMAGES_BACKEND_CLASS="openai")), servers)


@pytest.fixture
def studio(whole_studio: Studio) -> Studio:
    """The module's studio, with nothing seen yet."""
    return whole_studio.cleared()
