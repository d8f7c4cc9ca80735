"""A double of Ollama's server: its wire protocol on a real socket, as told by its API documents and types.

- `echo` repeats the last message, thinks aloud when asked to, counts the images that it was shown, calls every tool it
  is offered once (two of them in one line) and tells the results it is then given, fills in schemas.
- `endless` never ends, `error-mid` and `cut-mid` fail within a stream as their names say.
- Embeddings are made of hashes: equal texts have equal ones, nothing else is meant by them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import socket
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any, NamedTuple

from tests.support.http_server import Handler, http_server
from tests.support.waiting import until

Json = dict[str, Any]
EVERYTHING = ("completion", "tools", "thinking", "vision", "insert")
FAILING = ("endless", "error-mid", "cut-mid")
MODELS = {
    "echo:latest": EVERYTHING,
    "smollm2:135m": ("completion",),
    "minilm:latest": ("embedding",),
    **{f"{name}:latest": EVERYTHING for name in FAILING},
}
DIMENSIONS = 384


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Piece(NamedTuple):
    text: str
    logprob: Json | None = None


class End(NamedTuple):
    prompt_tokens: int
    tokens: int
    reason: str


Speech = Generator[Piece, None, End]


@dataclass
class Ollama:
    """The running double. `seen` are the requests to chat, generate and embed; `left` the streams that were left."""

    port: int = 0
    seen: list[tuple[str, Json]] = field(default_factory=list)
    left: list[float] = field(default_factory=list)
    models: dict[str, tuple[str, ...]] = field(default_factory=lambda: dict(MODELS))
    tags_are_broken: bool = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_until_left(self) -> None:
        until(lambda: self.left, "the stream was not left")

    def chat(self, request: Json) -> Iterator[Json]:
        """The lines of /api/chat."""
        model = self._checked(request, "chat")
        messages = request["messages"]
        for message in messages:
            check_message(message)
        for thought in thoughts(request):
            yield line(request, {"message": {**message_of(), "thinking": thought}})
        if (tools := request.get("tools")) and messages[-1]["role"] != "tool":
            yield from tool_lines(request, tools)
            return
        end = yield from self._said(model, request, messages, lambda text: {"message": message_of(text)})
        yield line(request, {"message": message_of()}, end)

    def generate(self, request: Json) -> Iterator[Json]:
        """The lines of /api/generate."""
        model = self._checked(request, "generate")
        between = f" … {request['suffix']}" if request.get("suffix") else ""
        messages = [{"role": "user", "content": request["prompt"] + between}]
        end = yield from self._said(model, request, messages, lambda text: {"response": text})
        yield line(request, {"response": "", "context": [1, 2, 3]}, end)

    def embed(self, request: Json) -> Json:
        self._name(request)
        texts = [request["input"]] if isinstance(request["input"], str) else request["input"]
        vectors = [vector(text, request.get("dimensions") or DIMENSIONS) for text in texts]
        count = sum(len(text.split()) for text in texts)
        return {"model": request["model"], "embeddings": vectors, "total_duration": 1, "prompt_eval_count": count}

    def _name(self, request: Json) -> str:
        """The full name of the request's model."""
        name = request["model"]
        full = name if ":" in name else f"{name}:latest"
        if full not in self.models:
            raise Refused(404, f"model '{name}' not found")
        return str(full)

    def _checked(self, request: Json, what: str) -> str:
        """The model, which must be able to do what is asked."""
        model = self._name(request)
        able = self.models[model]
        if not 0 <= request.get("top_logprobs", 0) <= 20:
            raise Refused(400, "top_logprobs must be between 0 and 20")
        if "completion" not in able:
            raise Refused(400, f'"{request["model"]}" does not support {what}')
        if request.get("tools") and "tools" not in able:
            raise Refused(400, f"registry.ollama.ai/library/{model} does not support tools")
        if request.get("think") and "thinking" not in able:
            raise Refused(400, f'"{request["model"]}" does not support thinking')
        return model

    def _said(self, model: str, request: Json, messages: list[Json], form: Any) -> Generator[Json, None, End]:
        """A line for each piece of what the model says."""
        speech = endless() if model == "endless:latest" else echoed(request, messages)
        while True:
            try:
                text, logprob = next(speech)
            except StopIteration as stopped:
                end: End = stopped.value
                return end
            yield line(request, form(text) | ({"logprobs": [logprob]} if logprob else {}))


