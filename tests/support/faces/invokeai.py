"""A double of InvokeAI's queue and images, recorded from InvokeAI 6.14.0; tests/heavy compares the two.

A prompt `slow` works until it is cancelled, `broken` fails; an item of any other is done when its batch was asked for
twice more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from tests.support.faces.images import ImageServer, Reply, form, png
from tests.support.upstream import Seen

MODELS = [
    {"key": "key-flux", "hash": "blake3:0", "name": "a-flux", "base": "flux", "type": "main"},
    {"key": "key-sd1", "hash": "blake3:1", "name": "random-sd1", "base": "sd-1", "type": "main"},
    {"key": "key-sdxl", "hash": "blake3:2", "name": "random-sdxl", "base": "sdxl", "type": "main"},
]
SCHEDULERS = ("ddim", "euler", "euler_a", "dpmpp_2m_k")
QUEUE = "/api/v1/queue/default"
STATES = ("pending", "in_progress", "waiting", "completed", "failed", "canceled")


@dataclass
class InvokeAI(ImageServer):
    probes: tuple[str, ...] = ("/api/v1/app/version",)
    models: list[dict[str, Any]] = field(default_factory=MODELS.copy)
    batches: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    images: dict[str, bytes] = field(default_factory=dict)
    cancelled: list[str] = field(default_factory=list)
    _last_item: int = 0

    async def reply(self, seen: Seen) -> Reply:
        path = urlsplit(seen.path).path
        match seen.method, path.removeprefix("/api/").split("/"):
            case "GET", ["v2", "models", ""]:
                return Reply({"models": self.models})
            case "POST", ["v1", "images", "upload"]:
                name = self._store(form(seen)["file"][0])
                return Reply({"image_name": name, "image_category": "user", "is_intermediate": True}, 201)
            case "POST", ["v1", "queue", "default", "enqueue_batch"]:
                return self._enqueue(seen.json["batch"])
            case "GET", ["v1", "queue", "default", "b", batch_id, "status"]:
                return self._status(batch_id)
            case "GET", ["v1", "queue", "default", "i", item_id]:
                return self._item(int(item_id))
            case "PUT", ["v1", "queue", "default", "cancel_by_batch_ids"]:
                return self._cancel(seen.json["batch_ids"])
            case "GET", ["v1", "images", "i", name, "full"]:
                if name in self.images:
                    return Reply(self.images[name])
                return Reply({"detail": "Image not found"}, 404)
            case "DELETE", ["v1", "images", "i", name]:
                deleted = [name] if self.images.pop(name, None) else []
                return Reply({"affected_boards": ["none"], "deleted_images": deleted, "failed_images": []})
        return Reply({"detail": "Not Found"}, 404)

    def _store(self, data: bytes) -> str:
        name = f"{uuid4()}.png"
        self.images[name] = data
        return name

    def _enqueue(self, batch: dict[str, Any]) -> Reply:
        nodes = batch["graph"]["nodes"]
        for edge in batch["graph"]["edges"]:
            assert edge["source"]["node_id"] in nodes, edge
            assert edge["destination"]["node_id"] in nodes, edge
        if (scheduler := nodes["denoise"]["scheduler"]) not in SCHEDULERS:
            place = ["body", "batch", "graph", "nodes", "denoise", "denoise_latents", "scheduler"]
            problem = {"type": "literal_error", "loc": place, "msg": f"Input should be one of {SCHEDULERS}"}
            return Reply({"detail": [{**problem, "input": scheduler, "ctx": {"expected": ""}}]}, 422)
        if "scaled" in nodes and nodes["scaled"]["image"]["image_name"] not in self.images:
            return Reply({"detail": "Image not found"}, 404)
        ((seeds,),) = batch["data"]
        items = []
        for seed in seeds["items"]:
            self._last_item += 1
            value = {"node_path": seeds["node_path"], "field_name": seeds["field_name"], "value": seed}
            items.append({"item_id": self._last_item, "status": "pending", "field_values": [value], "graph": nodes})
        self.batches[batch["batch_id"]] = items
        # As the real one: the last item's id comes first.
        ids = [item["item_id"] for item in reversed(items)]
        counts = {"enqueued": len(items), "requested": len(items), "priority": 0}
        return Reply({"queue_id": "default", **counts, "batch": {"batch_id": batch["batch_id"]}, "item_ids": ids})

    def _status(self, batch_id: str) -> Reply:
        items = self.batches.get(batch_id, [])
        counts = _counts(items)
        for item in items:
            if item["status"] in ("pending", "in_progress"):
                self._work(item)
                break
        return Reply({"queue_id": "default", "batch_id": batch_id, **counts, "total": len(items)})

    def _work(self, item: dict[str, Any]) -> None:
        """One step of the work on an item."""
        prompt = item["graph"]["positive"]["prompt"]
        if item["status"] == "pending":
            item["status"] = "in_progress"
        elif prompt == "broken":
            item |= {"status": "failed", "error_type": "OutOfMemoryError", "error_message": "not enough memory"}
        elif prompt != "slow":
            noise = item["graph"]["noise"]
            seed = item["field_values"][0]["value"]
            name = self._store(png(noise["width"], noise["height"], (seed, prompt)))
            node = str(uuid4())
            output = {"type": "image_output", "image": {"image_name": name}, **_size(noise)}
            results = {node: output}
            if "scaled" in item["graph"]:  # it is an image of its own
                scaled = {**output, "image": {"image_name": self._store(png(noise["width"], noise["height"]))}}
                results[str(uuid4())] = scaled
            item["session"] = {"source_prepared_mapping": {"image": [node]}, "results": results}
            item["status"] = "completed"

    def _item(self, item_id: int) -> Reply:
        for batch_id, items in self.batches.items():
            for item in items:
                if item["item_id"] == item_id:
                    shown = {key: value for key, value in item.items() if key != "graph"}
                    return Reply({"batch_id": batch_id, "queue_id": "default", **shown})
        return Reply({"detail": f"Queue item with id {item_id} not found in queue default"}, 404)

    def _cancel(self, batch_ids: list[str]) -> Reply:
        count = 0
        for batch_id in batch_ids:
            for item in self.batches.get(batch_id, []):
                if item["status"] in ("pending", "in_progress"):
                    item["status"] = "canceled"
                    count += 1
            self.cancelled.append(batch_id)
        return Reply({"canceled": count})


def _counts(items: list[dict[str, Any]]) -> dict[str, int]:
    return {state: sum(item["status"] == state for item in items) for state in STATES}


def _size(noise: dict[str, Any]) -> dict[str, int]:
    return {"width": noise["width"], "height": noise["height"]}
