"""ComfyUI's own API: a graph goes into the queue, its history tells when it is done, images are fetched by name."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlencode
from uuid import uuid4

import orjson

from gateway.backends.protocols.base import AnswerError, json_value
from gateway.backends.protocols.image_parts import fetched_image, multipart
from gateway.backends.protocols.image_request import GUIDANCE, STEPS, ImageRequest, Options, Painting, Upload
from gateway.backends.protocols.steps import Abandoned, Ask, Pause, Reply, Steps
from gateway.backends.protocols.wire_protocol import WireProtocol
from gateway.errors import ApiError, invalid_value, unsupported_value
from gateway.wire.stepwise import loads

NAME = "comfyui"
POLL_SEC = 0.25  # as the earlier system's shim
STEPS_DEFAULT = 20  # these four as in ComfyUI's own first graph
GUIDANCE_SCALE = 8.0
SAMPLER = "euler"
SCHEDULER = "normal"
JPEG_QUALITY = 90

Graph = dict[str, dict[str, Any]]


def paint(request: ImageRequest) -> Steps[Painting]:
    """Runs a text-to-image graph, or for an edit an image-to-image one; raises ApiError 400 for other fields.

    The images of one request are one batch, which has one seed. Without a model the server's first checkpoint is
    used. A mask keeps what is opaque in it.
    """
    options = Options(request, NAME)
    view = _view(options)
    sampler = {
        "seed": options.seed(),
        "steps": options.take(*STEPS, usual=STEPS_DEFAULT),
        "cfg": options.take(*GUIDANCE, usual=GUIDANCE_SCALE),
        "sampler_name": options.take("sampler") or SAMPLER,
        "scheduler": options.take("scheduler") or SCHEDULER,
        "denoise": 1.0,
    }
    size: dict[str, int] = {}
    if request.images:
        sampler["denoise"] = options.strength()
    if request.size is not None or not request.images:
        size = options.native_size()._asdict()
    negative = options.take("negative_prompt") or ""
    options.finish()
    return _run(request, sampler, size, negative, view)


def _view(options: Options) -> dict[str, str]:
    """How the server is to encode what it shows: it has PNGs and turns them into others by itself."""
    wanted = options.take("output_format")
    quality = options.take("output_compression")
    if wanted in ("jpeg", "webp"):
        return {"preview": f"{wanted};{JPEG_QUALITY if quality is None else quality}"}
    if quality is not None:
        raise unsupported_value("output_compression", "needs another output_format: PNG has no degrees of compression")
    return {}


def _run(
    request: ImageRequest, sampler: dict[str, Any], size: dict[str, int], negative: str, view: dict[str, str]
) -> Steps[Painting]:
    checkpoint = request.model or (yield from _first_checkpoint())
    names = []
    for upload in (*request.images, *((request.mask,) if request.mask else ())):
        names += [(yield from _uploaded(upload))]
    graph = _graph(checkpoint, request, negative, sampler, size, names)
    prompt_id = str(uuid4())
    try:
        reply = yield Ask("POST", "/prompt", orjson.dumps({"prompt": graph, "prompt_id": prompt_id}))
        # Servers before 2025-09 give an id of their own.
        prompt_id = _accepted(reply)
        entry = yield from _finished(prompt_id)
        images = []
        for query in _outputs(entry, request.n):
            images += [(yield from fetched_image(f"/view?{urlencode(query | view)}"))]
    except (Abandoned, AnswerError):
        yield from _cancelled(prompt_id)
        raise
    sent = {"model": checkpoint, "prompt": request.prompt, "negative_prompt": negative, "n": request.n}
    return Painting(images, {**sent, **size, **sampler}, {"prompt_id": prompt_id})


def _first_checkpoint() -> Steps[str]:
    reply = yield Ask("GET", "/models/checkpoints")
    names = json_value(reply.content())
    if not isinstance(names, list):
        raise AnswerError("no list of checkpoints")
    if not names:
        raise ApiError(503, "The ComfyUI server has no checkpoint; install one there", code="backend_not_ready")
    return str(names[0])


def _uploaded(upload: Upload) -> Steps[str]:
    """Stores an image in the server's directory of inputs and returns what a graph calls it."""
    named = Upload(f"{uuid4().hex}.png", upload.content_type, upload.data)
    body, content_type = multipart([("image", named), ("subfolder", "gateway"), ("type", "input")])
    reply = yield Ask("POST", "/upload/image", body, content_type)
    answer = reply.json()
    if not isinstance(answer.get("name"), str):
        raise AnswerError("an upload without a name")
    return f"{answer.get('subfolder') or ''}/{answer['name']}".lstrip("/")


