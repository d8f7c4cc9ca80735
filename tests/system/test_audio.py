"""Speech and transcription through a running gateway: every field, every habit of a backend, every way to fail."""

import base64
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from tests.support.faces.speech import AUDIO, EVENTS, PIECE, TRANSCRIPT, VERBOSE, SpeechServer, content, field
from tests.support.gateways import Gateway, gateway, write_files
from tests.support.sockets import read_until, send
from tests.support.upstream import running, upstream
from tests.support.wire import settle

SPEECH = "/v1/audio/speech"
TTS = "/v1/tts/generations"
TRANSCRIPTIONS = "/v1/audio/transcriptions"
TRANSLATIONS = "/v1/audio/translations"
FILE = {"file": ("a.wav", AUDIO, "audio/wav")}


@pytest.fixture(scope="module")
def server() -> Iterator[SpeechServer]:
    with running(SpeechServer()) as double:
        yield double


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory, server: SpeechServer) -> Iterator[Gateway]:
    """Class `narrow` speaks once at a time; the first host of class `pair` hangs up; class `lux` only speaks."""
    home = tmp_path_factory.mktemp("speaking")
    able: Any = {"supported_capabilities": ["chat", "tts", "transcription"]}
    with upstream() as gone:
        others = {
            "narrow@here": {**able, "concurrency_limits": {"tts": 1}},
            "pair@here": {**able, "base_url": gone.url},
            "pair@there": able,
            "lux@here": {"base_url": server.url.removesuffix("/v1"), "supported_capabilities": ["tts"]},
        }
        write_files(home, server.url, others, **able)
        aliases = {"default": "test:echo", "narrator": "lux:slow-voice"}
        (home / "model_aliases.json").write_text(json.dumps({"aliases": aliases}))
        classes: Any = {"TTS_BACKEND_CLASS": "test", "TRANSCRIPTION_BACKEND_CLASS": "test"}
        limits: Any = {"TTS_TIMEOUT_SEC": "3", "MAX_UPLOAD_BYTES": "3000000"}
        with gateway(home, **classes, **limits, TTS_GENERATE_PATH="/v1/speak?fast=1") as served:
            yield served


@pytest.fixture(autouse=True)
def nothing_seen(server: SpeechServer) -> None:
    server.seen.clear()


def say(served: Gateway, model: str, path: str = SPEECH, **fields: Any) -> httpx.Response:
    return served.client.post(path, json={"model": model, "input": "Hi", "voice": "joe", **fields})


def write_down(served: Gateway, model: str, path: str = TRANSCRIPTIONS, **fields: Any) -> httpx.Response:
    return served.client.post(path, data={"model": model, **fields}, files=FILE)


