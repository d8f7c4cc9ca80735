"""A double of Ollama's server: its wire protocol on a real socket, as told by its API documents and types.

The text of `smollm2:135m` comes from a real llama.cpp when the double runs `with_llama`; all else it says is scripted:

- `echo` repeats the last message, thinks aloud when asked to, counts the images that it was shown, calls every tool it
  is offered once (two of them in one line) and tells the results it is then given, fills in schemas.
- `endless` never ends, `error-mid` and `cut-mid` fail within a stream as their names say.
- Embeddings are made of hashes: equal texts have equal ones, nothing else is meant by them.

Run it as a program with `python -m tests.support.faces.ollama --port 11434 --with-llama`.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import hashlib
import json
import math
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from tests.support.http_server import Handler, http_server
from tests.support.ports import free_ports
from tests.support.waiting import PATIENCE_SEC, until

Json = dict[str, Any]
VERSION = "0.12.11"
ROOT = Path(__file__).resolve().parents[3]
EVERYTHING = ("completion", "tools", "thinking", "vision", "insert")
FAILING = ("endless", "error-mid", "cut-mid")
MODELS = {
    "echo:latest": EVERYTHING,
    "smollm2:135m": ("completion",),
    "minilm:latest": ("embedding",),
    **{f"{name}:latest": EVERYTHING for name in FAILING},
}
LIBRARY = {"tiny:latest": ("completion",)}  # what can be pulled
DIMENSIONS = 384
# What Go's decoder says it wanted; a field of another type is a 400.
TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {
    "messages": (list, "[]api.Message"),
    "prompt": (str, "string"),
    "suffix": (str, "string"),
    "stream": (bool, "bool"),
    "tools": (list, "api.Tools"),
    "options": (dict, "map[string]interface {}"),
    "logprobs": (bool, "bool"),
    "top_logprobs": (int, "int"),
    "raw": (bool, "bool"),
    "dimensions": (int, "int"),
    "images": (list, "[]api.ImageData"),
    "format": ((str, dict), "json.RawMessage"),
    "think": ((bool, str), "api.ThinkValue"),
    "keep_alive": ((int, float, str), "api.Duration"),
}


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
    llama: str | None = None
    seen: list[tuple[str, Json]] = field(default_factory=list)
    left: list[float] = field(default_factory=list)
    models: dict[str, tuple[str, ...]] = field(default_factory=lambda: dict(MODELS))
    loaded: dict[str, datetime] = field(default_factory=dict)
    tags_are_broken: bool = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_until_left(self) -> None:
        until(lambda: self.left, "the stream was not left")

    def model(self, request: Json) -> str:
        """The full name of the request's model."""
        name = request.get("model") or request.get("name") or ""
        full = name if ":" in name else f"{name}:latest"
        if full not in self.models:
            raise Refused(404, f"model '{name}' not found")
        return full

    def load(self, model: str, request: Json) -> None:
        kept = seconds(request.get("keep_alive", "5m"))
        self.loaded[model] = datetime.now(UTC) + timedelta(seconds=kept)
        if kept == 0:
            del self.loaded[model]

    # What the model says -----------------------------------------------------------------------------------------

    def chat(self, request: Json) -> Iterator[Json]:
        """The lines of /api/chat."""
        model = self.model(request)
        self._check(request, model, "chat")
        messages = request.get("messages") or []
        for message in messages:
            check_message(message)
        self.load(model, request)
        if not messages:
            reason = "unload" if request.get("keep_alive") == 0 else "load"
            yield line(request, {"message": message_of()}, End(0, 0, reason))
            return
        for thought in thoughts(request):
            yield line(request, {"message": message_of(thinking=thought)})
        if (tools := request.get("tools")) and messages[-1]["role"] != "tool":
            yield from tool_lines(request, tools)
            return
        speech = self._speech(model, request, messages)
        while True:
            try:
                piece = next(speech)
            except StopIteration as stopped:
                yield line(request, {"message": message_of()}, stopped.value)
                return
            yield line(request, {"message": message_of(piece.text)} | logprobs(piece))

    def generate(self, request: Json) -> Iterator[Json]:
        """The lines of /api/generate."""
        model = self.model(request)
        self._check(request, model, "generate")
        if request.get("suffix") and "insert" not in self.models[model]:
            raise Refused(400, f"registry.ollama.ai/library/{model} does not support insert")
        self.load(model, request)
        if not request.get("prompt"):
            reason = "unload" if request.get("keep_alive") == 0 else "load"
            yield line(request, {"response": ""}, End(0, 0, reason))
            return
        for thought in thoughts(request):
            yield line(request, {"response": "", "thinking": thought})
        between = f" … {request['suffix']}" if request.get("suffix") else ""
        message = {"role": "user", "content": request["prompt"] + between, "images": request.get("images")}
        speech = self._speech(model, request, [message])
        while True:
            try:
                piece = next(speech)
            except StopIteration as stopped:
                yield line(request, {"response": "", "context": [1, 2, 3]}, stopped.value)
                return
            yield line(request, {"response": piece.text} | logprobs(piece))

    def embed(self, request: Json) -> Json:
        model = self.model(request)
        check_types(request, "EmbedRequest")
        texts = request.get("input")
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise Refused(400, "invalid input type")
        self.load(model, request)
        vectors = [vector(text, request.get("dimensions") or DIMENSIONS) for text in texts]
        count = sum(len(text.split()) for text in texts)
        return {"model": request["model"], "embeddings": vectors, "total_duration": 1, "prompt_eval_count": count}

    def _check(self, request: Json, model: str, what: str) -> None:
        check_types(request, f"{what.capitalize()}Request")
        able, name = self.models[model], request["model"]
        if not 0 <= request.get("top_logprobs", 0) <= 20:
            raise Refused(400, "top_logprobs must be between 0 and 20")
        if "completion" not in able:
            raise Refused(400, f'"{name}" does not support {what}')
        if request.get("tools") and "tools" not in able:
            raise Refused(400, f"registry.ollama.ai/library/{model} does not support tools")
        if request.get("think") and "thinking" not in able:
            raise Refused(400, f'"{name}" does not support thinking')
        if isinstance(request.get("think"), str) and request["think"] not in ("low", "medium", "high", "max"):
            wanted = 'must be "high", "medium", "low", "max", true, or false'
            raise Refused(400, f'invalid think value: "{request["think"]}" ({wanted})')

    def _speech(self, model: str, request: Json, messages: list[Json]) -> Speech:
        if model == "smollm2:135m" and self.llama is not None:
            return llama_speech(self.llama, request, messages)
        if model == "endless:latest":
            return endless()
        return scripted(request, messages)


