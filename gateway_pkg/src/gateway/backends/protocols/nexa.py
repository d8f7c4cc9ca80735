"""Nexa's server: OpenAI's API, but for its images, of whose fields it reads four, and its reranking."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.backends.protocols import openai
from gateway.backends.protocols.image_request import ImageRequest, Options, Painting
from gateway.backends.protocols.steps import Steps
from gateway.backends.protocols.wire_protocol import WireProtocol
from gateway.errors import unsupported_value
from gateway.routing.body import dump

NAME = "nexa"


def paint(request: ImageRequest) -> Steps[Painting]:
    """Asks for images; raises ApiError 400 for what Nexa would drop in silence, and for edits."""
    if request.images:
        raise unsupported_value("image", f"is not supported by protocol '{NAME}': it edits no images")
    Options(request, NAME).finish()
    plain = ImageRequest(request.prompt, request.n, request.size, request.model, {})
    return openai.paint(plain)


def rerank(request: Mapping[str, Any], body: bytes) -> bytes:  # noqa: ARG001  # those of every ChangeBody
    """All documents in one batch, Nexa's own default, and without `top_n`, which Nexa does not know."""
    asked = {"batch_size": len(request["documents"]), **request}
    asked.pop("top_n", None)
    return dump(asked)


PROTOCOL = WireProtocol(
    name=NAME,
    about="Nexa's server: OpenAI's API; of images it reads `prompt`, `n`, `size` and `model` only, all else is refused",
    capabilities=openai.PROTOCOL.capabilities,
    probe="/v1/models",
    models=openai.MODELS,
    paths={"rerank": "/v1/reranking"},
    bodies={"rerank": rerank},
    paint=paint,
    images_backend=openai.PROTOCOL.images_backend,
)