def failure(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


@pytest.mark.proves(SPEECH, "model", "input", "voice", "response_format", "speed", "instructions", backend="speech")
@pytest.mark.proves(TTS, "model", "input", "voice", "response_format", "speed", "instructions", backend="speech")
@pytest.mark.parametrize("path", [SPEECH, TTS])
@pytest.mark.parametrize("model", ["any", "json-audio"])
def test_audio_comes_as_the_backend_makes_it(speaking: Gateway, server: SpeechServer, path: str, model: str) -> None:
    fields = {"response_format": "mp3", "speed": 0.25, "instructions": "gladly", "emotion": ["extra", 10**30]}
    answer = say(speaking, model, path, **fields)
    assert answer.status_code == 200, answer.text
    assert answer.content == AUDIO
    assert answer.headers["content-type"] == "audio/wav", "what it is, not what was asked for"
    assert answer.headers["x-gateway-backend"] == "test@here"
    assert answer.headers["x-gateway-backend-class"] == answer.headers["x-backend-used"] == "test"
    assert float(answer.headers["x-gateway-upstream-latency-ms"]) > 0
    assert answer.headers["x-model-used"] == model
    assert answer.headers["x-request-id"]
    assert server.seen[0].path == "/v1/speak?fast=1"
    assert server.seen[0].json == {"model": model, "input": "Hi", "voice": "joe", **fields}


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.headers["content-type"] == "text/event-stream"
    found = (event.rpartition("data: ")[2] for event in answer.text.split("\n\n") if event)
    return [json.loads(event) for event in found]


@pytest.mark.proves(SPEECH, "stream_format", backend="speech")
@pytest.mark.proves(TTS, "stream_format", backend="speech")
@pytest.mark.parametrize("path", [SPEECH, TTS])
@pytest.mark.parametrize("model", ["any", "json-audio"])
def test_audio_as_events_of_a_backend_that_knows_none(speaking: Gateway, model: str, path: str) -> None:
    *deltas, done = events(say(speaking, model, path, stream_format="sse"))
    assert {delta["type"] for delta in deltas} == {"speech.audio.delta"}
    assert b"".join(base64.b64decode(delta["audio"]) for delta in deltas) == AUDIO
    assert done == {"type": "speech.audio.done"}


@pytest.mark.proves(SPEECH, "stream_format", backend="speech")
def test_events_of_a_backend_pass(speaking: Gateway, server: SpeechServer) -> None:
    assert events(say(speaking, "events", stream_format="sse")) == [{"type": "speech.audio.delta", "audio": "QUJD"}]
    assert server.seen[0].json["stream_format"] == "sse"
    assert say(speaking, "any", stream_format="audio").content == AUDIO


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": ["Hi"]}, "input"),
        ({"input": "Hi", "speed": 4.5}, "speed"),
        ({"input": "Hi", "speed": 0.2}, "speed"),
        ({"input": "Hi", "voice": 5}, "voice"),
        ({"input": "Hi", "stream_format": "ndjson"}, "stream_format"),
        ({"input": "Hi", "response_format": 5}, "response_format"),
    ],
)
def test_a_wrong_field_is_a_400_that_names_it(
    speaking: Gateway, server: SpeechServer, body: dict[str, Any], param: str
) -> None:
    answer = speaking.client.post(SPEECH, json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].split(".")[0] == param
    assert server.seen == []


@pytest.mark.parametrize("model", ["empty", "events"])
def test_an_answer_without_audio(speaking: Gateway, model: str) -> None:
    assert failure(say(speaking, model)) == (502, "upstream_error")
    speaking.wait_until_idle()


def test_audio_that_breaks_off_is_not_taken_for_whole(speaking: Gateway) -> None:
    received = b""
    with (
        pytest.raises(httpx.RemoteProtocolError),
        speaking.client.stream("POST", SPEECH, json={"model": "die-mid", "input": "Hi"}) as answer,
    ):
        for chunk in answer.iter_raw():
            received += chunk
    assert AUDIO.startswith(received)
    entry = speaking.log_entry(lambda entry: entry.get("upstream_model") == "die-mid")
    assert (entry["status"], entry["abort_reason"]) == (200, "upstream_closed")
    speaking.wait_until_idle()


def test_events_that_break_off_end_with_an_error(speaking: Gateway) -> None:
    *deltas, error = events(say(speaking, "die-mid", stream_format="sse"))
    assert b"".join(base64.b64decode(delta["audio"]) for delta in deltas) == AUDIO[:PIECE]
    assert error["error"]["code"] == "upstream_closed"


def begin(port: int, path: str, model: str) -> socket.socket:
    """A request on a connection of its own, not waited for."""
    if path == TRANSCRIPTIONS:
        return send(port, path, data={"model": model}, files=FILE)
    return send(port, path, {"model": model, "input": "Hi"})


@pytest.mark.parametrize(
    ("path", "model"),
    [(SPEECH, "hang"), (SPEECH, "hang-mid"), (TRANSCRIPTIONS, "hang")],
    ids=["before the first byte", "mid-stream", "transcription"],
)
def test_backend_sees_its_client_leave(speaking: Gateway, server: SpeechServer, path: str, model: str) -> None:
    with begin(speaking.port, path, model) as connection:
        server.wait_for(1)
        if model == "hang-mid":
            read_until(connection, b"RIFF")
    server.wait_for(1, left=True)
    speaking.wait_until_idle()


