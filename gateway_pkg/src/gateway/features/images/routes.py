"""`/v1/images/generations` and `/v1/images/edits`: made by image servers of several kinds, or drawn as placeholders."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from base64 import b64decode
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Required

import orjson
from pydantic import ConfigDict, Field, TypeAdapter, with_config
from typing_extensions import TypedDict

from gateway.backends.call import Call, Dispatcher, in_time
from gateway.backends.protocols import BY_IMAGES_BACKEND
from gateway.backends.protocols.image_formats import MEDIA_TYPES, kind_of
from gateway.backends.protocols.image_request import GUIDANCE, ImageRequest, Painting, Upload, read_request
from gateway.backends.protocols.steps import Steps
from gateway.backends.protocols.wire_protocol import WireProtocol, promised
from gateway.backends.slots import Backend, Slots
from gateway.backends.usage import usage_of
from gateway.errors import ApiError, invalid_value
from gateway.features.images import mock
from gateway.features.images.choice import choose_model
from gateway.features.images.settings import ImageSettings
from gateway.features.images.store import MediaStore
from gateway.routing.body import dump
from gateway.routing.policy import MODEL_MAX_CHARS, Decision, decide_in_class
from gateway.web.endpoint import JSON_TYPE, Endpoint, parse
from gateway.web.exchange import JSON, Exchange
from gateway.web.fields import Array
from gateway.web.multipart import Form
from gateway.web.schemas import TEXT, record
from gateway.wire import stepwise

log = logging.getLogger(__name__)

CAPABILITY = "images"
FILES = "/ui/images"
IMAGES_IN_MAX = 16  # as OpenAI's
_MOCKED = ((b"x-backend-used", b"mock"), (b"x-model-used", b"mock"), (b"x-router-reason", b"direct:model"))
_IN_BASE64 = re.compile(r"(?:chat)?gpt-image", re.IGNORECASE)  # models that OpenAI gives no URL for
# What an answer of OpenAI's has beside its images, passed on where the backend has it.
_OPENAI_FIELDS = ("background", "output_format", "quality", "size", "usage")


class _Fields(TypedDict, total=False):
    prompt: Required[Annotated[str, Field(min_length=1, max_length=32_000)]]
    model: Annotated[str, Field(max_length=MODEL_MAX_CHARS)] | None
    n: Annotated[int, Field(description="1 to 4")] | None
    size: Annotated[str, Field(description="WIDTHxHEIGHT or auto; 1024x1024 without")] | None
    response_format: (
        Annotated[
            Literal["url", "b64_json"],
            Field(
                description="`b64_json` for gpt-image models, else `url`, unless the backend's policy says otherwise"
            ),
        ]
        | None
    )
    background: Literal["transparent", "opaque", "auto"] | None
    moderation: Literal["low", "auto"] | None
    output_compression: Annotated[int, Field(ge=0, le=100)] | None
    output_format: Literal["png", "jpeg", "webp", "svg"] | None
    quality: Annotated[str, Field(max_length=50)] | None
    stream: Annotated[bool, Field(description="Only false")] | None
    partial_images: Annotated[int, Field(description="Only 0")] | None
    user: Annotated[str, Field(max_length=500)] | None
    seed: Annotated[int, Field(ge=-1, le=2**32 - 1, description="-1: a random one")] | None
    steps: Annotated[int, Field(ge=1, le=500)] | None
    num_inference_steps: Annotated[int, Field(ge=1, le=500)] | None
    guidance: Annotated[float, Field(ge=0, le=100)] | None
    guidance_scale: Annotated[float, Field(ge=0, le=100)] | None
    cfg_scale: Annotated[float, Field(ge=0, le=100)] | None
    negative_prompt: Annotated[str, Field(max_length=32_000)] | None
    sampler: Annotated[str, Field(max_length=100)] | None
    scheduler: Annotated[str, Field(max_length=100)] | None


@with_config(ConfigDict(extra="allow", strict=True, allow_inf_nan=False))
class ImageGenerationRequest(_Fields, total=False):
    """OpenAI's `POST /v1/images/generations`, and what diffusion models take."""

    style: Annotated[str, Field(max_length=100)] | None


