"""OpenAI's SDK makes and edits images: through a gateway without any image server, and with one of each kind."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import openai
import pytest
from gateway.backends.protocols.image_formats import PNG, kind_of, size_of

from tests.clients.appliance import Appliance
from tests.support.faces.images import png
from tests.support.gateways import TOKEN, Gateway, gateway
from tests.support.studio import KINDS, MASK, PICTURE, write_backends
from tests.support.upstream import running, upstream


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with one image server of each kind, a class each, and none of the class that is asked by itself."""
    home = tmp_path_factory.mktemp("images")
    with ExitStack() as stack:
        servers: dict[str, Any] = {kind: stack.enter_context(running(make())) for kind, make in KINDS.items()}
        write_backends(home, stack.enter_context(upstream()), servers)
        yield stack.enter_context(gateway(home))


@pytest.fixture(scope="module")
def sdk(served: Gateway) -> Iterator[openai.OpenAI]:
    with Appliance(f"http://127.0.0.1:{served.port}/v1", TOKEN).sdk() as client:
        yield client


def model_of(kind: str) -> str:
    return {"nexa": "nexa:NexaAI/sdxl-turbo", "openai": "openai:any"}.get(kind, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_generate(sdk: openai.OpenAI, served: Gateway, kind: str) -> None:
    common: Any = {"model": model_of(kind), "prompt": "a cat", "size": "256x256", "quality": "auto"}
    answer = sdk.images.generate(**common, n=2, response_format="b64_json")
    assert answer.created > 0
    images = [base64.b64decode(image.b64_json or "") for image in answer.data or ()]
    images += [served.client.get(image.url or "").content for image in sdk.images.generate(**common).data or ()]
    assert [size_of(image) for image in images] == [(256, 256)] * 3


@pytest.mark.parametrize("kind", ["openai", "a1111", "comfyui", "invokeai"])
def test_edit(sdk: openai.OpenAI, kind: str) -> None:
    mask: Any = openai.omit if kind == "invokeai" else ("mask.png", MASK, "image/png")
    image: Any = [PICTURE, png(32, 32)] if kind == "openai" else ("cat.png", io.BytesIO(PICTURE), "image/png")
    answer = sdk.images.edit(
        model=model_of(kind), image=image, mask=mask, prompt="a dog", n=1, response_format="b64_json"
    )
    assert answer.data is not None
    assert kind_of(base64.b64decode(answer.data[0].b64_json or "")) == "png"


@pytest.mark.proves("/v1/images/generations", "prompt", "size", "response_format", backend="mock")
@pytest.mark.proves("/v1/images/edits", "prompt", "image", "mask", backend="mock")
def test_placeholders(sdk: openai.OpenAI) -> None:
    answer = sdk.images.generate(prompt="a cat", response_format="b64_json")
    assert answer.data is not None
    assert kind_of(base64.b64decode(answer.data[0].b64_json or "")) == "png"
    answer = sdk.images.edit(prompt="a dog", image=PICTURE, mask=MASK)
    assert answer.data is not None
    assert httpx.get(answer.data[0].url or "").raise_for_status().content.startswith(PNG)


@pytest.mark.parametrize(("name", "value"), [("background", "transparent"), ("stream", True), ("n", 9)])
def test_refusals_name_their_field(sdk: openai.OpenAI, name: str, value: Any) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.images.generate(**{"model": "a1111", "prompt": "a cat", name: value})
    assert refused.value.param == name