def test_nothing_is_taken_from_a_backend_that_its_client_does_not_take(speaking: Gateway, server: SpeechServer) -> None:
    with begin(speaking.port, SPEECH, "endless") as connection:
        read_until(connection, b"RIFF")
        assert settle(lambda: server.sent) < 64_000_000, "more than the buffers of sockets hold"
    server.wait_for(1, left=True)
    speaking.wait_until_idle()


def test_what_does_not_begin_in_time_is_a_504(speaking: Gateway, server: SpeechServer) -> None:
    with ExitStack() as stack:
        models = ("hang", "hang-first")  # a head alone is nothing to hear
        asked = [stack.enter_context(begin(speaking.port, SPEECH, model)) for model in models]
        for connection in asked:
            assert read_until(connection, b'"code":"upstream_timeout"').startswith(b"HTTP/1.1 504 ")
    server.wait_for(2, left=True)


def test_a_slot_is_held_until_the_last_byte(speaking: Gateway) -> None:
    with begin(speaking.port, SPEECH, "narrow:hang-mid") as connection:
        read_until(connection, b"RIFF")
        assert failure(say(speaking, "narrow:any")) == (429, "backend_overloaded")
        assert write_down(speaking, "narrow:any").status_code == 200, "another capability has slots of its own"
    speaking.wait_until_idle()
    assert say(speaking, "narrow:any").status_code == 200


def test_where_a_voice_is_looked_for(speaking: Gateway, server: SpeechServer) -> None:
    for model in ("lux:slow-voice", "narrator"):
        answer = say(speaking, model)
        assert answer.headers["x-gateway-backend"] == "lux@here"
        assert server.seen[-1].json["model"] == answer.headers["x-model-used"] == "slow-voice"
    headers = {"X-Backend": "lux"}
    answer = speaking.client.post(SPEECH, json={"input": "Hi"}, headers=headers)
    assert answer.headers["x-router-reason"] == "override:x-backend"
    assert server.seen[-1].json == {"input": "Hi"}
    answer = speaking.client.post(TRANSCRIPTIONS, files=FILE, headers=headers)
    assert failure(answer) == (400, "capability_not_supported")


def test_a_host_that_is_gone_is_replaced_by_another(speaking: Gateway, server: SpeechServer) -> None:
    answer = say(speaking, "pair:die-before")
    assert (answer.content, answer.headers["x-gateway-backend"]) == (AUDIO, "pair@there")


@pytest.mark.proves(
    TRANSCRIPTIONS,
    *("file", "model", "language", "prompt", "temperature", "response_format"),
    *("timestamp_granularities[]", "include[]", "chunking_strategy"),
    backend="speech",
)
def test_a_form_goes_on_as_it_came(speaking: Gateway, server: SpeechServer) -> None:
    fields = {
        "language": "en",
        "prompt": "Ümläut",
        "temperature": "0.2",
        "response_format": "verbose_json",
        "timestamp_granularities[]": ["word", "segment"],
        "include[]": "logprobs",
        "chunking_strategy": "auto",
        "beam_size": "5",
    }
    sent = httpx.Request("POST", "http://x", data={"model": "whisper-1", **fields}, files=FILE)
    answer = speaking.client.post(
        TRANSCRIPTIONS, content=sent.read(), headers={"Content-Type": sent.headers["content-type"]}
    )
    assert answer.status_code == 200, answer.text
    assert answer.json() == VERBOSE
    assert answer.headers["x-gateway-backend"] == "test@here"
    assert server.seen[0].path == TRANSCRIPTIONS
    assert server.seen[0].body == sent.read()


@pytest.mark.proves(TRANSCRIPTIONS, "model", backend="speech")
@pytest.mark.parametrize(
    ("model", "upstream_model"), [("test:whisper-large", "whisper-large"), ("test", ""), ("auto", "")]
)
def test_the_upstream_model_s_name_takes_the_place_of_the_client_s(
    speaking: Gateway, server: SpeechServer, model: str, upstream_model: str
) -> None:
    large = bytes(range(256)) * 8_000
    answer = speaking.client.post(
        TRANSCRIPTIONS, data={"model": model, "prompt": "x"}, files={"file": ("a.wav", large)}
    )
    assert answer.json()["text"] == TRANSCRIPT
    assert field(server.seen[0], "model") == upstream_model
    assert field(server.seen[0], "prompt") == "x"
    assert content(server.seen[0]) == large