@with_config(ConfigDict(extra="allow", allow_inf_nan=False))
class ImageEditRequest(_Fields, total=False):
    """OpenAI's `POST /v1/images/edits`, but for its files; numbers come as text."""

    input_fidelity: Literal["high", "low"] | None
    strength: (
        Annotated[float, Field(ge=0, le=1, description="Share of the image that is redrawn; 0.75 by default")] | None
    )


class ImageReference(TypedDict, total=False):
    """A picture in a JSON body."""

    image_url: Required[Annotated[str, Field(description="A data URL in base64")]]


@with_config(ConfigDict(extra="allow", strict=True, allow_inf_nan=False))
class ImageEditJsonRequest(_Fields, total=False):
    """OpenAI's `POST /v1/images/edits` as JSON."""

    images: Required[Annotated[Array[ImageReference], Field(min_length=1, max_length=IMAGES_IN_MAX)]]
    mask: ImageReference | None
    input_fidelity: Literal["high", "low"] | None
    strength: Annotated[float, Field(ge=0, le=1)] | None


GENERATION = TypeAdapter(ImageGenerationRequest)
EDIT = TypeAdapter(ImageEditRequest)
EDIT_JSON = TypeAdapter(ImageEditJsonRequest)

_ITEM = {"type": "object", "properties": dict.fromkeys(("url", "b64_json", "revised_prompt"), TEXT)}
_ABOUT = {
    "type": "object",
    "description": "How it was made",
    "properties": {
        **dict.fromkeys(("backend", "backend_class", "mime", "model", "model_reason"), TEXT),
        "guidance_scale": {"type": ["number", "null"]},
        "guidance_auto": {"type": "boolean"},
        "request": {"type": "object"},
        "upstream": {"type": "object"},
    },
}
IMAGES_ANSWER = record(created={"type": "integer"}, data={"type": "array", "items": _ITEM}, _gateway=_ABOUT)
ANSWERS = {200: {JSON_TYPE: IMAGES_ANSWER}}
_SHOW = {"operationId": "get_image", "description": "`name` is the last part of each `url` in `data`."}
OPENAPI_EXTRA = {"responses": {"200": {"links": {"show": _SHOW}}}}


def _form_schema() -> dict[str, Any]:
    schema = EDIT.json_schema()
    file = {"type": "string", "format": "binary"}
    images = {"type": "array", "items": file, "minItems": 1, "maxItems": IMAGES_IN_MAX}
    properties = {"image": images, "mask": file, **schema["properties"]}
    return {**schema, "properties": properties, "required": ["image", *schema["required"]]}


GENERATIONS = Endpoint(
    "/v1/images/generations",
    CAPABILITY,
    "Make images from a text",
    GENERATION,
    answers=ANSWERS,
    openapi_extra=OPENAPI_EXTRA,
)
EDITS = Endpoint(
    "/v1/images/edits",
    CAPABILITY,
    "Edit an image by a text",
    EDIT_JSON,
    form=_form_schema(),
    answers=ANSWERS,
    openapi_extra=OPENAPI_EXTRA,
)


