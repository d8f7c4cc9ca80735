"""How much of a body its pictures and sounds are."""

from __future__ import annotations

import json
from base64 import b64encode

import pytest
from gateway.web.media import media_bytes

FILES = {
    "png": b"\x89PNG\r\n\x1a\n",
    "jpeg": b"\xff\xd8\xff\xe0",
    "gif": b"GIF89a",
    "wav": b"RIFF\0\0\0\0WAVE",
    "mp3": b"\xff\xfb\x90",
    "mp3 with tags": b"ID3\4",
    "ogg": b"OggS\0",
    "flac": b"fLaC\0",
    "mp4": b"\0\0\0\x20ftypM4A ",
    "webm": b"\x1aE\xdf\xa3",
}
TEXT = "The quick brown fox"


def base64(beginning: bytes) -> str:
    return b64encode(beginning + bytes(range(256)) * 40).decode()


def bodies(text: str) -> list[object]:
    return [
        {"messages": [{"content": [{"type": "image_url", "image_url": {"url": f"data:image/x;base64,{text}"}}]}]},
        {"input": [{"content": [{"type": "input_image", "image_url": f"data:video/mp4;codecs=x;base64,{text}"}]}]},
        {"content": [{"source": {"type": "base64", "media_type": "image/png", "data": text}}]},
        {"messages": [{"images": [TEXT, text]}]},
        {"input_audio": {"data": text, "format": "wav"}},
    ]


@pytest.mark.parametrize("file", FILES.values(), ids=FILES)
def test_picture_and_sound_do_not_count(file: bytes) -> None:
    text = base64(file)
    for body in bodies(text):
        for written in (json.dumps(body), json.dumps(body).replace("/", "\\/")):
            assert 0 < len(written) - media_bytes(written.encode()) < 200


@pytest.mark.parametrize(
    "text", [TEXT * 50, "x" * 900, "iVBORw0KGgo and more " * 40, "data:text/plain;base64," + "A" * 900]
)
def test_text_counts(text: str) -> None:
    for body in ({"content": text}, {"data": text}, [text, text]):
        assert media_bytes(json.dumps(body).encode()) == 0


def test_body_that_ends_within_a_picture() -> None:
    assert media_bytes(b'{"data": "iVBORw0KGgo') == 0
