"""A double of Nexa's server, with its habits: `data:` in b64_json, errors as strings, no `/health`, fields dropped.

After `runner/server/handler/images.go` of nexa-sdk at 9b0e5e6 (2026-02).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from tests.support.faces.images import ImageServer, Reply, png, text
from tests.support.upstream import Seen

MODEL = "NexaAI/sdxl-turbo"


@dataclass
class Nexa(ImageServer):
    probes: tuple[str, ...] = ("/v1/models",)

    async def reply(self, seen: Seen) -> Reply:
        if seen.path != "/v1/images/generations":
            return Reply(b"404 page not found", 404, "text/plain")
        request = seen.json
        if request.get("response_format") not in (None, "", "b64_json"):
            return Reply({"error": "only 'b64_json' response format is supported"}, 400)
        model = request.get("model") or MODEL
        if model == "old":  # releases before 2025 wrote a file and named it
            return Reply({"created": 1, "data": [{"url": "/home/nexa/imagegen_output_1.png"}]})
        if model == "slow":
            await asyncio.sleep(60)
        if model != MODEL:
            return Reply({"error": "model not found", "code": -1}, 500)
        width, height = map(int, (request.get("size") or "256x256").split("x"))
        image = f"data:image/png;base64,{text(png(width, height, request['prompt']))}"
        data = [{"b64_json": image, "revised_prompt": request["prompt"]} for _ in range(request.get("n") or 1)]
        return Reply({"created": 1, "data": data})