class ImageHandler:
    """The handlers. A request holds one slot of its backend until all of its images are fetched."""

    def __init__(
        self, dispatcher: Dispatcher, settings: ImageSettings, store: MediaStore, public_base_url: str
    ) -> None:
        self._dispatcher = dispatcher
        self._settings = settings
        self._store = store
        self._base_url = public_base_url.rstrip("/")

    async def generate(self, exchange: Exchange, endpoint: Endpoint) -> None:
        await self._answer(exchange, parse(await exchange.body(), GENERATION), (), None)

    async def edit(self, exchange: Exchange, endpoint: Endpoint) -> None:
        is_json = exchange.headers.get(b"content-type", b"").startswith(JSON_TYPE.encode())
        given, images, mask = await (_read_json if is_json else _read_form)(exchange)
        await self._answer(exchange, given, images, mask)

    async def _answer(
        self, exchange: Exchange, given: dict[str, Any], images: tuple[Upload, ...], mask: Upload | None
    ) -> None:
        model, reason = choose_model(given.get("model") or "", given["prompt"], self._settings)
        wanted = given.get("response_format") or ""
        if self._is_mocked(exchange, model):
            if exchange.caller is not None:
                drawn = Decision("mock", model, "direct:model")
                exchange.caller.check_model(model, drawn, self._dispatcher.registry.names)
            request = read_request(given, model, self._settings.images_max_pixels, images, mask)
            # Off the loop: it hashes the images that the request has.
            painting = await asyncio.to_thread(mock.draw, request)
            about = _about("mock", "mock", request, reason, painting)
            wanted = wanted or ("b64_json" if _IN_BASE64.match(model) else "url")
            body = await self._body(exchange, painting, about, wanted, allow_base64=True)
            await exchange.answer(200, body, [JSON, *_MOCKED])
            return
        usual = self._settings.images_backend_class
        route = self._dispatcher.routes.in_class(exchange, CAPABILITY, model, usual)
        pixels, steps = self._settings.images_max_pixels, self._settings.images_a1111_steps
        request = read_request(given, route.decision.model, pixels, images, mask, steps)
        async with self._dispatcher.call(exchange, route) as call:
            painting = await self._paint(call, request, wanted)
            backend = call.slots.backend
            exchange.usage = usage_of(painting.upstream.get("usage"))
            _check_sizes(painting, backend)
            protocol = self._protocol(backend)
            name = protocol.images_backend or protocol.name
            about = _about(name, route.decision.backend_class, request, reason, painting)
            wanted = _response_format(wanted, backend, given.get("model") or "")
            allow_base64 = backend.record.payload_policy.images_allow_base64
            body = await self._body(exchange, painting, about, wanted, allow_base64=allow_base64)
            await exchange.answer(200, body, [JSON])

    def _is_mocked(self, exchange: Exchange, model: str) -> bool:
        """Whether no image server is meant: none is there, or IMAGES_BACKEND is `mock`, and the request pins none."""
        usual = self._settings.images_backend_class
        names = self._dispatcher.registry.names
        is_mock = self._settings.images_backend == "mock"
        if self._settings.images_backend == "":
            is_mock = CAPABILITY not in names.capable.get(usual, ())
        if not is_mock or exchange.headers.get(b"x-backend"):
            return False
        return decide_in_class(model, "", CAPABILITY, usual, names).reason == "direct:model"

    def _protocol(self, backend: Backend) -> WireProtocol:
        """What IMAGES_BACKEND says that the servers of its class speak, whatever their records say."""
        forced, own = self._settings.images_backend, backend.protocol
        if forced == own.images_backend or backend.record.backend_class != self._settings.images_backend_class:
            return own
        return BY_IMAGES_BACKEND.get(forced, own)

    async def _paint(self, call: Call, request: ImageRequest, wanted: str) -> Painting:
        def steps(slots: Slots) -> Steps[Painting]:
            _response_format(wanted, slots.backend, "")  # which is refused before anything is made
            return promised(self._protocol(slots.backend).paint)(request)

        seconds = self._settings.images_http_timeout_sec
        deadline = asyncio.get_running_loop().time() + seconds
        async with in_time(deadline, f"no image within {seconds:g} s, the limit set by IMAGES_HTTP_TIMEOUT_SEC"):
            return await call.converse(steps)

    async def _body(
        self, exchange: Exchange, painting: Painting, about: dict[str, Any], response_format: str, *, allow_base64: bool
    ) -> bytes:
        items = []
        texts: Sequence[str | None] = painting.texts or [None] * len(painting.images)
        for data, text in zip(painting.images, texts, strict=True):
            if response_format == "b64_json":
                item = {"b64_json": await stepwise.run(stepwise.encoded(data))}
            else:
                item = {"url": await self._url(data, exchange, allow_base64)}
            items.append(item if text is None else {**item, "revised_prompt": text})
        kept = {name: painting.upstream[name] for name in _OPENAI_FIELDS if name in painting.upstream}
        return dump({"created": int(time.time()), "data": items, **kept, "_gateway": about})

    async def _url(self, data: bytes, exchange: Exchange, allow_base64: bool) -> str:
        """Where the image is; the image itself as a `data:` URL when it cannot be stored."""
        kind = kind_of(data) or ""
        try:
            name = await self._store.save(data, kind, exchange.owner)
            return f"{self._base_url or exchange.base_url}{FILES}/{name}"
        except OSError as error:
            log.warning("an image cannot be stored: %s", error)
        if not allow_base64:
            raise ApiError(503, "The image cannot be stored now; try again", code="storage_unavailable")
        return f"data:{MEDIA_TYPES[kind]};base64,{await stepwise.run(stepwise.encoded(data))}"


