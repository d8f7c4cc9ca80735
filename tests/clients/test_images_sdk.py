"""OpenAI's SDK makes and edits images: through a gateway without any image server, and with one of each kind."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import openai
import pytest
from gateway.backends.protocols.image_formats import kind_of, size_of

from tests.support.faces.images import png
from tests.support.gateways import TOKEN, Gateway, gateway
from tests.support.studio import KINDS, write_backends
from tests.support.upstream import running, upstream

PICTURE = png(64, 64, "source")
MASK = png(64, 64, "mask", alpha=True)


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
    url = f"http://127.0.0.1:{served.port}/v1"
    with openai.OpenAI(base_url=url, api_key=TOKEN, max_retries=0, timeout=30) as client:
        yield client


def model_of(kind: str) -> str:
    return {"nexa": "nexa:NexaAI/sdxl-turbo", "openai": "openai:any"}.get(kind, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_generate(sdk: openai.OpenAI, kind: str) -> None:
    answer = sdk.images.generate(
        model=model_of(kind), prompt="a cat", n=2, size="256x256", response_format="b64_json", quality="auto"
    )
    assert answer.data is not None
    images = [base64.b64decode(image.b64_json or "") for image in answer.data]
    assert [size_of(image) for image in images] == [(256, 256)] * 2
    assert answer.created > 0


@pytest.mark.parametrize("kind", KINDS)
def test_generate_a_url(sdk: openai.OpenAI, served: Gateway, kind: str) -> None:
    answer = sdk.images.generate(model=model_of(kind), prompt="a cat", size="256x256")
    assert answer.data is not None
    (image,) = answer.data
    assert image.url is not None
    assert size_of(served.client.get(image.url).content) == (256, 256)


@pytest.mark.parametrize("kind", ["openai", "a1111", "comfyui", "invokeai"])
def test_edit(sdk: openai.OpenAI, kind: str) -> None:
    mask: Any = openai.omit if kind == "invokeai" else ("mask.png", MASK, "image/png")
    answer = sdk.images.edit(
        model=model_of(kind),
        image=("cat.png", io.BytesIO(PICTURE), "image/png"),
        mask=mask,
        prompt="a dog",
        n=1,
        response_format="b64_json",
        extra_body={} if kind == "openai" else {"strength": 0.5},
    )
    assert answer.data is not None
    assert kind_of(base64.b64decode(answer.data[0].b64_json or "")) == "png"


def test_edit_several_images(sdk: openai.OpenAI) -> None:
    answer = sdk.images.edit(model="openai:any", image=[PICTURE, png(32, 32)], prompt="both", size="256x256")
    assert answer.data is not None
    assert answer.data[0].url is not None


@pytest.mark.proves("/v1/images/generations", "prompt", "size", "response_format", backend="mock")
@pytest.mark.proves("/v1/images/edits", "prompt", "image", "mask", backend="mock")
def test_placeholders(sdk: openai.OpenAI) -> None:
    answer = sdk.images.generate(prompt="a cat", response_format="b64_json")
    assert answer.data is not None
    assert kind_of(base64.b64decode(answer.data[0].b64_json or "")) == "svg"
    answer = sdk.images.edit(prompt="a dog", image=PICTURE, mask=MASK)
    assert answer.data is not None
    assert (answer.data[0].url or "").endswith(".svg")


def test_refusals_name_their_field(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.images.generate(model="a1111", prompt="a cat", background="transparent")
    assert refused.value.param == "background"
    with pytest.raises(openai.BadRequestError) as refused:
        list(sdk.images.generate(model="a1111", prompt="a cat", stream=True))
    assert refused.value.param == "stream"
    with pytest.raises(openai.BadRequestError) as refused:
        sdk.images.generate(prompt="a cat", n=9)
    assert refused.value.param == "n"
