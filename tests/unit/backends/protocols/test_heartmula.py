"""What HeartMula is asked, and what its answers mean, without a socket."""

import json
from typing import Any

import pytest
from gateway.backends.protocols.base import AnswerError
from gateway.backends.protocols.heartmula import audio_file, music_request, piece, time_limit
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("asked", "model", "wanted"),
    [
        ({"prompt": "a song", "model": "auto"}, "", {"prompt": "a song"}),
        ({"input": "a song"}, "", {"prompt": "a song"}),
        ({"input": "a song", "prompt": "a song"}, "", {"prompt": "a song"}),
        ({"lyrics": "la", "style": None, "tags": ["piano", "calm"]}, "", {"lyrics": "la", "tags": "piano,calm"}),
        ({"style": "jazz", "tags": "piano"}, "m-1", {"style": "jazz", "tags": "piano", "model": "m-1"}),
        ({"prompt": "x", "cfg_scale": 1.5, "top_k": 50}, "", {"prompt": "x", "cfg_scale": 1.5, "top_k": 50}),
    ],
)
def test_the_request_to_heartmula(asked: dict[str, Any], model: str, wanted: dict[str, Any]) -> None:
    assert music_request(asked, model) == wanted


def test_a_piece_may_take_longer_the_longer_it_is() -> None:
    assert time_limit({"duration": 10}, 120) == 120
    assert time_limit({"duration": 240}, 120) == 1230
    assert time_limit({}, 120) == 180


def answered(**content: Any) -> bytes:
    return json.dumps(content).encode()


def test_a_piece() -> None:
    made = piece(answered(id="1", status="completed", audio_url="/audio/m_1.wav", extra=[1]))
    assert made == {"id": "1", "status": "completed", "audio_url": "/audio/m_1.wav", "extra": [1]}
    assert audio_file(made) == "m_1.wav"
    assert audio_file({"audio_url": "http://10.10.22.5:9920/audio/m_1.wav?x=/y"}) == "m_1.wav"


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        answered(status="failed", error="out of memory"),
        answered(status="error"),
        answered(audio_url="/audio/x.wav", error={"message": "no"}),
        answered(status="completed"),
        answered(audio_url=5),
        *(
            answered(audio_url=url)
            for url in ("", "/audio/", "/audio/..", "/audio/.env", "/a/..%2fb", "/audio/a b", "http://[", "/a/ä.wav")
        ),
    ],
)
def test_malformed_pieces_are_refused(body: bytes) -> None:
    with pytest.raises(AnswerError):
        piece(body)


@given(st.text())
def test_a_file_s_name_has_no_path(url: str) -> None:
    try:
        name = audio_file({"audio_url": url})
    except AnswerError:
        return
    assert name.isascii()
    assert not name.startswith(".")
    assert not set(name) & set("/\\%?# ")