async def _read_form(exchange: Exchange) -> tuple[dict[str, Any], tuple[Upload, ...], Upload | None]:
    """The fields of an edit, its images and its mask; raises ApiError 400 that names a field, 413."""
    form = Form(exchange.headers.get(b"content-type"), await exchange.body())
    fields: dict[str, str] = {}
    images: list[Upload] = []
    mask: Upload | None = None
    for field in form.fields:
        name = field.name.removesuffix("[]")
        if name in fields or (name == "mask" and mask is not None):
            raise invalid_value(name, "is there twice: send one")
        if name not in ("image", "mask"):
            fields[name] = form.text_of(field)
            continue
        if field.filename is None:
            raise invalid_value(name, "must be a file")
        data = form.body[field.start : field.end]
        upload = Upload(field.filename or name, MEDIA_TYPES.get(kind_of(data) or "", ""), data)
        if name == "image":
            images.append(upload)
        else:
            mask = upload
    if not 1 <= len(images) <= IMAGES_IN_MAX:
        raise invalid_value("image", f"send 1 to {IMAGES_IN_MAX} of them, as files")
    return parse(orjson.dumps(fields), EDIT), tuple(images), mask


async def _read_json(exchange: Exchange) -> tuple[dict[str, Any], tuple[Upload, ...], Upload | None]:
    """As `_read_form`, of a JSON body."""
    given = parse(await exchange.body(), EDIT_JSON)
    pictures, mask = given.pop("images"), given.pop("mask", None)
    images = [await _from_data_url(one, f"images.{index}") for index, one in enumerate(pictures)]
    return given, tuple(images), await _from_data_url(mask, "mask") if mask is not None else None


async def _from_data_url(reference: ImageReference, param: str) -> Upload:
    """Raises ApiError 400: the gateway keeps no files, and fetches none for a client."""
    head, comma, text = (reference.get("image_url") or "").partition(",")
    if not comma or not head.startswith("data:") or not head.endswith(";base64"):
        raise invalid_value(f"{param}.image_url", "must be a data URL in base64, such as data:image/png;base64,…")
    try:
        data = await asyncio.to_thread(b64decode, text, validate=True)
    except ValueError:
        raise invalid_value(f"{param}.image_url", "is not valid base64") from None
    return Upload(param, MEDIA_TYPES.get(kind_of(data) or "", ""), data)


def _response_format(wanted: str, backend: Backend, model: str) -> str:
    """The format to answer in; raises ApiError 400 for one that the backend's payload policy does not allow."""
    policy = backend.record.payload_policy
    allowed = [name for name in ("url", "b64_json") if policy.images_format in ("", name)]
    if not policy.images_allow_base64 and "b64_json" in allowed:
        allowed.remove("b64_json")
    if not wanted:
        if "b64_json" in allowed and _IN_BASE64.match(model):
            return "b64_json"
        return allowed[0] if allowed else "url"
    if wanted not in allowed:
        rule = "images_allow_base64" if wanted == "b64_json" and not policy.images_allow_base64 else "images_format"
        name = backend.record.backend_class
        message = f"Backend '{name}' gives no images as {wanted} because of its payload_policy.{rule}"
        raise ApiError(400, message, param="response_format", code="unsupported_value")
    return wanted


def _check_sizes(painting: Painting, backend: Backend) -> None:
    limit = backend.record.payload_policy.images_max_bytes
    largest = max(map(len, painting.images))
    if largest > limit:
        name = backend.record.backend_class
        message = f"Backend '{name}' made an image of {largest} bytes; its payload_policy.images_max_bytes is {limit}"
        raise ApiError(502, message, code="image_too_large")


def _about(backend: str, backend_class: str, request: ImageRequest, reason: str, painting: Painting) -> dict[str, Any]:
    """`_gateway` of the answer: the earlier system's fields, and the class."""
    guidance = next((painting.request[name] for name in (*GUIDANCE, "cfg") if name in painting.request), None)
    return {
        "backend": backend,
        "backend_class": backend_class,
        "mime": MEDIA_TYPES[kind_of(painting.images[0]) or "png"],
        "model": painting.request.get("model", request.model),
        "model_reason": reason,
        "guidance_scale": guidance,
        "guidance_auto": guidance is not None and not any(name in request.fields for name in GUIDANCE),
        "request": painting.request,
        "upstream": painting.upstream,
    }
