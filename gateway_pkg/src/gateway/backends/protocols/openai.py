"""OpenAI's own API, as it is and as small servers speak it: bodies and answers go through as they come."""

from __future__ import annotations

from typing import Any

import orjson

from gateway.backends.protocols.base import AnswerError, json_object, quoted
from gateway.backends.protocols.image_formats import kind_of
from gateway.backends.protocols.image_parts import Part, image_bytes, multipart
from gateway.backends.protocols.image_request import GUIDANCE, ImageRequest, Painting
from gateway.backends.protocols.steps import Ask, Steps
from gateway.backends.protocols.wire_protocol import Implied, Listing, WireProtocol
from gateway.routing.body import dump
from gateway.wire.stepwise import LongTexts

CHATTING = ("chat", "completions", "embeddings")
CHAT_TOKENS_PATH = "/input_tokens"  # llama.cpp's, which this protocol reaches too


def models(body: bytes) -> tuple[str, ...]:
    """The ids in an answer of /models; raises AnswerError."""
    data = json_object(body).get("data")
    if not isinstance(data, list):
        raise AnswerError("/models has no list 'data'")
    return tuple(str(item["id"]) for item in data if isinstance(item, dict) and "id" in item)


def paint(request: ImageRequest) -> Steps[Painting]:
    """Asks for images, or for an edit of those that the request has.

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
        ask = Ask("POST", "/v1/images/edits", body, content_type)
    else:
        ask = Ask("POST", "/v1/images/generations", dump(sent))
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
        raise AnswerError(f"an image in another format than '{wanted}'")
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


def _parts(sent: dict[str, Any], request: ImageRequest) -> list[Part]:
    parts: list[Part] = [
        (name, value if isinstance(value, str) else orjson.dumps(value).decode()) for name, value in sent.items()
    ]
    name = "image" if len(request.images) == 1 else "image[]"
    parts += [(name, image) for image in request.images]
    if request.mask is not None:
        parts.append(("mask", request.mask))
    return parts


MODELS = Listing("/models", models)
PROTOCOL = WireProtocol(
    name="openai",
    about="OpenAI's API: vLLM, MLX, LiteLLM, the InvokeAI shim and their like; all fields are forwarded",
    capabilities=frozenset({*CHATTING, "rerank", "images", "tts", "transcription"}),
    models=MODELS,
    chat_tokens_path=CHAT_TOKENS_PATH,
    paint=paint,
    images_backend="http_openai_images",
    implied=(
        Implied("mlx_base_url", CHATTING, {"chat": 2, "embeddings": 2}, backend_class="mlx", probe="/v1/models"),
        Implied("tts_base_url", ("tts",), {"tts": 4}, class_setting="tts_backend_class"),
    ),
)
