"""A small server that speaks and transcribes as it is told: OpenAI's routes, and the habits of other servers.

What it does is chosen by the request's `model`; see `SpeechServer._speak` and `_transcribe`.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import math
import struct
import wave
from dataclasses import dataclass

from tests.support.upstream import Seen, Upstream, _answer, _chunk, _until_left, _write

TRANSCRIPT = "The quick brown fox."
VERBOSE = {
    "task": "transcribe",
    "language": "english",
    "duration": 1.5,
    "text": TRANSCRIPT,
    "segments": [{"id": 0, "start": 0.0, "end": 1.5, "text": TRANSCRIPT}],
}
SRT = f"1\n00:00:00,000 --> 00:00:01,500\n{TRANSCRIPT}\n\n"
VTT = f"WEBVTT\n\n00:00.000 --> 00:01.500\n{TRANSCRIPT}\n\n"
EVENTS = (
    b'event: transcript.text.delta\ndata: {"type":"transcript.text.delta","delta":"The quick"}\n\n',
    b'event: transcript.text.delta\ndata: {"type":"transcript.text.delta","delta":" brown fox."}\n\n',
    b'event: transcript.text.done\ndata: {"type":"transcript.text.done","text":"The quick brown fox."}\n\n',
)
PIECE = 4096


def tone(seconds: float = 0.5, hertz: float = 440, rate: int = 8000) -> bytes:
    """A WAV file of one tone."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        samples = (round(9000 * math.sin(2 * math.pi * hertz * n / rate)) for n in range(int(seconds * rate)))
        file.writeframes(b"".join(struct.pack("<h", sample) for sample in samples))
    return buffer.getvalue()


AUDIO = tone()


@dataclass
class SpeechServer(Upstream):
    """`sent` counts the bytes of an endless answer."""

    sent: int = 0

    async def _act(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if seen.path.endswith(("/transcriptions", "/translations")):
            await self._transcribe(field(seen, "model"), seen, reader, writer)
        else:
            await self._speak(seen.json.get("model", ""), reader, writer)

    async def _speak(self, model: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if model.startswith("json-"):
            await _answer(writer, 200, {model.removeprefix("json-"): base64.b64encode(AUDIO).decode(), "format": "wav"})
        elif model == "empty":
            await _write(writer, b"HTTP/1.1 200 OK\r\nContent-Type: audio/wav\r\nContent-Length: 0\r\n\r\n")
        elif model == "events":
            await _stream(writer, b"text/event-stream", b'data: {"type":"speech.audio.delta","audio":"QUJD"}\n\n')
        elif model in ("endless", "hang-mid", "hang-first", "die-mid"):
            await self._begin(model, reader, writer)
        elif model == "hang":
            await _until_left(reader)
        else:
            await _stream(writer, b"audio/wav", AUDIO)

    async def _begin(self, model: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _write(writer, b"HTTP/1.1 200 OK\r\nContent-Type: audio/wav\r\nTransfer-Encoding: chunked\r\n\r\n")
        if model != "hang-first":
            await _chunk(writer, AUDIO[:PIECE])
        while model == "endless":
            await _chunk(writer, bytes(PIECE))
            self.sent += PIECE
        if model in ("hang-mid", "hang-first"):
            await _until_left(reader)
        writer.transport.abort()

    async def _transcribe(
        self, model: str, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        wanted = "json" if model == "always-json" else field(seen, "response_format").lower() or "json"
        if model == "hang":
            await _until_left(reader)
        elif model.startswith("unframed"):
            await _until_closed(writer, field(seen, "stream") == "true", wanted, is_cut=model == "unframed-cut")
        elif model == "half-event":
            await _stream(writer, b"text/event-stream", *EVENTS[:2], EVENTS[2][:-9])
        elif model == "no-last-event":
            await _stream(writer, b"text/event-stream", *EVENTS[:2])
        elif model == "no-blank-line":
            await _stream(writer, b"text/event-stream", *EVENTS[:2], EVENTS[2].rstrip())
        elif model == "no-events":
            await _stream(writer, b"text/event-stream")
        elif field(seen, "stream") == "true" and model != "always-json":
            await _stream(writer, b"text/event-stream", *EVENTS)
        elif wanted == "json":
            await _answer(writer, 200, {"text": TRANSCRIPT, "usage": {"type": "duration", "seconds": 2}})
        elif wanted in ("verbose_json", "diarized_json"):
            await _answer(writer, 200, VERBOSE)
        else:
            text = {"text": TRANSCRIPT + "\n", "srt": SRT, "vtt": VTT}[wanted].encode()
            head = f"HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {len(text)}\r\n\r\n"
            await _write(writer, head.encode() + text)


async def _stream(writer: asyncio.StreamWriter, content_type: bytes, *pieces: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nTransfer-Encoding: chunked\r\n\r\n" % content_type
    await _write(writer, head)
    for piece in pieces:
        for at in range(0, len(piece), PIECE):
            await _chunk(writer, piece[at : at + PIECE])
            await asyncio.sleep(0)
    await _write(writer, b"0\r\n\r\n")


async def _until_closed(writer: asyncio.StreamWriter, as_events: bool, wanted: str, *, is_cut: bool) -> None:
    """An answer without a length: only the connection's end tells its end, also where it was cut."""
    if as_events:
        media, body = "text/event-stream", b"".join(EVENTS[:2] if is_cut else EVENTS)
    elif wanted == "json":
        media, body = "application/json", json.dumps({"text": TRANSCRIPT}).encode()[: -2 if is_cut else None]
    else:
        media, body = "text/plain", TRANSCRIPT.encode()
    await _write(writer, f"HTTP/1.1 200 OK\r\nContent-Type: {media}\r\nConnection: close\r\n\r\n".encode() + body)
    raise ConnectionResetError


def field(seen: Seen, name: str) -> str:
    """The text of a field of a multipart request, "" without one."""
    head = b'name="%b"\r\n\r\n' % name.encode()
    _, found, rest = seen.body.partition(head)
    return rest.partition(b"\r\n--")[0].decode() if found else ""


def content(seen: Seen) -> bytes:
    """The file of a multipart request."""
    head = seen.body.index(b"\r\n\r\n", seen.body.index(b"filename=")) + 4
    return seen.body[head : seen.body.index(b"\r\n--" + _boundary(seen), head)]


def _boundary(seen: Seen) -> bytes:
    return seen.headers["content-type"].partition("boundary=")[2].strip('"').encode()
