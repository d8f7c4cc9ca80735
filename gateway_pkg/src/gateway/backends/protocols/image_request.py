"""An image request as adapters take it, checked once; and how they account for each of its fields."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.backends.protocols.image_formats import Size, has_alpha, kind_of, size_of
from gateway.errors import ApiError, invalid_value, unsupported_value

N_MAX = 4  # the earlier system clamped to it
DEFAULT_SIZE = Size(1024, 1024)
LATENT_PIXELS = 8  # what one cell of a diffusion model's latent image covers, in each direction
STEPS = ("steps", "num_inference_steps")
GUIDANCE = ("guidance_scale", "guidance", "cfg_scale")
_SIZE = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")
STRENGTH = 0.75  # the default of all these servers
SEED_LIMIT = 2**32  # InvokeAI takes no larger ones
# Values that ask for what is done anyway.
_HARMLESS = {
    "quality": ("auto", "standard"),
    "background": ("auto", "opaque"),
    "moderation": ("auto", "low"),
    "output_format": ("png",),
}
# Fields that the gateway handles itself, and never sends to a backend.
_OURS = frozenset({"prompt", "n", "size", "model", "response_format", "stream", "partial_images"})


@dataclass(frozen=True, slots=True)
class Upload:
    """A file of a multipart body; its bytes decide its type, which is "" for other files than images."""

    filename: str
    content_type: str
    data: bytes


@dataclass(frozen=True, slots=True)
class ImageRequest:
    """`fields` are all others that the client gave, as it gave them. `size` is None where an edit names none.

    `usual_steps` are those of a request that names none, for a server without a figure of its own: IMAGES_A1111_STEPS.
    """

    prompt: str
    n: int
    size: Size | None
    model: str
    fields: Mapping[str, Any]
    images: tuple[Upload, ...] = ()
    mask: Upload | None = None
    usual_steps: int = 20


@dataclass(frozen=True, slots=True)
class Painting:
    """What a backend made: encoded images, the request as it was sent (without images), what else was answered."""

    images: list[bytes]
    request: dict[str, Any]
    upstream: dict[str, Any]
    texts: list[str | None] = field(default_factory=list)  # revised prompts, where the backend tells them


def read_request(
    given: Mapping[str, Any],
    model: str,
    max_pixels: int,
    images: tuple[Upload, ...] = (),
    mask: Upload | None = None,
    usual_steps: int = 20,
) -> ImageRequest:
    """The request for `model` out of a body whose types are checked; raises ApiError 400 that names the field."""
    given = {name: value for name, value in given.items() if value is not None}
    for name in ("stream", "partial_images"):
        if given.get(name):
            raise invalid_value(name, "images are not streamed here; leave it out")
    n = given.get("n", 1)
    if not 1 <= n <= N_MAX:
        raise invalid_value("n", f"must be 1 to {N_MAX}")
    for name, names in (("image", images), ("mask", (mask,) if mask else ())):
        for upload in names:
            _check_upload(name, upload, max_pixels)
    if mask is not None and not has_alpha(mask.data):
        raise invalid_value("mask", "must be a PNG with an alpha channel; what is transparent in it is edited")
    size = _read_size(given.get("size"), max_pixels)
    if size is None and not images:
        size = DEFAULT_SIZE
    fields = {name: value for name, value in given.items() if name not in _OURS}
    return ImageRequest(given["prompt"], n, size, model, fields, images, mask, usual_steps)


def _read_size(text: str | None, max_pixels: int) -> Size | None:
    if text is None or text == "auto":
        return None
    match = _SIZE.fullmatch(text)
    if match is None:
        raise invalid_value("size", "must be WIDTHxHEIGHT in pixels, such as 1024x1024, or auto")
    size = Size(int(match[1]), int(match[2]))
    _check_area("size", size, max_pixels)
    return size


def _check_upload(name: str, upload: Upload, max_pixels: int) -> None:
    if kind_of(upload.data) not in ("png", "jpg", "webp"):
        raise invalid_value(name, "must be a PNG, JPEG or WebP file")
    size = size_of(upload.data)
    if size is None or not all(size):
        raise invalid_value(name, "is damaged: its header has no size")
    _check_area(name, size, max_pixels)


def _check_area(name: str, size: Size, max_pixels: int) -> None:
    if size.width * size.height > max_pixels:
        shown = f"{size.width}x{size.height}"
        raise invalid_value(name, f"{shown} has more than {max_pixels} pixels, see IMAGES_MAX_PIXELS")


class Options:
    """The fields of a request, crossed off one by one: what a backend has no counterpart for is refused by name.

    For servers of diffusion models, that make opaque PNGs, ask nobody's name and moderate nothing.
    """

    def __init__(self, request: ImageRequest, protocol: str) -> None:
        self._request = request
        self._left = {name: value for name, value in request.fields.items() if value not in _HARMLESS.get(name, ())}
        self._left.pop("user", None)
        self._protocol = protocol

    def take(self, *names: str, usual: Any = None) -> Any:
        """The value of a field that has several names, `usual` without; 400 when two of them disagree."""
        found = [(name, self._left.pop(name)) for name in names if name in self._left]
        for name, value in found[1:]:
            if value != found[0][1]:
                raise invalid_value(name, f"differs from '{found[0][0]}'; send one of them")
        return found[0][1] if found else usual

    def seed(self) -> int:
        """The seed, a random one where the request names none."""
        seed: int | None = self.take("seed")
        return secrets.randbelow(SEED_LIMIT) if seed is None or seed < 0 else seed

    def strength(self) -> float:
        """How far an edit may depart from its one image; raises ApiError 400 where there are several."""
        if len(self._request.images) > 1:
            raise invalid_value("image", f"protocol '{self._protocol}' edits one image at a time")
        strength: float = self.take("strength", usual=STRENGTH)
        return strength

    def native_size(self) -> Size:
        """The size to ask a diffusion model for, that of the given image where the request names none.

        Raises ApiError 400 unless width and height are multiples of 8.
        """
        given = size_of(self._request.images[0].data) if self._request.images else None
        size = self._request.size or given or DEFAULT_SIZE
        if size.width % LATENT_PIXELS or size.height % LATENT_PIXELS:
            takes = f"protocol '{self._protocol}' takes multiples of {LATENT_PIXELS} only"
            raise invalid_value("size", f"{size.width}x{size.height}: {takes}")
        return size

    def finish(self) -> None:
        """Raises ApiError 400 for a remaining field."""
        for name, value in self._left.items():
            raise unsupported_field(name, value, self._protocol)


def unsupported_field(name: str, value: Any, protocol: str) -> ApiError:
    """400: a field that the protocol has no counterpart for."""
    shown = f"{value!r} " if isinstance(value, str) and len(value) < 40 else ""
    return unsupported_value(name, f"{shown}is not supported by protocol '{protocol}'; leave it out")