def scripted(request: Json, messages: list[Json]) -> Speech:
    """The words of `echo`, one piece each, within `num_predict` and up to a `stop`."""
    options = request.get("options") or {}
    words = re.findall(r"\s*\S+|\s+$", reply(request, messages))
    for stop in options.get("stop") or []:
        words = re.findall(r"\s*\S+", "".join(words).partition(stop)[0])
    limit = options.get("num_predict", -1)
    said = words if limit < 0 else words[:limit]
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


def llama_speech(url: str, request: Json, messages: list[Json]) -> Speech:
    """What a real llama.cpp answers."""
    options = request.get("options") or {}
    body: Json = {
        "messages": [{"role": message["role"], "content": message["content"]} for message in messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": options.get("num_predict", 64),
        **{k: options[k] for k in ("temperature", "top_p", "seed", "stop", "top_k") if k in options},
    }
    if form := request.get("format"):
        schema = {"type": "json_schema", "json_schema": {"name": "format", "schema": form}}
        body["response_format"] = schema if isinstance(form, dict) else {"type": "json_object"}
    if request.get("logprobs"):
        body |= {"logprobs": True, "top_logprobs": request.get("top_logprobs", 0)}
    reason, usage = "stop", {"prompt_tokens": 0, "completion_tokens": 0}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60, trust_env=False) as response:
        for text in response.iter_lines():
            event = json.loads(text[6:]) if text.startswith("data: {") else {}
            usage = event.get("usage") or usage
            for choice in event.get("choices", ()):
                reason = choice["finish_reason"] or reason
                entries = (choice.get("logprobs") or {}).get("content") or [None]
                if content := choice["delta"].get("content"):
                    yield Piece(content, entries[0])
    return End(usage["prompt_tokens"], usage["completion_tokens"], reason)