def echoed(request: Json, messages: list[Json]) -> Speech:
    """The words of `echo`, one piece each, within `num_predict` and up to a `stop`."""
    options = request.get("options") or {}
    words = re.findall(r"\s*\S+|\s+$", reply(request, messages))
    for stop in options.get("stop") or []:
        words = re.findall(r"\s*\S+", "".join(words).partition(stop)[0])
    said = words[: options.get("num_predict", len(words))]
    for word in said:
        entry = {"token": word, "logprob": -0.25, "bytes": list(word.encode())}
        others = [{"token": f"{word}{n}", "logprob": -2.0 - n} for n in range(request.get("top_logprobs", 0))]
        yield Piece(word, entry | ({"top_logprobs": others} if others else {}) if request.get("logprobs") else None)
    prompt = sum(len(str(message.get("content")).split()) for message in messages)
    return End(prompt, len(said), "stop" if len(said) == len(words) else "length")


def endless() -> Speech:
    while True:
        yield Piece(" on")
        time.sleep(0.01)


def reply(request: Json, messages: list[Json]) -> str:
    form = request.get("format")
    if isinstance(form, dict):
        return json.dumps(instance(form), ensure_ascii=False)
    if form == "json":
        return '{"answer": "yes"}'
    results = [f"{m.get('tool_name')} said {m['content']}" for m in messages if m["role"] == "tool"]
    if results:
        return "; ".join(results)
    images = [base64.b64decode(image) for image in messages[-1].get("images") or []]
    seen = f" and showed {len(images)} images of {sum(map(len, images))} bytes" if images else ""
    return f"You said: {messages[-1]['content']}{seen}"


def thoughts(request: Json) -> list[str]:
    think = request.get("think")
    return ["Let me", f" think ({think})." if isinstance(think, str) else " think."] if think else []


def tool_lines(request: Json, tools: list[Json]) -> Iterator[Json]:
    """A call of each tool: the first two in one line, the others in one each, and the last line."""
    calls = []
    for index, tool in enumerate(tools):
        arguments = instance(tool["function"].get("parameters") or {"type": "object"})
        function = {"index": index, "name": tool["function"]["name"], "arguments": arguments}
        calls.append({"id": f"call_{hashlib.sha256(b'%d' % index).hexdigest()[:8]}", "function": function})
    for some in (calls[:2], *([call] for call in calls[2:])):
        yield line(request, {"message": message_of() | {"tool_calls": some}})
    yield line(request, {"message": message_of()}, End(31, 17, "stop"))


def instance(schema: Json) -> Any:
    """A value that fits the schema, with what is awkward to carry: other scripts, quotes, what Go escapes."""
    match schema.get("type"):
        case "array":
            return [instance(schema.get("items") or {"type": "string"})]
        case "object":
            return {name: instance(part) for name, part in (schema.get("properties") or {}).items()}
    return {"string": 'Zürich "<&>" \n🌍', "integer": 9007199254740993, "number": 1.5, "boolean": True}[schema["type"]]


def vector(text: str, dimensions: int) -> list[float]:
    """A unit vector of a text's hash."""
    numbers = [byte / 127.5 - 1 for byte in hashlib.shake_128(text.encode()).digest(dimensions)]
    length = math.sqrt(sum(number * number for number in numbers))
    return [round(number / length, 7) for number in numbers]


def message_of(content: str = "") -> Json:
    return {"role": "assistant", "content": content}


