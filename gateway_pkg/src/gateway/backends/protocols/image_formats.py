"""What image files say of themselves in their first bytes."""

from __future__ import annotations

from struct import unpack_from
from typing import NamedTuple

MEDIA_TYPES = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp", "svg": "image/svg+xml"}
PNG = b"\x89PNG\r\n\x1a\n"
SEGMENTS_MAX = 1_000  # of a JPEG before its size: those of 64 KiB each would be a larger file than is taken
_SOF_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # frame headers; not DHT, JPG, DAC


class Size(NamedTuple):
    """Pixels."""

    width: int
    height: int


def kind_of(data: bytes) -> str | None:
    """`png`, `jpg`, `webp` or `svg`; None for anything else. The bytes decide, never a name."""
    if data.startswith(PNG):
        return "png"
    if data.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    head = data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n")
    if head.startswith(b"<svg") or (head.startswith(b"<?xml") and b"<svg" in head):
        return "svg"
    return None


def size_of(data: bytes) -> Size | None:
    """The size of a PNG, JPEG or WebP; None where the file does not tell."""
    kind = kind_of(data)
    if kind == "png" and data[12:16] == b"IHDR" and len(data) >= 24:
        return Size(*unpack_from(">2I", data, 16))
    if kind == "jpg":
        return _jpeg_size(data)
    if kind == "webp" and len(data) >= 30:
        return _webp_size(data)
    return None


def has_alpha(data: bytes) -> bool:
    """Whether a PNG's header says that its pixels have an alpha channel."""
    return kind_of(data) == "png" and data[25:26] in (b"\x04", b"\x06")


def _jpeg_size(data: bytes) -> Size | None:
    at = 2
    for _ in range(SEGMENTS_MAX):
        if at + 9 > len(data) or data[at] != 0xFF:
            break
        marker = data[at + 1]
        if marker in _SOF_MARKERS:
            height, width = unpack_from(">2H", data, at + 5)
            return Size(width, height)
        if marker == 0xFF:  # a fill byte
            at += 1
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def _webp_size(data: bytes) -> Size | None:
    chunk = data[12:16]
    if chunk == b"VP8X":
        return Size(_little(data[24:27]) + 1, _little(data[27:30]) + 1)
    if chunk == b"VP8L":
        bits = _little(data[21:25])
        return Size((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if chunk == b"VP8 ":
        return Size(_little(data[26:28]) & 0x3FFF, _little(data[28:30]) & 0x3FFF)
    return None


def _little(data: bytes) -> int:
    return int.from_bytes(data, "little")