def thoughts(request: Json) -> list[str]:
    think = request.get("think")
    return ["Let me", f" think ({think})." if isinstance(think, str) else " think."] if think else []


def tool_lines(request: Json, tools: list[Json]) -> Iterator[Json]:
    """A call of each tool: the first two in one line, the others in one each, and the last line."""
    calls = [
        {
            "id": f"call_{hashlib.sha256(str(index).encode()).hexdigest()[:8]}",
            "function": {
                "index": index,
                "name": tool["function"]["name"],
                "arguments": instance(tool["function"].get("parameters") or {"type": "object"}),
            },
        }
        for index, tool in enumerate(tools)
    ]
    for some in (calls[:2], *([call] for call in calls[2:])):
        yield line(request, {"message": message_of() | {"tool_calls": some}})
    yield line(request, {"message": message_of()}, End(31, 17, "stop"))


def instance(schema: Json) -> Any:
    """A value that fits the schema, with what is awkward to carry: other scripts, quotes, what Go escapes."""
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    match schema.get("type"):
        case "string":
            return 'Zürich "<&>" \n🌍'
        case "integer":
            return 9007199254740993
        case "number":
            return 1.5
        case "boolean":
            return True
        case "array":
            return [instance(schema.get("items") or {"type": "string"})]
        case "object":
            return {name: instance(part) for name, part in (schema.get("properties") or {}).items()}
    return None


def vector(text: str, dimensions: int) -> list[float]:
    """A unit vector of a text's hash."""
    raw = hashlib.shake_128(text.encode()).digest(dimensions)
    numbers = [byte / 127.5 - 1 for byte in raw]
    length = math.sqrt(sum(number * number for number in numbers))
    return [round(number / length, 7) for number in numbers]


# Ollama's shapes ---------------------------------------------------------------------------------------------------


def message_of(content: str = "", thinking: str = "") -> Json:
    return {"role": "assistant", "content": content} | ({"thinking": thinking} if thinking else {})


def line(request: Json, said: Json, end: End | None = None) -> Json:
    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    head = {"model": request["model"], "created_at": now, **said, "done": end is not None}
    if end is None:
        return head
    counts = {"prompt_eval_count": end.prompt_tokens, "eval_count": end.tokens}
    durations = {"total_duration": 1_000_000, "load_duration": 1_000}
    return head | {"done_reason": end.reason, **durations} | {name: n for name, n in counts.items() if n}


def logprobs(piece: Piece) -> Json:
    return {"logprobs": [piece.logprob]} if piece.logprob else {}


