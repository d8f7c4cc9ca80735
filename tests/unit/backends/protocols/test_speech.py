"""What speech servers are asked, and what their answers are made into, without a socket."""

import base64
import json
from typing import Any

import pytest
from gateway.backends.protocols import speech
from gateway.backends.protocols.base import AnswerError
from gateway.errors import ApiError
from hypothesis import given
from hypothesis import strategies as st

from tests.support.faces.speech import AUDIO
from tests.support.pieces import ended


@pytest.mark.proves("/v1/audio/speech", "text", "format", backend="speech")
@pytest.mark.proves("/v1/tts/generations", "text", "format", backend="speech")
def test_a_speech_request_is_openai_s_whatever_its_names() -> None:
    asked = {"text": "Hi", "format": "wav", "speed": 1.5, "instructions": None, "emotion": "glad", "model": "auto"}
    wanted = {"input": "Hi", "response_format": "wav", "speed": 1.5, "emotion": "glad"}
    assert speech.speech_request(asked, "") == wanted
    assert speech.speech_request(asked, "voice-1") == {**wanted, "model": "voice-1"}
    assert speech.speech_request({"input": "Hi", "text": "Hi"}, "") == {"input": "Hi"}


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        ({"voice": "joe"}, "input"),
        ({"input": ""}, "input"),
        ({"text": None}, "input"),
        ({"text": "a", "input": "b"}, "text"),
        ({"input": "a", "format": "wav", "response_format": "mp3"}, "format"),
    ],
)
def test_a_request_without_text_or_with_two_texts_is_a_400(request_: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as error:
        speech.speech_request(request_, "")
    assert (error.value.status, error.value.param) == (400, param)


@pytest.mark.parametrize(
    ("declared", "head", "wanted", "media"),
    [
        ("audio/mpeg; rate=1", AUDIO, "wav", "audio/mpeg; rate=1"),
        ("application/octet-stream", AUDIO, "mp3", "audio/wav"),
        ("", b"ID3\x03", None, "audio/mpeg"),
        ("", b"\xff\xfb\x90", "opus", "audio/mpeg"),
        ("", b"\xff\xf1\x50", "mp3", "audio/aac"),
        ("", b"OggS", "mp3", "audio/ogg"),
        ("", b"fLaC", "mp3", "audio/flac"),
        ("", b"\x01\x00\x02\x00", "pcm", "audio/pcm"),
        ("", b"\x01\x00", None, "audio/mpeg"),
        ("", b"\x01\x00", "strange", "application/octet-stream"),
    ],
)
def test_the_type_of_audio(declared: str, head: bytes, wanted: str | None, media: str) -> None:
    assert speech.audio_type(declared, head, wanted) == media


def audio_in_json(body: bytes) -> bytes:
    audio: bytes = ended(speech.audio_in_json(body))[0]
    return audio


@pytest.mark.parametrize("key", speech.AUDIO_KEYS)
def test_audio_in_json(key: str) -> None:
    packed = base64.b64encode(AUDIO).decode()
    assert audio_in_json(json.dumps({key: packed}).encode()) == AUDIO
    assert audio_in_json(json.dumps({key: f"data:audio/wav;base64,{packed}"}).encode()) == AUDIO
    assert audio_in_json(json.dumps({key: base64.encodebytes(AUDIO).decode()}).encode()) == AUDIO


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"{", "JSON"),
        (b"[]", "other than an object"),
        (b'{"audio": ""}', "without audio"),
        (b'{"audio": 5}', "without audio"),
        (b'{"audio": "data:,"}', "no audio"),
        (b'{"audio": "%%%"}', "base64"),
        (b'{"audio": "abc"}', "base64"),
        ('{"audio": "äöü"}'.encode(), "base64"),
        (b'{"error": {"message": "out of voices"}}', "out of voices"),
    ],
)
def test_json_without_audio_is_an_error(body: bytes, words: str) -> None:
    with pytest.raises(AnswerError, match=words):
        audio_in_json(body)


@given(st.lists(st.binary(min_size=1), min_size=1))
def test_the_deltas_of_a_stream_are_the_audio(pieces: list[bytes]) -> None:
    events = [json.loads(speech.speech_delta(piece).removeprefix(b"data: ")) for piece in pieces]
    assert {event["type"] for event in events} == {"speech.audio.delta"}
    assert b"".join(base64.b64decode(event["audio"]) for event in events) == b"".join(pieces)


JSON = "application/json"


@pytest.mark.parametrize(
    ("wanted", "content_type", "body", "expected"),
    [
        ("json", JSON, b'{ "text":"Hi"}', (JSON, b'{ "text":"Hi"}')),
        ("verbose_json", JSON, b'{"text":"Hi","words":[]}', (JSON, b'{"text":"Hi","words":[]}')),
        ("diarized_json", JSON, b'{"text":""}', (JSON, b'{"text":""}')),
        ("text", "text/plain", b"Hi\n", ("text/plain", b"Hi\n")),
        ("text", JSON, b'{"text":"Hi"}', ("text/plain; charset=utf-8", b"Hi\n")),
        ("text", JSON, b'"Hi"', ("text/plain; charset=utf-8", b"Hi")),
        ("srt", JSON, b'"1\\n"', ("application/x-subrip", b"1\n")),
        ("srt", "application/x-subrip", b"1\n", ("application/x-subrip", b"1\n")),
        ("vtt", "text/vtt", b"WEBVTT", ("text/vtt", b"WEBVTT")),
    ],
)
def test_a_transcript_in_the_format_asked_for(
    wanted: str, content_type: str, body: bytes, expected: tuple[str, bytes]
) -> None:
    assert speech.transcript(wanted, content_type, body) == expected


@pytest.mark.parametrize(
    ("wanted", "content_type", "body"),
    [
        ("json", "text/plain", b"Hi"),
        ("json", "text/html", b"<html>"),
        ("text", "text/html", b"<html>"),
        ("text", "audio/wav", b""),
        ("json", JSON, b"{"),
        ("json", JSON, b"{}"),
        ("json", JSON, b'{"text": 1}'),
        ("json", JSON, b'"Hi"'),
        ("srt", JSON, b'{"text":"Hi"}'),
        ("text", JSON, b'{"error":"no"}'),
    ],
)
def test_malformed_transcripts_are_refused(wanted: str, content_type: str, body: bytes) -> None:
    with pytest.raises(AnswerError):
        speech.transcript(wanted, content_type, body)


def test_a_whole_transcript_as_events() -> None:
    first, second, rest = speech.transcript_events(b'{"text":"Hi","usage":{"type":"duration"}}').split(b"\n\n")
    assert json.loads(first[6:]) == {"type": "transcript.text.delta", "delta": "Hi"}
    done = {"type": "transcript.text.done", "text": "Hi", "usage": {"type": "duration"}}
    assert json.loads(second[6:]) == done
    assert rest == b""
