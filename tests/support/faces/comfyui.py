"""A double of ComfyUI's server: it checks a graph's nodes, works on one graph at a time and remembers the others.

After server.py and execution.py of ComfyUI. A prompt `slow` works until it is interrupted, `broken` fails; any other
is done when it was asked for twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

from tests.support.faces.images import ImageServer, Reply, form, png
from tests.support.upstream import Seen

CHECKPOINTS = ["first.safetensors", "second.safetensors"]
SAMPLERS = ["euler", "dpmpp_2m"]
SCHEDULERS = ["normal", "karras"]


@dataclass
class ComfyUI(ImageServer):
    """`gives_ids`: as servers before 2025-09, it takes no prompt_id but makes its own."""

    probes: tuple[str, ...] = ("GET /prompt",)
    gives_ids: bool = False
    checkpoints: list[str] = field(default_factory=CHECKPOINTS.copy)
    queue: list[tuple[str, dict[str, Any]]] = field(default_factory=list)  # the first is worked on
    history: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    interrupted: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)

    async def reply(self, seen: Seen) -> Reply:
        url = urlsplit(seen.path)
        match seen.method, url.path.split("/")[1:]:
            case "GET", ["models", "checkpoints"]:
                return Reply(self.checkpoints)
            case "POST", ["upload", "image"]:
                return self._store(seen)
            case "POST", ["prompt"]:
                return self._enqueue(seen.json)
            case "GET", ["history", prompt_id]:
                self._work()
                return Reply({prompt_id: self.history[prompt_id]} if prompt_id in self.history else {})
            case "GET", ["view"]:
                query = parse_qs(url.query)
                data = self.files[query["filename"][0]]
                wanted = query.get("preview", ["png"])[0].split(";")[0]
                data = {"png": data, "jpeg": b"\xff\xd8\xff" + data, "webp": b"RIFF\0\0\0\0WEBP" + data}[wanted]
                return Reply(data, content_type=f"image/{wanted}")
            case "GET", ["queue"]:
                items = [
                    [number, prompt_id, graph, {}, ["shown"]] for number, (prompt_id, graph) in enumerate(self.queue)
                ]
                return Reply({"queue_running": items[:1], "queue_pending": items[1:]})
            case "POST", ["queue"]:
                for prompt_id in seen.json["delete"]:
                    self.deleted += [prompt_id for waiting, _ in self.queue[1:] if waiting == prompt_id]
                    self.queue[1:] = [item for item in self.queue[1:] if item[0] != prompt_id]
                return Reply(b"")
            case "POST", ["interrupt"]:
                prompt_id, _ = self.queue.pop(0)
                self.interrupted.append(prompt_id)
                return Reply(b"")
        return Reply(b"404: Not Found", 404, "text/plain")

    def _store(self, seen: Seen) -> Reply:
        parts = form(seen)
        name = f"{uuid4().hex}.png"
        subfolder = parts["subfolder"][0].decode()
        self.files[f"{subfolder}/{name}"] = parts["image"][0]
        return Reply({"name": name, "subfolder": subfolder, "type": "input"})

    def _enqueue(self, request: dict[str, Any]) -> Reply:
        graph = request["prompt"]
        for node, name, known in (
            ("model", "ckpt_name", self.checkpoints),
            ("sampled", "sampler_name", SAMPLERS),
            ("sampled", "scheduler", SCHEDULERS),
        ):
            if graph[node]["inputs"][name] not in known:
                return _refusal(node, name, graph[node]["inputs"][name], known)
        self._check_links(graph)
        prompt_id = uuid4().hex if self.gives_ids else request["prompt_id"]
        self.queue.append((prompt_id, graph))
        return Reply({"prompt_id": prompt_id, "number": len(self.history), "node_errors": {}})

    def _check_links(self, graph: dict[str, Any]) -> None:
        """Every input that is a link leads to a node; every image that is loaded was uploaded."""
        for node in graph.values():
            for value in node["inputs"].values():
                assert not isinstance(value, list) or value[0] in graph, value
            if node["class_type"] == "LoadImage":
                assert node["inputs"]["image"] in self.files, node

    def _work(self) -> None:
        """One step of the work on the queue's first graph."""
        if not self.queue:
            return
        prompt_id, graph = self.queue[0]
        prompt = graph["positive"]["inputs"]["text"]
        if prompt == "slow" or not graph.pop("started", False):
            graph["started"] = prompt != "slow"
            return
        self.queue.pop(0)
        if prompt == "broken":
            error = {"exception_message": "not enough memory", "exception_type": "OOM"}
            status = {"status_str": "error", "completed": False, "messages": [["execution_error", error]]}
            self.history[prompt_id] = {"outputs": {}, "status": status}
            return
        names = self._draw(graph)
        images = [{"filename": name, "subfolder": "", "type": "temp"} for name in names]
        status = {"status_str": "success", "completed": True, "messages": []}
        self.history[prompt_id] = {"outputs": {"shown": {"images": images}}, "status": status}

    def _draw(self, graph: dict[str, Any]) -> list[str]:
        blank = graph.get("blank", {"inputs": {"width": 64, "height": 64, "batch_size": 1}})["inputs"]
        count = graph["repeated"]["inputs"]["amount"] if "repeated" in graph else blank["batch_size"]
        names = [f"ComfyUI_temp_{uuid4().hex[:5]}_{index:05}_.png" for index in range(count)]
        seed = graph["sampled"]["inputs"]["seed"]
        for index, name in enumerate(names):
            self.files[name] = png(blank["width"], blank["height"], (seed, index))
        return names


def _refusal(node: str, name: str, value: object, known: list[str]) -> Reply:
    details = f"{name}: '{value}' not in {known}"
    extra = {"input_name": name, "received_value": value}
    error = {"type": "value_not_in_list", "message": "Value not in list", "details": details, "extra_info": extra}
    outer = {"type": "prompt_outputs_failed_validation", "message": "Prompt outputs failed validation", "details": ""}
    return Reply({"error": outer, "node_errors": {node: {"errors": [error], "dependent_outputs": ["shown"]}}}, 400)