def go_json(content: Any) -> bytes:
    """JSON as Go writes it: compact, and `<`, `>`, `&` never bare."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026").encode()


def check_types(request: Json, name: str) -> None:
    for key, (kind, wanted) in TYPES.items():
        value = request.get(key)
        if value is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
            raise Refused(400, unmarshal(value, f"{name}.{key}", wanted))


def check_message(message: Json) -> None:
    content = message.get("content")
    if content is not None and not isinstance(content, str):
        raise Refused(400, unmarshal(content, "Message.messages.content", "string"))
    for image in message.get("images") or []:
        try:
            base64.b64decode(image, validate=True)
        except (binascii.Error, ValueError):
            raise Refused(400, "illegal base64 data at input byte 0") from None
    for call in message.get("tool_calls") or []:
        arguments = call["function"]["arguments"]
        if not isinstance(arguments, dict):
            where = "ToolCallFunction.messages.tool_calls.function.arguments"
            raise Refused(400, unmarshal(arguments, where, "api.ToolCallFunctionArguments"))


def unmarshal(value: Any, where: str, wanted: str) -> str:
    kinds = {str: "string", list: "array", dict: "object", bool: "bool", int: "number", float: "number"}
    return f"json: cannot unmarshal {kinds[type(value)]} into Go struct field {where} of type {wanted}"


def seconds(keep_alive: float | str) -> float:
    """A Go duration, or a number of seconds; a negative one is for ever, which is long here."""
    if isinstance(keep_alive, str):
        units = {"ms": 0.001, "s": 1, "m": 60, "h": 3600}
        parts = re.findall(r"(-?[\d.]+)(ms|s|m|h)", keep_alive)
        if not parts:
            raise Refused(400, f'time: invalid duration "{keep_alive}"')
        keep_alive = sum(float(number) * units[unit] for number, unit in parts)
    return keep_alive if keep_alive >= 0 else 1e9


def digest(model: str) -> str:
    return hashlib.sha256(model.encode()).hexdigest()


def details(model: str) -> Json:
    return {
        "parent_model": "",
        "format": "gguf",
        "family": "llama",
        "families": ["llama"],
        "parameter_size": "134.52M",
        "quantization_level": "Q4_1",
    }


# HTTP --------------------------------------------------------------------------------------------------------------


class OllamaHandler(Handler, BaseHTTPRequestHandler):
    ollama: Ollama

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        ollama = self.ollama
        if self.path == "/":
            self.answer(200, b"Ollama is running", "text/plain; charset=utf-8")
        elif self.path == "/api/version":
            self.answer_json(200, {"version": VERSION})
        elif self.path == "/api/tags":
            tags = [listed(model) for model in ollama.models]
            self.answer_json(200, {} if ollama.tags_are_broken else {"models": tags})
        elif self.path == "/api/ps":
            now = datetime.now(UTC)
            running = [(model, until) for model, until in ollama.loaded.items() if until > now]
            models = [listed(m) | {"expires_at": until.isoformat(), "size_vram": 0} for m, until in running]
            self.answer_json(200, {"models": models})
        else:
            self.answer(404, b"404 page not found", "text/plain")

    def do_POST(self) -> None:
        try:
            self.route(parsed(self.body()))
        except Refused as refused:
            self.answer_json(refused.status, {"error": str(refused)})
        except ConnectionError:
            self.ollama.left.append(time.monotonic())
            self.close_connection = True

    def route(self, request: Json) -> None:
        ollama = self.ollama
        if self.path in ("/api/chat", "/api/generate", "/api/embed"):
            ollama.seen.append((self.path, request))
        if self.path == "/api/chat":
            self.lines(request, ollama.chat(request))
        elif self.path == "/api/generate":
            self.lines(request, ollama.generate(request))
        elif self.path == "/api/embed":
            self.answer_json(200, ollama.embed(request))
        elif self.path == "/api/show":
            self.answer_json(200, shown(ollama, ollama.model(request)))
        elif self.path == "/api/pull":
            self.lines(request, pulled(ollama, request))
        else:
            self.answer(404, b"404 page not found", "text/plain")

    def lines(self, request: Json, lines: Iterator[Json]) -> None:
        """NDJSON, or with `stream: false` the lines' sum; an error before the first line has a status of its own."""
        if request.get("stream") is False:
            self.answer_json(200, whole(list(lines)))
            return
        first = next(lines)
        self.begin("application/x-ndjson")
        self.chunk(go_json(first) + b"\n")
        model = request.get("model", "").partition(":")[0]
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


