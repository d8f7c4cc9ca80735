"""OpenAI's image API as small servers speak it: the InvokeAI shim, sd.cpp's and their like."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import orjson

from gateway.backends.converse import Ask, Steps, paced
from gateway.backends.protocols.base import AnswerError, quoted
from gateway.backends.protocols.image_formats import kind_of
from gateway.backends.protocols.image_request import GUIDANCE, ImageRequest, Painting, Upload
from gateway.routing.body import dump
from gateway.wire.stepwise import LongTexts, decoded

Part = tuple[str, str | Upload]


def paint(request: ImageRequest, root: str) -> Steps[Painting]:
    """Asks for images, or for an edit of those that the request has; below `root`, such as `/v1`.

    All fields are forwarded. Distilled models, with "turbo" in their names, are made for no guidance: they get 0
    where the request names none.
    """
    sent: dict[str, Any] = {"prompt": request.prompt, "n": request.n, "response_format": "b64_json"}
    if request.model:
        sent["model"] = request.model
    if request.size is not None:
        sent["size"] = f"{request.size.width}x{request.size.height}"
    sent |= request.fields
    if "turbo" in request.model.lower() and not any(name in sent for name in GUIDANCE):
        sent["guidance_scale"] = 0
    if request.images:
        body, content_type = multipart(_parts(sent, request))
        ask = Ask("POST", f"{root}/images/edits", body, content_type)
    else:
        ask = Ask("POST", f"{root}/images/generations", dump(sent))
    return _asked(ask, request, sent)


def _asked(ask: Ask, request: ImageRequest, sent: dict[str, Any]) -> Steps[Painting]:
    reply = yield ask
    answer, texts = reply.json_and_texts()
    items = answer.pop("data", None)
    if not isinstance(items, list) or len(items) < request.n:
        raise AnswerError(f"fewer than {request.n} images: {quoted(answer, 200)}")
    images = []
    for item in items[: request.n]:
        images += [(yield from _image(item, texts))]
    wanted = request.fields.get("output_format")
    if wanted is not None and kind_of(images[0]) != {"jpeg": "jpg"}.get(wanted, wanted):
        raise AnswerError(f"an image that is not of the output_format '{wanted}'")
    revised = [item.get("revised_prompt") for item in items[: request.n]]
    return Painting(images, sent, answer, [text if isinstance(text, str) else None for text in revised])


def _image(item: Any, texts: LongTexts) -> Steps[bytes]:
    """The bytes of one item. A `url` is taken only when it holds the image: nothing else is fetched, no file read."""
    item = item if isinstance(item, dict) else {}
    text = item.get("b64_json")
    if not isinstance(text, str) or not text:
        text = item.get("url")
        if not isinstance(text, str) or not (text in texts or text.startswith("data:")):
            what = "a URL or a path" if isinstance(text, str) else "nothing"
            raise AnswerError(f"{what} instead of an image in b64_json")
    return (yield from image_bytes(texts.get(text, text)))


def image_bytes(text: str | memoryview) -> Steps[bytes]:
    """The image in a base64 text, which may have a `data:` prefix; raises AnswerError when it is none."""
    try:
        data = yield from paced(decoded(text))
    except ValueError:
        raise AnswerError("b64_json that is no base64") from None
    check_image(data)
    return data


def check_image(data: bytes) -> None:
    """Raises AnswerError for what is no image of a kind that the gateway passes on."""
    if kind_of(data) is None:
        raise AnswerError("something that is no PNG, JPEG, WebP or SVG")


def _parts(sent: dict[str, Any], request: ImageRequest) -> list[Part]:
    parts: list[Part] = [
        (name, value if isinstance(value, str) else orjson.dumps(value).decode()) for name, value in sent.items()
    ]
    name = "image" if len(request.images) == 1 else "image[]"
    parts += [(name, image) for image in request.images]
    if request.mask is not None:
        parts.append(("mask", request.mask))
    return parts


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
