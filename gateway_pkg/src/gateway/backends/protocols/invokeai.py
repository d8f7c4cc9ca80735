"""InvokeAI's own API: a graph goes into the queue as a batch of seeds, its items tell what their images are called."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote
from uuid import uuid4

import orjson

from gateway.backends.protocols.base import AnswerError, ErrorStatus
from gateway.backends.protocols.image_formats import Size
from gateway.backends.protocols.image_parts import fetched_image, multipart
from gateway.backends.protocols.image_request import GUIDANCE, SEED_LIMIT, STEPS, ImageRequest, Options, Painting
from gateway.backends.protocols.steps import Abandoned, Ask, Pause, Reply, Steps
from gateway.backends.protocols.wire_protocol import WireProtocol
from gateway.errors import ApiError, invalid_value, unsupported_value
from gateway.wire.stepwise import loads

NAME = "invokeai"
POLL_SEC = 0.25  # as the earlier system's shim
STEPS_DEFAULT = 30  # these three as in InvokeAI's own page
GUIDANCE_SCALE = 7.5
SCHEDULER = "euler"
QUOTED_CHARS = 500
QUEUE = "/api/v1/queue/default"
# By base model: node types of the loader and of the prompt.
GRAPHS = {
    "sd-1": ("main_model_loader", "compel"),
    "sd-2": ("main_model_loader", "compel"),
    "sdxl": ("sdxl_model_loader", "sdxl_compel_prompt"),
}
MODEL_FIELDS = ("key", "hash", "name", "base", "type")


def paint(request: ImageRequest) -> Steps[Painting]:
    """Runs a text-to-image graph, or for an edit an image-to-image one; raises ApiError 400 for other fields.

    The images have the seeds from `seed` on. Without a model the first that a graph is known for is used.
    """
    options = Options(request, NAME)
    size = options.native_size()
    denoise: dict[str, Any] = {
        "steps": options.take(*STEPS, usual=STEPS_DEFAULT),
        "cfg_scale": options.take(*GUIDANCE, usual=GUIDANCE_SCALE),
        "scheduler": options.take("scheduler") or SCHEDULER,
    }
    if request.images:
        # The server counts from the other end: how much of the noise has been removed already.
        denoise["denoising_start"] = 1 - options.strength()
        if request.mask is not None:
            raise unsupported_value("mask", f"is not supported by protocol '{NAME}'; leave it out")
    negative = options.take("negative_prompt") or ""
    first = options.seed()
    seeds = [(first + index) % SEED_LIMIT for index in range(request.n)]
    options.finish()
    return _run(request, size, denoise, negative, seeds)


def _run(
    request: ImageRequest, size: Size, denoise: dict[str, Any], negative: str, seeds: list[int]
) -> Steps[Painting]:
    model = yield from _model(request.model)
    source = (yield from _uploaded(request)) if request.images else None
    batch_id = str(uuid4())
    batch = {
        "batch_id": batch_id,
        "graph": _graph(model, request.prompt, negative, size, denoise, source),
        "runs": 1,
        "data": [[{"node_path": "noise", "field_name": "seed", "items": seeds}]],
    }
    try:
        reply = yield Ask("POST", f"{QUEUE}/enqueue_batch", orjson.dumps({"batch": batch, "prepend": False}))
        items = _item_ids(_accepted(reply), len(seeds))
        yield from _finished(batch_id, items)
        by_seed, made = yield from _image_names(items)
        images = []
        for seed in seeds:
            if seed not in by_seed:
                raise AnswerError(f"no image for seed {seed}")
            images += [(yield from fetched_image(f"{_image_path(by_seed[seed])}/full"))]
        for name in made if source is None else (*made, source):
            yield Ask("DELETE", _image_path(name))
    except (Abandoned, AnswerError, ApiError):
        yield Ask("PUT", f"{QUEUE}/cancel_by_batch_ids", orjson.dumps({"batch_ids": [batch_id]}))
        if source is not None:
            yield Ask("DELETE", _image_path(source))
        raise
    sent = {"model": model["name"], "prompt": request.prompt, "negative_prompt": negative, "n": request.n}
    upstream = {"batch_id": batch_id, "seeds": seeds}
    return Painting(images, {**sent, **size._asdict(), **denoise}, upstream)


def _model(name: str) -> Steps[dict[str, Any]]:
    """The server's record of a main model, by name or key."""
    reply = yield Ask("GET", "/api/v2/models/?model_type=main")
    models = reply.json().get("models")
    if not isinstance(models, list):
        raise AnswerError("no list of models")
    models = [model for model in models if isinstance(model, dict)]
    if name:
        found = next((model for model in models if name in (model.get("name"), model.get("key"))), None)
        if found is None:
            known = ", ".join(str(model.get("name")) for model in models[:10]) or "none"
            message = f"The InvokeAI server has no main model '{name[:100]}'; it has: {known}"
            raise ApiError(404, message, param="model", code="model_not_found")
    else:
        found = next(filter(_has_graph, models), None)
        if found is None:
            message = f"The InvokeAI server has no model of {', '.join(GRAPHS)}; install one there"
            raise ApiError(503, message, code="backend_not_ready")
    if not _has_graph(found):
        problem = f"is of base model '{found.get('base')}', which has no graph here; these have: {', '.join(GRAPHS)}"
        raise unsupported_value("model", problem)
    return {field: found.get(field) for field in MODEL_FIELDS}


def _has_graph(model: dict[str, Any]) -> bool:
    base = model.get("base")
    return isinstance(base, str) and base in GRAPHS


def _uploaded(request: ImageRequest) -> Steps[str]:
    body, content_type = multipart([("file", request.images[0])])
    path = "/api/v1/images/upload?image_category=user&is_intermediate=true"
    reply = yield Ask("POST", path, body, content_type)
    name = reply.json().get("image_name")
    if not isinstance(name, str):
        raise AnswerError("an upload without a name")
    return name