def parsed(body: bytes) -> Json:
    if not body:
        raise Refused(400, "missing request body")
    try:
        request = json.loads(body)
    except ValueError:
        raise Refused(400, "invalid character looking for beginning of value") from None
    if not isinstance(request, dict):
        raise Refused(400, "json: cannot unmarshal into Go value of type api.ChatRequest")
    return request


def whole(lines: list[Json]) -> Json:
    """What Ollama answers without a stream: the last line, with all that the lines said."""
    said = dict(lines[-1])
    if "message" in said:
        messages = [each["message"] for each in lines]
        said["message"] = message_of(*("".join(m.get(key, "") for m in messages) for key in ("content", "thinking")))
        if calls := [call for message in messages for call in message.get("tool_calls", ())]:
            said["message"]["tool_calls"] = calls
    for key in ("response", "thinking"):
        if text := "".join(each.get(key, "") for each in lines):
            said[key] = text
    if entries := [entry for each in lines for entry in each.get("logprobs", ())]:
        said["logprobs"] = entries
    return said


def listed(model: str) -> Json:
    at = "2026-01-01T00:00:00Z"
    head = {"name": model, "model": model, "modified_at": at, "size": 91_727_104}
    return {**head, "digest": digest(model), "details": details(model)}


def shown(ollama: Ollama, model: str) -> Json:
    return {
        "modelfile": f"FROM {model}\n",
        "template": "{{ .Prompt }}",
        "details": details(model),
        "model_info": {"general.architecture": "llama", "llama.context_length": 2048},
        "capabilities": list(ollama.models[model]),
        "modified_at": "2026-01-01T00:00:00Z",
    }


def pulled(ollama: Ollama, request: Json) -> Iterator[Json]:
    name = request.get("model") or request.get("name") or ""
    full = name if ":" in name else f"{name}:latest"
    yield {"status": "pulling manifest"}
    if full not in LIBRARY and full not in ollama.models:
        # Ollama has begun its answer by then: without a stream this is a 500.
        if request.get("stream") is False:
            raise Refused(500, "pull model manifest: file does not exist")
        yield {"error": "pull model manifest: file does not exist"}
        return
    layer = {"status": f"pulling {digest(full)[:12]}", "digest": f"sha256:{digest(full)}", "total": 1000}
    for completed in (0, 500, 1000):
        yield layer | {"completed": completed}
    yield from ({"status": status} for status in ("verifying sha256 digest", "writing manifest"))
    ollama.models[full] = ollama.models.get(full) or LIBRARY[full]
    yield {"status": "success"}


# Running it --------------------------------------------------------------------------------------------------------


@contextmanager
def ollama(port: int = 0, *, with_llama: bool = False) -> Iterator[Ollama]:
    """Runs the double on loopback until the end of the block."""
    double = Ollama()
    with http_server(type("Bound", (OllamaHandler,), {"ollama": double}), port) as double.port:
        if with_llama:
            with llama() as double.llama:
                yield double
        else:
            yield double


@contextmanager
def llama() -> Iterator[str]:
    """A real llama.cpp with the packaged model; gives its address."""
    port = str(free_ports(1)[0])
    script = ROOT / "roles/llamacpp/files/llamacpp_server.py"
    options = ["--model-name", "smollm2", "--context-size", "2048", "--parallel", "2"]
    command = [sys.executable, str(script), "--host", "127.0.0.1", "--port", port, *options]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: process.poll() is not None or answers(f"http://127.0.0.1:{port}/health"), "no llama.cpp", 120)
        assert process.poll() is None, "llama.cpp did not start"
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(PATIENCE_SEC)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=11434)
    parser.add_argument("--with-llama", action="store_true", help="smollm2:135m answers by a real llama.cpp")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with ollama(arguments.port, with_llama=arguments.with_llama) as double:
        print(f"URL={double.url}", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