def _graph(
    checkpoint: str,
    request: ImageRequest,
    negative: str,
    sampler: dict[str, Any],
    size: dict[str, int],
    uploaded: list[str],
) -> Graph:
    nodes: Graph = {
        "model": _node("CheckpointLoaderSimple", ckpt_name=checkpoint),
        "positive": _node("CLIPTextEncode", text=request.prompt, clip=["model", 1]),
        "negative": _node("CLIPTextEncode", text=negative, clip=["model", 1]),
        "decoded": _node("VAEDecode", samples=["sampled", 0], vae=["model", 2]),
        # Not SaveImage: what this one writes is temporary.
        "shown": _node("PreviewImage", images=["decoded", 0]),
    }
    latent = "blank"
    if uploaded:
        latent = _add_source(nodes, uploaded, size)
        if request.n > 1:
            nodes["repeated"] = _node("RepeatLatentBatch", samples=[latent, 0], amount=request.n)
            latent = "repeated"
    else:
        nodes["blank"] = _node("EmptyLatentImage", batch_size=request.n, **size)
    nodes["sampled"] = _node(
        "KSampler",
        model=["model", 0],
        positive=["positive", 0],
        negative=["negative", 0],
        latent_image=[latent, 0],
        **sampler,
    )
    return nodes


def _add_source(nodes: Graph, uploaded: list[str], size: dict[str, int]) -> str:
    """Adds the nodes that turn the image, and the mask, into a latent image, and returns the last one's name."""
    nodes["source"] = _node("LoadImage", image=uploaded[0])
    pixels = "source"
    if size:
        nodes["scaled"] = _node("ImageScale", image=["source", 0], upscale_method="lanczos", crop="disabled", **size)
        pixels = "scaled"
    nodes["encoded"] = _node("VAEEncode", pixels=[pixels, 0], vae=["model", 2])
    if len(uploaded) == 1:
        return "encoded"
    # The loader's mask is 1 where the file is transparent: what OpenAI's masks mean, too.
    nodes["mask"] = _node("LoadImage", image=uploaded[1])
    nodes["masked"] = _node("SetLatentNoiseMask", samples=["encoded", 0], mask=["mask", 1])
    return "masked"


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def _accepted(reply: Reply) -> str:
    """The id of a graph that is in the queue; the server's word against it becomes a 400 that names a field."""
    if reply.status != 400:
        prompt_id = reply.json().get("prompt_id")
        if not isinstance(prompt_id, str):
            raise AnswerError("no prompt_id for a graph")
        return prompt_id
    param, message = "prompt", "the graph was refused"
    try:
        errors = loads(reply.body)["node_errors"]
        problems = [(error["extra_info"], error["details"]) for node in errors.values() for error in node["errors"]]
        extra, message = problems[0]
        param = {"ckpt_name": "model", "sampler_name": "sampler", "cfg": "guidance_scale", "denoise": "strength"}.get(
            extra["input_name"], extra["input_name"]
        )
    except (orjson.JSONDecodeError, KeyError, TypeError, IndexError, AttributeError):
        pass
    raise invalid_value(str(param), f"the backend refused it: {str(message)[:300]}")


def _finished(prompt_id: str) -> Steps[dict[str, Any]]:
    while True:
        reply = yield Ask("GET", f"/history/{quote(prompt_id, safe='')}")
        entry = reply.json().get(prompt_id)
        if isinstance(entry, dict):
            status = entry.get("status")
            status = status if isinstance(status, dict) else {}
            if status.get("status_str") == "error":
                raise AnswerError(_error_text(status.get("messages")))
            if status.get("completed", True):
                return entry
        yield Pause(POLL_SEC)


def _error_text(messages: Any) -> str:
    for message in messages if isinstance(messages, list) else []:
        match message:
            case ["execution_error", {"exception_message": str(text)}]:
                return f"the graph failed: {text.strip()[:300]}"
            case ["execution_interrupted", _]:
                return "the graph was interrupted"
    return "the graph failed"


def _outputs(entry: dict[str, Any], count: int) -> list[dict[str, str]]:
    """The images' names as queries for `/view`, in their order."""
    match entry.get("outputs"):
        case {"shown": {"images": [*found]}} if len(found) >= count:
            pass
        case _:
            raise AnswerError(f"fewer than {count} images in the graph's outputs")
    queries = []
    for image in found[:count]:
        if not isinstance(image, dict) or not isinstance(image.get("filename"), str):
            raise AnswerError("an image without a name in the graph's outputs")
        queries.append({name: str(image.get(name, "")) for name in ("filename", "subfolder", "type")})
    return queries


def _cancelled(prompt_id: str) -> Steps[None]:
    """Takes our graph out of the queue, or interrupts it: only when it is the one that runs."""
    yield Ask("POST", "/queue", orjson.dumps({"delete": [prompt_id]}))
    reply = yield Ask("GET", "/queue")
    try:
        running = reply.json().get("queue_running")
    except AnswerError:
        return  # told is what went wrong before
    for item in running if isinstance(running, list) else []:
        if isinstance(item, list) and prompt_id in item[:2]:
            yield Ask("POST", "/interrupt", orjson.dumps({"prompt_id": prompt_id}))


PROTOCOL = WireProtocol(
    name=NAME,
    about="ComfyUI's own API: `/prompt` with a graph of its own nodes, `/history`, `/view`",
    capabilities=frozenset({"images"}),
    probe="/prompt",
    paint=paint,
    images_backend="http_comfyui",
)
