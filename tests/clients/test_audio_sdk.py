"""OpenAI's SDK speaks and listens through the gateway, with real engines behind it: what Piper says, Whisper hears."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.audio import TranscriptionTextDeltaEvent, TranscriptionTextDoneEvent, TranscriptionVerbose

from tests.clients.alone import fronting, record
from tests.clients.servers import started
from tests.support.environments import ROOT, environment
from tests.support.ports import free_ports

HERE = Path(__file__).parent
TEXT = "The machine answers every question. A quick brown fox jumps over the lazy dog."
SPEECH, TRANSCRIPTIONS, TRANSLATIONS = (f"/v1/audio/{name}" for name in ("speech", "transcriptions", "translations"))


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The real engines; the URL of their API."""
    place = tmp_path_factory.mktemp("speech")
    python = environment(HERE / "speech.txt") / "python"
    port = free_ports(1)[0]
    url = f"http://127.0.0.1:{port}/v1"
    (place / "whisper").mkdir()
    argv: list[str | Path] = [python, "-m", "tests.clients.speech_engines", str(port), place / "whisper"]
    variables = {"ORT_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    with started(argv, f"{url}/models", place / "engines.log", variables):
        yield url


@pytest.fixture(scope="module")
def sdk(program: Path, engines: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """A gateway whose usual classes of speech and transcription are the engines; OpenAI's names reach them so."""
    records = {
        "tts@here": record("pocket_tts", engines, "tts"),
        "whisper@here": record("whisper", engines, "transcription"),
    }
    aliases = {"narrator": "pocket_tts:joe", "ear": "whisper:whisper-base"}
    with (
        fronting(program, tmp_path_factory.mktemp("speaking"), records, aliases) as gateway,
        gateway.sdk(120) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def spoken(sdk: openai.OpenAI) -> bytes:
    """TEXT as a WAV file."""
    answer = sdk.audio.speech.create(model="tts-1", voice="joe", input=TEXT, response_format="wav")
    assert answer.response.headers["content-type"] == "audio/wav"
    assert answer.response.headers["x-gateway-backend-class"] == "pocket_tts"
    return answer.content


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def heard(sdk: openai.OpenAI, audio: bytes) -> list[str]:
    return words(sdk.audio.transcriptions.create(model="ear", file=("speech.wav", audio)).text)


@pytest.mark.proves(SPEECH, "model", "voice", "input", "response_format", backend="speech")
@pytest.mark.proves(TRANSCRIPTIONS, "model", "file", backend="speech")
def test_what_is_said_is_heard(sdk: openai.OpenAI, spoken: bytes) -> None:
    assert heard(sdk, spoken) == words(TEXT)


@pytest.mark.proves(SPEECH, "speed", "model", backend="speech")
def test_a_streamed_answer_comes_in_pieces(sdk: openai.OpenAI, spoken: bytes) -> None:
    with sdk.audio.speech.with_streaming_response.create(
        model="narrator", voice="joe", input=TEXT, response_format="wav", speed=1.25
    ) as answer:
        assert answer.headers["x-model-used"] == "joe"
        pieces = list(answer.iter_bytes())
    assert len(pieces) > 1
    audio = b"".join(pieces)
    assert len(audio) < len(spoken), "faster speech is shorter"
    assert heard(sdk, audio) == words(TEXT)


@pytest.mark.proves(SPEECH, "stream_format", backend="speech")
def test_audio_as_events(sdk: openai.OpenAI, spoken: bytes) -> None:
    with sdk.audio.speech.with_streaming_response.create(
        model="narrator", voice="joe", input=TEXT, response_format="wav", stream_format="sse"
    ) as answer:
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
    assert events[-1]["type"] == "speech.audio.done"
    assert b"".join(base64.b64decode(event["audio"]) for event in events[:-1]) == spoken


@pytest.mark.proves(TRANSCRIPTIONS, "response_format", "timestamp_granularities[]", "language", backend="speech")
def test_a_verbose_transcript(sdk: openai.OpenAI, spoken: bytes) -> None:
    answer = sdk.audio.transcriptions.create(
        model="whisper-1",
        file=io.BytesIO(spoken),
        language="en",
        response_format="verbose_json",
        timestamp_granularities=["word", "segment"],
    )
    assert isinstance(answer, TranscriptionVerbose)
    assert answer.language == "en"
    assert answer.segments
    assert answer.words
    assert words(" ".join(word.word for word in answer.words)) == words(TEXT)
    assert answer.words[0].start < answer.words[-1].end <= float(answer.duration) + 0.5


@pytest.mark.proves(TRANSCRIPTIONS, "response_format", "prompt", "temperature", backend="speech")
def test_a_transcript_as_text(sdk: openai.OpenAI, spoken: bytes) -> None:
    text: Any = sdk.audio.transcriptions.create(
        model="ear", file=spoken, response_format="text", prompt="A fox.", temperature=0
    )
    assert isinstance(text, str)
    assert words(text) == words(TEXT)


@pytest.mark.proves(TRANSCRIPTIONS, "stream", backend="speech")
def test_a_streamed_transcript(sdk: openai.OpenAI, spoken: bytes) -> None:
    *deltas, done = sdk.audio.transcriptions.create(model="ear", file=spoken, stream=True)
    assert isinstance(done, TranscriptionTextDoneEvent)
    assert words(done.text) == words(TEXT)
    texts = [delta.delta for delta in deltas if isinstance(delta, TranscriptionTextDeltaEvent)]
    assert len(texts) == len(deltas) > 0
    assert "".join(texts).strip() == done.text


@pytest.mark.proves(TRANSLATIONS, "model", "file", backend="speech")
def test_a_translation(sdk: openai.OpenAI, spoken: bytes) -> None:
    with pytest.warns(DeprecationWarning):  # of the SDK's, as of the route at OpenAI
        answer = sdk.audio.translations.create(model="ear", file=spoken)
    assert "lazy dog" in answer.text.lower()


def test_what_an_engine_cannot_do_is_its_400(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="wav and pcm") as error:
        sdk.audio.speech.create(model="tts-1", voice="joe", input=TEXT, response_format="mp3")
    assert error.value.param == "response_format"


def test_no_file_is_a_400(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        sdk.audio.transcriptions.create(model="ear", file=b"")
    assert error.value.param == "file"