def _graph(
    model: dict[str, Any],
    prompt: str,
    negative: str,
    size: Size,
    denoise: dict[str, Any],
    source: str | None,
) -> dict[str, Any]:
    loader, text = GRAPHS[model["base"]]
    prompts: dict[str, dict[str, Any]] = {
        "positive": {"type": text, "prompt": prompt},
        "negative": {"type": text, "prompt": negative},
    }
    edges = [
        ("loader.unet", "denoise.unet"),
        ("loader.clip", "positive.clip"),
        ("loader.clip", "negative.clip"),
        ("loader.vae", "image.vae"),
        ("positive.conditioning", "denoise.positive_conditioning"),
        ("negative.conditioning", "denoise.negative_conditioning"),
        ("noise.noise", "denoise.noise"),
        ("denoise.latents", "image.latents"),
    ]
    if model["base"] == "sdxl":
        edges += [("loader.clip2", "positive.clip2"), ("loader.clip2", "negative.clip2")]
        for node in prompts.values():
            node |= {"original_width": size.width, "original_height": size.height}
            node |= {"target_width": size.width, "target_height": size.height}
    nodes: dict[str, dict[str, Any]] = {
        "loader": {"type": loader, "model": model},
        **prompts,
        "noise": {"type": "noise", "width": size.width, "height": size.height, "use_cpu": True},
        "denoise": {"type": "denoise_latents", **denoise},
        # Out of the gallery; and an image of its own for each request, that can be deleted.
        "image": {"type": "l2i", "is_intermediate": True, "use_cache": False},
    }
    if source is not None:
        nodes["scaled"] = {"type": "img_resize", "image": {"image_name": source}, **size._asdict()}
        nodes["scaled"] |= {"is_intermediate": True, "use_cache": False}
        nodes["encoded"] = {"type": "i2l"}
        edges += [
            ("scaled.image", "encoded.image"),
            ("loader.vae", "encoded.vae"),
            ("encoded.latents", "denoise.latents"),
        ]
    return {
        "id": "text-to-image" if source is None else "image-to-image",
        "nodes": {name: {"id": name, **node} for name, node in nodes.items()},
        "edges": [{"source": _end(start), "destination": _end(end)} for start, end in edges],
    }


def _end(text: str) -> dict[str, str]:
    node, _, name = text.partition(".")
    return {"node_id": node, "field": name}


def _accepted(reply: Reply) -> dict[str, Any]:
    """The answer to a batch that is in the queue; raises ApiError 400 where the server's check names a field."""
    if reply.status == 422:
        try:
            problem = loads(reply.body)["detail"][0]
            field, message = str(problem["loc"][-1]), str(problem["msg"])[:QUOTED_CHARS]
        except (orjson.JSONDecodeError, KeyError, TypeError, IndexError):
            raise ErrorStatus(reply.status, reply.body) from None
        param = {"cfg_scale": "guidance_scale", "denoising_start": "strength"}.get(field, field)
        raise invalid_value(param, f"the backend refused it: {message}")
    return reply.json()


def _item_ids(answer: dict[str, Any], count: int) -> list[int]:
    items = answer.get("item_ids")
    if not isinstance(items, list) or len(items) != count or not all(type(item) is int for item in items):
        raise AnswerError(f"another number of item_ids than {count}")
    return items


def _finished(batch_id: str, items: list[int]) -> Steps[None]:
    """Returns when all items are done; raises AnswerError with the server's words when one failed."""
    while True:
        reply = yield Ask("GET", f"{QUEUE}/b/{batch_id}/status")
        status = reply.json()
        try:
            if status["failed"] or status["canceled"]:
                raise AnswerError((yield from _why(items)))
            if status["completed"] >= len(items):
                return
        except (KeyError, TypeError):
            raise AnswerError("no batch status") from None
        yield Pause(POLL_SEC)


def _why(items: list[int]) -> Steps[str]:
    for item in items:
        entry = yield from _item(item)
        if entry.get("status") == "failed":
            return f"the graph failed: {entry.get('error_type')}: {str(entry.get('error_message'))[:300]}"
    return "the batch was cancelled there"


def _item(item: int) -> Steps[dict[str, Any]]:
    reply = yield Ask("GET", f"{QUEUE}/i/{item}")
    return reply.json()


def _image_names(items: list[int]) -> Steps[tuple[dict[int, str], list[str]]]:
    """The images' names by seed, and those of all that was made on the way.

    The items' ids do not tell their order: newer servers give them reversed.
    """
    names, made = {}, []
    for item in items:
        entry = yield from _item(item)
        try:
            seeds = [value["value"] for value in entry["field_values"] if value["node_path"] == "noise"]
            session = entry["session"]
            (node,) = session["source_prepared_mapping"]["image"]
            name = session["results"][node]["image"]["image_name"]
            names[int(seeds[0])] = str(name)
            results = session["results"].values()
            made += [str(result["image"]["image_name"]) for result in results if result["type"] == "image_output"]
        except (KeyError, TypeError, ValueError, IndexError, OverflowError):
            raise AnswerError("a finished item without an image") from None
    return names, made


def _image_path(name: str) -> str:
    return f"/api/v1/images/i/{quote(name, safe='')}"


PROTOCOL = WireProtocol(
    name=NAME,
    about="InvokeAI's own API: `/api/v1/queue/default/enqueue_batch`, `/api/v1/images`; SD 1, SD 2 and SDXL models",
    capabilities=frozenset({"images"}),
    probe="/api/v1/app/version",
    paint=paint,
    images_backend="http_invokeai",
)
