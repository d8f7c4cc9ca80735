"""Speech and transcription, sans I/O: OpenAI's routes, and what speech servers send instead of its answers."""

from __future__ import annotations

import base64
import re
from collections.abc import Generator, Mapping
from typing import Any

from gateway.backends.protocols.base import AnswerError, event, json_and_texts, json_value, quoted
from gateway.errors import ApiError
from gateway.wire.stepwise import decoded

AUDIO_TYPES = {
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "ogg": "audio/ogg",
    "aac": "audio/aac",
    "flac": "audio/flac",
    "wav": "audio/wav",
    "pcm": "audio/pcm",
}
MAGIC = (
    ("wav", re.compile(rb"RIFF.{4}WAVE", re.DOTALL)),
    ("ogg", re.compile(rb"OggS")),
    ("flac", re.compile(rb"fLaC")),
    ("aac", re.compile(rb"\xff[\xf1\xf9]")),
    ("mp3", re.compile(rb"ID3|\xff[\xfa\xfb\xf2\xf3]")),
)
USUAL_FORMAT = "mp3"  # OpenAI's, where a request names none
# What a server says of audio when it does not know better.
VAGUE_TYPES = ("", "application/octet-stream", "binary/octet-stream", "audio/*")
AUDIO_KEYS = ("audio_base64", "audio", "audio_data")
LINE_CHARS = 100  # MIME's lines of base64 have 76
JSON_FORMATS = ("json", "verbose_json", "diarized_json")
TEXT_TYPES = {"text": "text/plain; charset=utf-8", "srt": "application/x-subrip", "vtt": "text/vtt; charset=utf-8"}


def speech_request(request: Mapping[str, Any], model: str) -> dict[str, Any]:
    """OpenAI's request: `text` and `format` are other names of `input` and `response_format`.

    `model` is "" where the server has the choice; every other field is forwarded as it came.
    Raises ApiError 400 where there is nothing to say, or two different values for one field.
    """
    wanted = {name: value for name, value in request.items() if name != "model" and value is not None}
    for other, name in (("text", "input"), ("format", "response_format")):
        value = wanted.pop(other, None)
        if value is None:
            continue
        if wanted.setdefault(name, value) != value:
            raise ApiError(400, f"'{other}' is another name of '{name}': send one", param=other, code="conflict")
    if not wanted.get("input"):
        raise ApiError(400, "Say what to speak: 'input' (or 'text') is missing", param="input", code="missing")
    if model:
        wanted["model"] = model
    return wanted


def audio_type(declared: str, head: bytes, wanted: str | None) -> str:
    """The media type of audio: what the server says, else what its first bytes are, else what was asked for."""
    media = declared.partition(";")[0].strip().lower()
    if media not in VAGUE_TYPES:
        return declared
    sniffed = next((name for name, begins in MAGIC if begins.match(head)), (wanted or USUAL_FORMAT).lower())
    return AUDIO_TYPES.get(sniffed, "application/octet-stream")


def is_audio(declared: str) -> bool:
    """Whether a content type is one of audio, or none that says anything."""
    media = declared.partition(";")[0].strip().lower()
    return media.startswith("audio/") or media in VAGUE_TYPES


def audio_in_json(body: bytes) -> Generator[None, None, bytes]:
    """The audio of a JSON answer, base64 under one of AUDIO_KEYS, perhaps as a `data:` URL; raises AnswerError."""
    content, texts = json_and_texts(body)
    values = map(content.get, AUDIO_KEYS)
    text = next((value for value in values if isinstance(value, str) and value), None)
    if text is None:
        raise AnswerError(f"JSON without audio: {_words(content)}")
    if len(text[:LINE_CHARS].split()) > 1:  # in lines, as MIME has it
        text = "".join(text.split())
    try:
        audio = yield from decoded(texts.get(text, text.strip()))
    except ValueError:
        raise AnswerError("its audio is not base64") from None
    if not audio:
        raise AnswerError("no audio")
    return audio


def speech_delta(audio: bytes) -> bytes:
    """One event of OpenAI's `stream_format` sse."""
    return event({"type": "speech.audio.delta", "audio": base64.b64encode(audio).decode()})


def speech_done() -> bytes:
    """The last one. Without usage: a server that sends plain audio tells none."""
    return event({"type": "speech.audio.done"})


def transcript(wanted: str, content_type: str, body: bytes) -> tuple[str, bytes]:
    """Content type and body for the client that asked for format `wanted`; as they came wherever they are of it.

    Raises AnswerError for no transcript, or one not in that format and not to be had from the answer.
    """
    media = content_type.partition(";")[0].strip().lower()
    if media == "application/json":
        content = json_value(body)
        if isinstance(content, dict) and isinstance(content.get("text"), str):
            if wanted not in TEXT_TYPES:
                return content_type, body
            if wanted == "text":
                return TEXT_TYPES["text"], content["text"].encode() + b"\n"
        if isinstance(content, str) and wanted in TEXT_TYPES:
            return TEXT_TYPES[wanted], content.encode()
        what = f"JSON instead of {wanted}" if wanted in TEXT_TYPES else "JSON without a text"
        raise AnswerError(f"{what}: {_words(content)}")
    is_text = media.startswith("text/") or media == "application/x-subrip"
    if not is_text or media == "text/html" or wanted not in TEXT_TYPES:
        raise AnswerError(f"content type '{content_type[:100]}' instead of {wanted}")
    return content_type, body


def transcript_events(body: bytes) -> bytes:
    """A whole JSON answer as the events of OpenAI's `stream`, for a server that does not stream; raises AnswerError."""
    content = json_value(body)
    text = content.get("text") if isinstance(content, dict) else None
    if not isinstance(text, str):
        raise AnswerError(f"JSON without a text: {_words(content)}")
    rest = {name: content[name] for name in ("usage", "logprobs") if content.get(name) is not None}
    return event({"type": "transcript.text.delta", "delta": text}) + event(
        {"type": "transcript.text.done", "text": text, **rest}
    )


def _words(content: Any) -> str:
    """What another answer says of itself."""
    return quoted(content.get("detail", content) if isinstance(content, dict) else content, 300)