def line(request: Json, said: Json, end: End | None = None) -> Json:
    head = {"model": request["model"], "created_at": "2026-01-01T00:00:00Z", **said, "done": end is not None}
    if end is None:
        return head
    counts = {"prompt_eval_count": end.prompt_tokens, "eval_count": end.tokens}
    return head | {"done_reason": end.reason, "total_duration": 1_000_000, **counts}


def go_json(content: Any) -> bytes:
    """JSON as Go writes it: compact, and `<`, `>`, `&` never bare."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026").encode()


def check_message(message: Json) -> None:
    """What Go's decoder would refuse."""
    if not isinstance(message.get("content", ""), str):
        raise Refused(400, "json: cannot unmarshal into Go struct field Message.messages.content of type string")
    for image in message.get("images") or []:
        base64.b64decode(image, validate=True)
    for call in message.get("tool_calls") or []:
        if not isinstance(call["function"]["arguments"], dict):
            raise Refused(400, "json: cannot unmarshal into Go value of type api.ToolCallFunctionArguments")


class OllamaHandler(Handler, BaseHTTPRequestHandler):
    ollama: Ollama

    def do_GET(self) -> None:
        tags = {"models": [{"name": model, "model": model} for model in self.ollama.models]}
        answers: Json = {
            "/api/version": {"version": "0.12.11"},
            "/api/tags": {} if self.ollama.tags_are_broken else tags,
            "/api/ps": {"models": []},
        }
        self.answer_json(200 if self.path in answers else 404, answers.get(self.path))

    def do_POST(self) -> None:
        request = json.loads(self.body())
        self.ollama.seen.append((self.path, request))
        try:
            if self.path == "/api/embed":
                self.answer_json(200, self.ollama.embed(request))
            else:
                chats = self.path == "/api/chat"
                self.lines(request, self.ollama.chat(request) if chats else self.ollama.generate(request))
        except Refused as refused:
            self.answer_json(refused.status, {"error": str(refused)})
        except ConnectionError:
            self.ollama.left.append(time.monotonic())
            self.close_connection = True

    def lines(self, request: Json, lines: Iterator[Json]) -> None:
        """NDJSON, or with `stream: false` the lines' sum; an error before the first line has a status of its own."""
        if request.get("stream") is False:
            self.answer_json(200, whole(list(lines)))
            return
        first = next(lines)
        self.begin("application/x-ndjson")
        self.chunk(go_json(first) + b"\n")
        model = request["model"].partition(":")[0]
        if model == "cut-mid":
            self.chunk(b'{"model":"cut-mid","message":{"role":"assi')
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        if model == "error-mid":
            self.chunk(go_json({"error": "an error was encountered while running the model: CUDA error"}) + b"\n")
        else:
            for content in lines:
                self.chunk(go_json(content) + b"\n")
        self.chunk(b"")

    def answer_json(self, status: int, content: Any) -> None:
        self.answer(status, go_json(content), "application/json; charset=utf-8")


def whole(lines: list[Json]) -> Json:
    """What Ollama answers without a stream: the last line, with all that the lines said."""
    said = dict(lines[-1])
    messages = [each.get("message", {}) for each in lines]
    for place, parts in ((said.get("message"), messages), (said, lines)):
        for key in ("content", "thinking", "response"):
            if place is not None and (text := "".join(part.get(key, "") for part in parts)):
                place[key] = text
    if calls := [call for message in messages for call in message.get("tool_calls", ())]:
        said["message"]["tool_calls"] = calls
    if entries := [entry for each in lines for entry in each.get("logprobs", ())]:
        said["logprobs"] = entries
    return said


@contextmanager
def ollama() -> Iterator[Ollama]:
    """Runs the double on loopback until the end of the block."""
    double = Ollama()
    with http_server(type("Bound", (OllamaHandler,), {"ollama": double})) as double.port:
        yield double