@pytest.mark.proves(TRANSLATIONS, "file", "model", "prompt", "response_format", "temperature", backend="speech")
def test_a_translation(speaking: Gateway, server: SpeechServer) -> None:
    fields = {"prompt": "x", "response_format": "verbose_json", "temperature": "0"}
    assert write_down(speaking, "any", TRANSLATIONS, **fields).json() == VERBOSE
    assert server.seen[0].path == TRANSLATIONS
    assert {name: field(server.seen[0], name) for name in fields} == fields


@pytest.mark.parametrize("model", ["half-event", "unframed-cut", "no-events"])
def test_a_stream_that_ends_too_early_is_not_taken_for_whole(speaking: Gateway, model: str) -> None:
    *deltas, error = events(write_down(speaking, model, stream="true"))
    assert [delta["delta"] for delta in deltas] == ([] if model == "no-events" else ["The quick", " brown fox."])
    assert error["error"]["code"] == "upstream_closed"
    speaking.wait_until_idle()


@pytest.mark.proves(TRANSCRIPTIONS, "stream", backend="speech")
@pytest.mark.parametrize(
    ("model", "passed"),
    [("any", EVENTS), ("unframed", EVENTS), ("no-blank-line", EVENTS), ("no-last-event", EVENTS[:2])],
)
def test_whole_stream_passes_however_it_ends(
    speaking: Gateway, server: SpeechServer, model: str, passed: tuple[bytes, ...]
) -> None:
    answer = write_down(speaking, model, stream="true")
    assert answer.content == b"".join(passed)
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["x-accel-buffering"] == "no"
    assert field(server.seen[0], "stream") == "true"


def test_a_transcript_whose_end_nothing_tells(speaking: Gateway) -> None:
    """JSON tells its own end, a text does not."""
    assert write_down(speaking, "unframed").json() == {"text": TRANSCRIPT}
    for model, wanted, code in (("unframed-cut", "json", "upstream_error"), ("unframed", "text", "upstream_closed")):
        assert failure(write_down(speaking, model, response_format=wanted)) == (502, code)


@pytest.mark.proves(TRANSCRIPTIONS, "stream", "response_format", backend="speech")
def test_a_backend_that_knows_only_json(speaking: Gateway) -> None:
    delta, done = events(write_down(speaking, "always-json", stream="true"))
    assert delta == {"type": "transcript.text.delta", "delta": TRANSCRIPT}
    assert done == {"type": "transcript.text.done", "text": TRANSCRIPT, "usage": {"type": "duration", "seconds": 2}}
    assert write_down(speaking, "always-json", response_format="text").text == TRANSCRIPT + "\n"
    assert failure(write_down(speaking, "always-json", response_format="srt")) == (502, "upstream_error")


@pytest.mark.parametrize(
    ("fields", "files", "param"),
    [
        ({"model": "any"}, {}, "file"),
        ({"file": "no file"}, {"other": b"x"}, "file"),
        ({}, {"file": ("a.wav", b"")}, "file"),
        ({"response_format": "docx"}, FILE, "response_format"),
        ({"stream": "perhaps"}, FILE, "stream"),
        ({"model": ["a", "b"]}, FILE, "model"),
    ],
)
def test_a_wrong_form_is_a_400_that_names_the_field(
    speaking: Gateway, server: SpeechServer, fields: dict[str, Any], files: Any, param: str
) -> None:
    answer = speaking.client.post(TRANSCRIPTIONS, data=fields, files=files or {"x": b"x"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert server.seen == []


def test_what_is_no_form_is_a_400(speaking: Gateway) -> None:
    assert failure(speaking.client.post(TRANSCRIPTIONS, json={"file": "x"})) == (400, "invalid_multipart")
