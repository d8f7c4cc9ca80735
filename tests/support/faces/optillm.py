"""A double of OptiLLM 0.4.0 in front of llama.cpp; `make test-heavy` compares it with the real one.

Its habits: a prefix of the model's name chooses an approach. Without one the answer is the upstream's with every field
of OpenAI's Python type, also as a stream: in one piece. An approach's answer has neither id nor prompt tokens, and no
usage in streams. One that was cut short is a 500 (`re2`), or words about an error with status 200 (`bon`, `moa`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any
from uuid import uuid4

from tests.support.http_server import Handler, http_server

MODEL = "smollm2-135m-instruct"
APPROACHES = ("re2", "bon", "moa")
WORDS = "Two plus two is 4."
FAILED = "Error: Could not generate any completions"
ENOUGH = 100  # tokens; an answer with fewer is cut short
USAGE: dict[str, Any] = {
    "completion_tokens": 8,
    "prompt_tokens": 38,
    "total_tokens": 46,
    "completion_tokens_details": None,
    "prompt_tokens_details": {"audio_tokens": None, "cache_write_tokens": None, "cached_tokens": 37},
}
TIMINGS = {
    "cache_n": 37,
    "predicted_ms": 57.5,
    "predicted_n": 8,
    "predicted_per_second": 139.1,
    "predicted_per_token_ms": 7.1,
    "prompt_ms": 10.5,
    "prompt_n": 1,
    "prompt_per_second": 95.2,
    "prompt_per_token_ms": 10.5,
}
UNUSED = {"annotations": None, "audio": None, "function_call": None, "refusal": None, "tool_calls": None}


def passed_on(model: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": WORDS, **UNUSED}
    return {
        "choices": [{"finish_reason": "length", "index": 0, "logprobs": None, "message": message}],
        "created": 1795256948,
        "id": f"chatcmpl-{uuid4()}",
        "model": model,
        "moderation": None,
        "object": "chat.completion",
        "service_tier": None,
        "system_fingerprint": "b0-unknown",
        "timings": TIMINGS,
        "usage": USAGE,
    }


def approached(model: str, text: str) -> dict[str, Any]:
    message = {"content": text, "role": "assistant"}
    usage = {"completion_tokens": len(text.split()), "completion_tokens_details": {"reasoning_tokens": 0}}
    return {
        "choices": [{"finish_reason": "stop", "index": 0, "message": message}],
        "model": model,
        "usage": usage,
    }


def chunks(request: dict[str, Any], model: str, approach: str, text: str) -> list[dict[str, Any]]:
    head = {"id": f"chatcmpl-{uuid4()}", "object": "chat.completion.chunk", "created": 1795256948, "model": model}
    delta = {"role": "assistant", "content": text}
    if approach:
        return [{**head, "choices": [{"delta": delta, "index": 0, "finish_reason": "stop"}]}]
    choices: list[dict[str, Any]] = [
        {"index": 0, "delta": delta, "finish_reason": None},
        {"index": 0, "delta": {}, "finish_reason": "length"},
    ]
    events = [{**head, "choices": [choice]} for choice in choices]
    if (request.get("stream_options") or {}).get("include_usage"):
        events.append({**head, "choices": [], "usage": USAGE})
    return events


class _OptiLLM(Handler, BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        listed = {"object": "list", "data": [{"id": MODEL, "object": "model"}]}
        self.answer_json(200, {"status": "ok"} if self.path == "/health" else listed)

    def do_POST(self) -> None:
        request = json.loads(self.body())
        prefix, _, rest = request["model"].partition("-")
        approach, model = (prefix, rest) if prefix in APPROACHES else ("", request["model"])
        is_cut = bool(approach) and request.get("max_tokens", ENOUGH) < ENOUGH
        if is_cut and approach == "re2":
            self.answer_json(500, {"error": "re2_approach: provider returned a None or truncated response"})
            return
        text = FAILED if is_cut else WORDS
        if request.get("stream"):
            self.stream(chunks(request, model, approach, text))
        else:
            self.answer_json(200, approached(model, text) if approach else passed_on(model))

    def stream(self, events: list[dict[str, Any]]) -> None:
        self.begin("text/event-stream")
        for data in [*map(json.dumps, events), "[DONE]"]:
            self.chunk(f"data: {data}\n\n".encode())
        self.chunk(b"")


@contextmanager
def optillm() -> Iterator[str]:
    """Runs one in a thread until the end of the block; its API's URL."""
    with http_server(_OptiLLM) as port:
        yield f"http://127.0.0.1:{port}/v1"
