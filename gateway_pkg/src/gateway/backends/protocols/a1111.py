"""The API of AUTOMATIC1111's Stable Diffusion web UI: one request that lasts as long as the work does."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import orjson

from gateway.backends.protocols.base import AnswerError
from gateway.backends.protocols.image_parts import image_bytes
from gateway.backends.protocols.image_request import GUIDANCE, STEPS, ImageRequest, Options, Painting
from gateway.backends.protocols.steps import Abandoned, Ask, Pause, Steps
from gateway.backends.protocols.wire_protocol import WireProtocol
from gateway.errors import invalid_value
from gateway.wire.stepwise import encoded

NAME = "a1111"
GUIDANCE_SCALE = 7.0  # the server's own default
LEAVE_POLL_SEC = 0.25
INFO_MAX_CHARS = 200_000


def paint(request: ImageRequest) -> Steps[Painting]:
    """Asks for images, or for an edit of the request's one; raises ApiError 400 for what the server cannot do.

    The images of a batch have the seeds from `seed` on.
    """
    options = Options(request, NAME)
    size = options.native_size()
    sent: dict[str, Any] = {
        "prompt": request.prompt,
        "negative_prompt": options.take("negative_prompt") or "",
        "width": size.width,
        "height": size.height,
        "batch_size": request.n,
        "steps": options.take(*STEPS, usual=request.usual_steps),
        "cfg_scale": options.take(*GUIDANCE, usual=GUIDANCE_SCALE),
        "seed": options.take("seed", usual=-1),
    }
    for name, theirs in (("sampler", "sampler_name"), ("scheduler", "scheduler")):
        if value := options.take(name):
            sent[theirs] = value
    if request.model:
        sent["override_settings"] = {"sd_model_checkpoint": request.model}
    if request.images:
        sent["denoising_strength"] = options.strength()
        if request.mask is not None:
            # The server edits where the mask is opaque, OpenAI's masks say it by transparency.
            sent["inpainting_mask_invert"] = 1
    options.finish()
    return _asked(request, sent)


def _asked(request: ImageRequest, sent: dict[str, Any]) -> Steps[Painting]:
    task = f"task({uuid4().hex})"
    route = "img2img" if request.images else "txt2img"
    given: dict[str, Any] = {}
    if request.images:
        given["init_images"] = [(yield from encoded(request.images[0].data))]
    if request.mask is not None:
        given["mask"] = yield from encoded(request.mask.data)
    body = orjson.dumps({**sent, **given, "force_task_id": task, "send_images": True, "save_images": False})
    given.clear()
    try:
        reply = yield Ask("POST", f"/sdapi/v1/{route}", body)
    except Abandoned:
        yield from _interrupted(task)
        raise
    if reply.status == 404 and b"Sampler" in reply.body:
        raise invalid_value("sampler", "must be one that the backend knows")
    answer, texts = reply.json_and_texts()
    images = answer.get("images")
    if not isinstance(images, list) or len(images) < request.n or not all(isinstance(text, str) for text in images):
        raise AnswerError(f"fewer than {request.n} images")
    found = []
    for text in map(str, images[: request.n]):
        found += [(yield from image_bytes(texts.get(text, text)))]
    return Painting(found, sent, {"seeds": _seeds(answer.get("info"))})


def _interrupted(task: str) -> Steps[None]:
    """Stops our task and no other: the server's interrupt knows only "the one that runs".

    A task that still waits cannot be taken back; for as long as the leave lasts it is watched, and stopped when it
    runs. A server without that page (started with `--nowebui`) is left alone.
    """
    while True:
        reply = yield Ask("POST", "/internal/progress", orjson.dumps({"id_task": task, "live_preview": False}))
        if reply.status != 200:
            return
        state = reply.json()
        if state.get("active"):
            yield Ask("POST", "/sdapi/v1/interrupt")
            return
        if not state.get("queued"):
            return
        yield Pause(LEAVE_POLL_SEC)


def _seeds(info: Any) -> list[int]:
    """The seeds of the images, from the JSON text that the server puts into its JSON; none when it is not there."""
    try:
        seeds = orjson.loads(info if len(info) <= INFO_MAX_CHARS else "")["all_seeds"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return []
    return [seed for seed in seeds if type(seed) is int] if isinstance(seeds, list) else []


PROTOCOL = WireProtocol(
    name=NAME,
    about="AUTOMATIC1111's web UI: `/sdapi/v1/txt2img`, `img2img`",
    capabilities=frozenset({"images"}),
    probe="/sdapi/v1/samplers",
    paint=paint,
    images_backend="http_a1111",
)
