"""What doubles of image servers share, and one that speaks OpenAI's image routes as the InvokeAI shim does."""

from __future__ import annotations

import asyncio
import base64
import email
import email.policy
import hashlib
import json
import struct
import zlib
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from tests.support.upstream import Seen, Upstream, _answer, _write


def png(width: int, height: int, seed: object = 0, *, alpha: bool = False) -> bytes:
    """A PNG of one colour, which depends on `seed`."""
    colour = hashlib.sha256(repr(seed).encode()).digest()[: 4 if alpha else 3]
    rows = (b"\0" + colour * width) * height
    header = struct.pack(">IIBBBBB", width, height, 8, 6 if alpha else 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def form(seen: Seen) -> dict[str, list[bytes]]:
    """The parts of a multipart body, by name."""
    head = f"Content-Type: {seen.headers['content-type']}\r\n\r\n".encode()
    parts: dict[str, list[bytes]] = {}
    for part in email.message_from_bytes(head + seen.body, policy=email.policy.HTTP).iter_parts():
        name = str(part.get_param("name", header="content-disposition"))
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        parts.setdefault(name, []).append(content)
    return parts


@dataclass
class Reply:
    """An answer; `content` is JSON, or a file's bytes."""

    content: Any
    status: int = 200
    content_type: str = "image/png"


@dataclass
class ImageServer(Upstream):
    """Answers each request by `reply`, which a double has; `faults` by path say what to do instead, once each.

    A fault is the bytes of a JSON answer of status 200.
    """

    faults: dict[str, bytes] = field(default_factory=dict)

    async def _act(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        fault = next((name for name in self.faults if name in seen.path), None)
        if fault is not None:
            await _send(writer, Reply(self.faults.pop(fault), content_type="application/json"))
            return
        left = asyncio.ensure_future(reader.read(1))  # returns when the client is gone: it sends nothing before
        work = asyncio.ensure_future(self.reply(seen))
        await asyncio.wait((left, work), return_when=asyncio.FIRST_COMPLETED)
        for task in (left, work):
            task.cancel()
        if not work.done():
            await asyncio.wait((work,))
            raise ConnectionResetError
        await asyncio.wait((left,))
        await _send(writer, work.result())

    async def reply(self, seen: Seen) -> Reply:
        raise NotImplementedError

    def asked(self, path: str) -> list[Seen]:
        """The requests for a path."""
        return [seen for seen in self.seen if urlsplit(seen.path).path == path]


async def _send(writer: asyncio.StreamWriter, reply: Reply) -> None:
    if not isinstance(reply.content, bytes):
        await _answer(writer, reply.status, reply.content)
        return
    lines = f"HTTP/1.1 {reply.status} X", f"Content-Type: {reply.content_type}", f"Content-Length: {len(reply.content)}"
    await _write(writer, "\r\n".join([*lines, "", ""]).encode() + reply.content)


@dataclass
class OpenAIImages(ImageServer):
    """OpenAI's routes. What it does is chosen by the request's `model`."""

    async def reply(self, seen: Seen) -> Reply:
        if seen.path.endswith("/images/edits"):
            parts = form(seen)
            request: Any = {name: values[0].decode() for name, values in parts.items() if name not in _FILES}
        else:
            request = seen.json
        match request.get("model", ""):
            case "slow":
                await asyncio.sleep(60)
            case "url":
                return Reply({"created": 1, "data": [{"url": "https://elsewhere.test/image.png"}]})
            case "webp":
                return Reply({"created": 1, "data": [{"b64_json": text(b"RIFF\x10\0\0\0WEBPVP8X" + bytes(20))}]})
            case "text":
                return Reply({"created": 1, "data": [{"b64_json": text(b"just words")}]})
            case "few":
                return Reply({"created": 1, "data": []})
            case "busy":
                return Reply({"error": {"message": "queue is full", "code": "busy"}}, 429)
        size = str(request.get("size") or "1024x1024")
        width, height = map(int, size.split("x"))
        data: list[dict[str, Any]] = [
            {"b64_json": text(png(width, height, (seen.body, index)))} for index in range(int(request.get("n", 1)))
        ]
        return Reply({"created": 1, "data": data, "size": size, "usage": USAGE})


_FILES = ("image", "image[]", "mask")
USAGE = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}


def shape(value: Any) -> Any:
    """What a JSON value is made of: keys and types; of a list its first item's."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


def fits(double: Any, real: Any) -> bool:
    """Whether all that a double's shape has is in the real one's; null and an empty list fit everything."""
    if "NoneType" in (double, real) or [] in (double, real):
        return True
    if isinstance(double, dict) and isinstance(real, dict):
        return all(key in real and fits(item, real[key]) for key, item in double.items())
    if isinstance(double, list) and isinstance(real, list):
        return fits(double[0], real[0])
    return bool(double == real)


def loads(body: bytes) -> Any:
    return json.loads(body or b"null")
