"""Images on their way: in base64, in a multipart body."""

from __future__ import annotations

from uuid import uuid4

from gateway.backends.protocols.base import AnswerError
from gateway.backends.protocols.image_formats import kind_of
from gateway.backends.protocols.image_request import Upload
from gateway.backends.protocols.steps import Ask, Steps
from gateway.wire.stepwise import decoded

Part = tuple[str, str | Upload]


def image_bytes(text: str | memoryview) -> Steps[bytes]:
    """The image in a base64 text, which may have a `data:` prefix; raises AnswerError for anything else."""
    try:
        data = yield from decoded(text)
    except ValueError:
        raise AnswerError("b64_json that is not base64") from None
    check_image(data)
    return data


def check_image(data: bytes) -> None:
    """Raises AnswerError for anything but an image of a kind that the gateway passes on."""
    if kind_of(data) is None:
        raise AnswerError("something other than a PNG, JPEG, WebP or SVG")


def fetched_image(path: str) -> Steps[bytes]:
    """The image at `path`; raises as `image_bytes`, ErrorStatus."""
    reply = yield Ask("GET", path)
    check_image(reply.content())
    return reply.body


def multipart(parts: list[Part]) -> tuple[bytes, str]:
    """A multipart/form-data body and its content type."""
    boundary = uuid4().hex
    pieces = []
    for name, value in parts:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{_quoted(name)}"'
        if isinstance(value, Upload):
            head += f'; filename="{_quoted(value.filename)}"\r\nContent-Type: {value.content_type}'
        data = value.data if isinstance(value, Upload) else value.encode("utf-8", "surrogatepass")
        pieces += [head.encode("utf-8", "replace"), b"\r\n\r\n", data, b"\r\n"]
    pieces.append(f"--{boundary}--\r\n".encode())
    return b"".join(pieces), f"multipart/form-data; boundary={boundary}"


def _quoted(text: str) -> str:
    """As browsers write it (WHATWG HTML, multipart/form-data encoding)."""
    return text.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
