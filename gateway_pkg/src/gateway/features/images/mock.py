"""A placeholder instead of a picture, for trying a client without any image server."""

from __future__ import annotations

import hashlib
import zlib
from colorsys import hls_to_rgb
from struct import pack

from gateway.backends.protocols.image_formats import PNG, size_of
from gateway.backends.protocols.image_request import DEFAULT_SIZE, ImageRequest, Painting, unsupported_field

CELLS = 8  # in each direction
COLOURS = 16


def draw(request: ImageRequest) -> Painting:
    """PNGs of a coloured grid, the same for the same request; each of its fields changes them, and stands in them.

    Raises ApiError 400 for another `output_format`.
    """
    for name, value in request.fields.items():
        if name == "output_compression" or (name == "output_format" and value != "png"):
            raise unsupported_field(name, value, "mock")
    size = request.size or (size_of(request.images[0].data) if request.images else None) or DEFAULT_SIZE
    shown = {name: value for name, value in request.fields.items() if name != "user"}
    shown |= {f"image {index}": _digest(image.data) for index, image in enumerate(request.images)}
    if request.mask is not None:
        shown["mask"] = _digest(request.mask.data)
    text = "\n".join((request.prompt, *(f"{name}: {value}" for name, value in sorted(shown.items()))))
    images = [_png(size.width, size.height, text, index) for index in range(request.n)]
    sent = {"prompt": request.prompt, "n": request.n, "size": f"{size.width}x{size.height}", **shown}
    return Painting(images, sent, {})


def _png(width: int, height: int, text: str, index: int) -> bytes:
    words = text.encode("utf-8", "replace")
    digest = hashlib.sha512(repr((width, height, index)).encode() + words).digest()
    colours = b"".join(_colour(byte, place) for place, byte in enumerate(digest[:COLOURS]))
    cells = [[digest[(row * CELLS + column) % 64] % COLOURS for column in range(CELLS)] for row in range(CELLS)]
    rows = [bytes([0, *(cells[row][x * CELLS // width] for x in range(width))]) for row in range(CELLS)]
    pixels = b"".join(rows[y * CELLS // height] for y in range(height))
    chunks = (
        (b"IHDR", pack(">2I5B", width, height, 8, 3, 0, 0, 0)),  # a byte a pixel, of the palette
        (b"PLTE", colours),
        (b"iTXt", b"Description\0\0\0\0\0" + words),
        (b"IDAT", zlib.compress(pixels, 1)),
        (b"IEND", b""),
    )
    return PNG + b"".join(
        pack(">I", len(data)) + kind + data + pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def _colour(byte: int, place: int) -> bytes:
    return bytes(round(255 * part) for part in hls_to_rgb(byte / 256, 0.3 + place / 32, 0.5))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
