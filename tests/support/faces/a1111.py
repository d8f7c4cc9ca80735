"""A double of AUTOMATIC1111's web UI: one image at a time, the others wait; `/internal/progress` tells of a task.

After modules/api/api.py and modules/progress.py of stable-diffusion-webui 1.10. A prompt `slow` works until it is
interrupted.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field

from tests.support.faces.images import ImageServer, Reply, png, text
from tests.support.upstream import Seen

SAMPLERS = ("Euler", "Euler a", "DPM++ 2M")


@dataclass
class A1111(ImageServer):
    """`running` is the task that is worked on, `waiting` those that wait."""

    probes: tuple[str, ...] = ("/sdapi/v1/samplers",)
    running: str = ""
    waiting: list[str] = field(default_factory=list)
    interrupted: list[str] = field(default_factory=list)
    _free: asyncio.Condition = field(default_factory=asyncio.Condition)
    _stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def reply(self, seen: Seen) -> Reply:
        match seen.path:
            case "/sdapi/v1/txt2img" | "/sdapi/v1/img2img":
                # As in the real one, the work goes on when its client has left.
                return await asyncio.shield(asyncio.ensure_future(self._draw(seen)))
            case "/sdapi/v1/interrupt":
                self.interrupted.append(self.running)
                self._stop.set()
                return Reply({})
            case "/internal/progress":
                task = seen.json["id_task"]
                active, queued = task == self.running, task in self.waiting
                return Reply({"active": active, "queued": queued, "completed": not active and not queued})
        return Reply({"detail": "Not Found"}, 404)

    async def _draw(self, seen: Seen) -> Reply:
        request = seen.json
        sampler = request.get("sampler_name")
        if sampler is not None and sampler not in SAMPLERS:
            return Reply({"error": "HTTPException", "detail": "Sampler not found", "body": "", "errors": ""}, 404)
        if seen.path.endswith("img2img") and not request.get("init_images"):
            return Reply({"error": "HTTPException", "detail": "Init image not found"}, 404)
        task = request["force_task_id"]
        self.waiting.append(task)
        async with self._free:
            await self._free.wait_for(lambda: not self.running)
            self.running = task
        self.waiting.remove(task)
        self._stop.clear()
        if request["prompt"] == "slow":
            await self._stop.wait()
        async with self._free:
            self.running = ""
            self._free.notify_all()
        first = request["seed"] if request["seed"] >= 0 else 4711
        seeds = [first + index for index in range(request["batch_size"])]
        size = request["width"], request["height"]
        images = [text(png(*size, (seed, request["prompt"]))) for seed in seeds]
        return Reply({"images": images, "parameters": {}, "info": json.dumps({"seed": first, "all_seeds": seeds})})
