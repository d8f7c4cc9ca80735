"""A placeholder instead of a picture, for trying a client without any image server."""

from __future__ import annotations

import hashlib
from html import escape

from gateway.backends.protocols.image_formats import size_of
from gateway.backends.protocols.image_request import DEFAULT_SIZE, ImageRequest, Painting, unsupported_field

LINE_CHARS = 48
LINES_MAX = 12


def draw(request: ImageRequest) -> Painting:
    """SVGs that show each field of a request, always the same; raises ApiError 400 for another `output_format`."""
    for name, value in request.fields.items():
        if name == "output_compression" or (name == "output_format" and value != "svg"):
            raise unsupported_field(name, value, "mock")
    size = request.size or (size_of(request.images[0].data) if request.images else None) or DEFAULT_SIZE
    shown = {name: value for name, value in request.fields.items() if name != "user"}
    shown |= {f"image {index}": _digest(image.data) for index, image in enumerate(request.images)}
    if request.mask is not None:
        shown["mask"] = _digest(request.mask.data)
    text = [request.prompt, *(f"{name}: {value}" for name, value in sorted(shown.items()))]
    images = [_svg(size.width, size.height, text, index) for index in range(request.n)]
    sent = {"prompt": request.prompt, "n": request.n, "size": f"{size.width}x{size.height}", **shown}
    return Painting(images, sent, {})


def _svg(width: int, height: int, text: list[str], index: int) -> bytes:
    digest = hashlib.sha256(repr((width, height, text, index)).encode("utf-8", "surrogatepass")).digest()
    hue, other = digest[0] * 360 // 256, digest[1] * 360 // 256
    lines = [line for part in text for line in _wrapped(part)][:LINES_MAX]
    step = max(height // (LINES_MAX + 2), 1)
    spans = "".join(f'<tspan x="5%" dy="{step}">{escape(line)}</tspan>' for line in lines)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">'
        f'<defs><linearGradient id="g" x2="1" y2="1"><stop stop-color="hsl({hue},60%,40%)"/>'
        f'<stop offset="1" stop-color="hsl({other},60%,25%)"/></linearGradient></defs>'
        f'<rect width="100%" height="100%" fill="url(#g)"/>'
        f'<text fill="#fff" font-family="sans-serif" font-size="{max(step * 2 // 3, 1)}">{spans}</text></svg>'
    ).encode("utf-8", "replace")


def _wrapped(text: str) -> list[str]:
    # Control characters have no place in XML, not even escaped.
    text = "".join(char if char.isprintable() else " " for char in text[: LINE_CHARS * LINES_MAX])
    return [text[at : at + LINE_CHARS] for at in range(0, len(text), LINE_CHARS)] or [""]


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
