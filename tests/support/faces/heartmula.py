"""A double of HeartMula's music server: its routes and answers, real WAV files, and what may go wrong.

What it does is chosen by the request's `prompt`; see `HeartMula._generate`.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from typing import Any

from tests.support.faces.speech import tone
from tests.support.upstream import Seen, Upstream, _answer, _until_left, _write


@dataclass
class HeartMula(Upstream):
    """`files`: the audio that was made, by name. A `slow` piece is made once `is_released`.

    `habit` is what goes wrong when audio is fetched, see `_send_file`.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    is_released: bool = False
    fetched: list[Seen] = field(default_factory=list)
    habit: str = ""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _answer_probe(self, path: str, writer: asyncio.StreamWriter) -> None:
        models = {"status": "ok", "object": "list", "data": [{"id": "echo", "object": "model"}]}
        await _answer(writer, 200 if self.healthy else 503, models)

    async def _act(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if seen.path.startswith("/audio/"):
            self.seen.pop()
            self.fetched.append(seen)
            await self._send_file(seen, reader, writer)
        elif seen.path == "/v1/music/generations":
            await self._generate(seen.json, reader, writer)
        else:
            await _answer(writer, 404, {"detail": "Not Found"})

    async def _generate(
        self, request: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        prompt = request.get("prompt") or ""
        if prompt == "hang":
            await _until_left(reader)
        elif prompt == "failed":
            await _answer(writer, 200, {"id": "x", "status": "failed", "error": "out of memory"})
        elif prompt.startswith("status-"):
            await _answer(writer, int(prompt.removeprefix("status-")), {"detail": "the model says no"})
        else:
            await self._make(request, reader, writer)

    async def _make(self, request: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = asyncio.create_task(reader.read(1))
        while request.get("prompt") == "slow" and not self.is_released:
            await asyncio.wait({left}, timeout=0.01)
            if left.done():
                raise ConnectionResetError
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        number = len(self.files) + 1
        name = f"music_{number}.wav"
        self.files[name] = tone(seconds=0.3, hertz=200 + 50 * number)
        piece = {
            "id": f"music_{number}",
            "status": "completed",
            "audio_url": f"/audio/{name}",
            "duration": request.get("duration", 30),
            "prompt": request.get("prompt"),
        }
        await _answer(writer, 200, piece)

    async def _send_file(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        audio = self.files.get(seen.path.removeprefix("/audio/"))
        if audio is None or self.habit:
            await self._send_no_file(audio or b"", reader, writer)
            return
        status, lines = 200, ""
        if wanted := re.fullmatch(r"bytes=(\d+)-(\d*)", seen.headers.get("range", "")):
            first, last = int(wanted[1]), int(wanted[2] or len(audio) - 1)
            if first >= len(audio):
                await _write(
                    writer, b"HTTP/1.1 416 X\r\nContent-Range: bytes */%d\r\nContent-Length: 0\r\n\r\n" % len(audio)
                )
                return
            status, lines = 206, f"Content-Range: bytes {first}-{last}/{len(audio)}\r\n"
            audio = audio[first : last + 1]
        head = f"HTTP/1.1 {status} X\r\nContent-Type: audio/x-wav\r\nAccept-Ranges: bytes\r\n{lines}Content-Length: "
        await _write(writer, f"{head}{len(audio)}\r\n\r\n".encode() + audio)

    async def _send_no_file(self, audio: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.habit == "hang":
            await _until_left(reader)
        elif self.habit in ("die-mid", "hang-mid"):
            head = f"HTTP/1.1 200 OK\r\nContent-Type: audio/x-wav\r\nContent-Length: {len(audio)}\r\n\r\n"
            await _write(writer, head.encode() + audio[:1000])
            if self.habit == "hang-mid":
                await _until_left(reader)
            writer.transport.abort()
        else:
            await _answer(writer, 404, {"detail": "Not Found"})
