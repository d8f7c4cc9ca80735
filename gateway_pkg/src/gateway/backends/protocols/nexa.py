"""Nexa's image server: OpenAI's route, but of its fields it reads prompt, n, size and model, and drops the others."""

from __future__ import annotations

from gateway.backends.converse import Steps
from gateway.backends.protocols import openai_images
from gateway.backends.protocols.image_request import ImageRequest, Painting, diffusion_options
from gateway.errors import ApiError


def paint(request: ImageRequest, root: str) -> Steps[Painting]:
    """Asks for images; raises ApiError 400 for what Nexa would drop in silence, and for edits."""
    if request.images:
        raise ApiError(400, "A backend of protocol 'nexa' edits no images", param="image", code="unsupported_value")
    diffusion_options(request, "nexa").finish()
    plain = ImageRequest(request.prompt, request.n, request.size, request.model, {})
    return openai_images.paint(plain, root)
