"""Sound answers of every kind of backend to whatever they are asked."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from tests.support.faces.images import png, text
from tests.support.in_process import http

Json = Any
PICTURE = text(png(8, 8))
CALL = {"id": "c1", "index": 0, "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
USAGE = {
    "prompt_tokens": 3,
    "completion_tokens": 2,
    "total_tokens": 5,
    "prompt_tokens_details": {"cached_tokens": 1},
    "completion_tokens_details": {"reasoning_tokens": 1},
}
LOGPROB = {"token": "x", "logprob": -0.5, "bytes": [120], "top_logprobs": [{"token": "x", "logprob": -0.5}]}
SAID = {"role": "assistant", "content": "x", "reasoning_content": "r", "refusal": None}
CHOICE = {"index": 0, "finish_reason": "stop", "stop_reason": None, "logprobs": {"content": [LOGPROB]}}
COMPLETION = {"id": "c", "object": "chat.completion", "model": "m", "usage": USAGE, "service_tier": "x"}
WHOLE = {**COMPLETION, "choices": [{**CHOICE, "message": {**SAID, "tool_calls": [CALL]}}]}
CHUNKS = [
    {**COMPLETION, "choices": [{**CHOICE, "finish_reason": None, "delta": SAID}], "usage": None},
    {**COMPLETION, "choices": [{**CHOICE, "finish_reason": None, "delta": {"tool_calls": [CALL]}}], "usage": None},
    {**COMPLETION, "choices": [{**CHOICE, "delta": {}}], "usage": None},
    {**COMPLETION, "choices": []},
]
LINE = {
    "model": "m",
    "message": {
        "role": "assistant",
        "content": "x",
        "thinking": "t",
        "tool_calls": [{"id": "c1", "function": {"index": 0, "name": "f", "arguments": {"a": 1}}}],
    },
    "response": "x",
    "thinking": "t",
    "logprobs": [LOGPROB],
    "done": False,
}
LAST = {**LINE, "done": True, "done_reason": "stop", "prompt_eval_count": 3, "eval_count": 2}
VECTORS = {"object": "list", "data": [{"index": n, "embedding": [0.5, n]} for n in range(3)], "usage": USAGE}
PROBLEM = {
    "error": {"message": "m", "type": "t", "param": "p", "code": "c"},
    "detail": [{"loc": ["body", "steps"], "msg": "m"}],
    "node_errors": {"1": {"errors": [{"extra_info": {"input_name": "ckpt_name"}, "details": "d"}]}},
}
SESSION = {
    "source_prepared_mapping": {"image": ["node"]},
    "results": {"node": {"type": "image_output", "image": {"image_name": "made.png"}}},
}
# By what the backend's path ends with, the first that fits; a list is a stream.
ANSWERS: dict[str, Json] = {
    "/chat/completions": WHOLE,
    "/completions": {**COMPLETION, "choices": [{"index": 0, "text": "x", "finish_reason": "stop"}]},
    "/v1/embeddings": VECTORS,
    "/input_tokens": {"input_tokens": 7},
    "/tokenize": {"tokens": [1, 2]},
    "/rerank": {"model": "m", "results": [{"index": n, "relevance_score": 0.5} for n in range(2)], "usage": USAGE},
    "/reranking": {"result": [0.5]},
    "/api/chat": LAST,
    "/api/generate": LAST,
    "/api/embed": {"embeddings": [[0.5, 1], [1, 0.5], [0.1, 0.2]], "prompt_eval_count": 3},
    "/api/tags": {"models": [{"name": "m", "model": "m"}]},
    "/api/ps": {"models": [{"name": "m", "model": "m"}]},
    "/images/generations": {"data": [{"b64_json": PICTURE, "revised_prompt": "r"}], "usage": {"input_tokens": 1}},
    "/images/edits": {"data": [{"b64_json": PICTURE, "url": None}], "size": "64x64"},
    "/sdapi/v1/txt2img": {"images": [PICTURE], "info": '{"all_seeds":[1]}'},
    "/sdapi/v1/img2img": {"images": [PICTURE], "info": '{"all_seeds":[1]}'},
    "/internal/progress": {"active": False, "queued": False},
    "/models/checkpoints": ["first", "second"],
    "/upload/image": {"name": "n", "subfolder": "s"},
    "/prompt": {"prompt_id": "p1", "node_errors": {}},
    "/history/p1": {"p1": {"status": {"status_str": "success", "completed": True, "messages": [["x", {}]]}}},
    "/queue": {"queue_running": [[0, "p1"]]},
    "/interrupt": {},
    "/models/": {"models": [{"key": "k", "hash": "h", "name": "n", "base": "sd-1", "type": "main"}]},
    "/images/upload": {"image_name": "up.png"},
    "/enqueue_batch": {"item_ids": [1], "batch": {"batch_id": "b"}},
    "/status": {"failed": 0, "canceled": 0, "completed": 1},
    "/i/1": {"status": "completed", "field_values": [{"node_path": "noise", "value": 7}], "session": SESSION},
    "/cancel_by_batch_ids": {},
    "/audio/speech": {"audio": "AAAA", "format": "wav"},
    "/audio/transcriptions": {"text": "t", "usage": USAGE, "logprobs": [LOGPROB], "segments": [{"id": 0}]},
    "/music/generations": {"id": "i", "status": "completed", "audio_url": "/audio/a.wav", "duration": 1},
    "/models": {"object": "list", "data": [{"id": "m", "object": "model"}]},
}
ANSWERS["/history/p1"]["p1"]["outputs"] = {"shown": {"images": [{"filename": "f", "subfolder": "", "type": "temp"}]}}


def dump(content: Json) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode()


class Sound(NamedTuple):
    """A sound answer to whatever is asked: JSON, or the JSONs of a stream; or the bytes of a picture."""

    kind: str
    content: Json

    def http(self, status: int = 200) -> bytes:
        if self.kind in ("sse", "ndjson") and isinstance(self.content, list):
            begin = b"data: " if self.kind == "sse" else b""
            end = b"\n\n" if self.kind == "sse" else b"\n"
            body = b"".join(begin + dump(chunk) + end for chunk in self.content)
            if self.kind == "sse":
                return http(body + b"data: [DONE]\n\n", status, "text/event-stream")
            return http(body, status, "application/x-ndjson")
        if isinstance(self.content, bytes):
            return http(self.content, status, "image/png")
        return http(dump(self.content), status)


def name_of(path: str) -> str:
    where = path.partition("?")[0]
    return next((name for name in ANSWERS if where.endswith(name)), where)


def sound(path: str, body: bytes) -> Sound:
    name = name_of(path)
    if name.endswith(("/view", "/full")):
        return Sound("png", png(8, 8))
    if b'"stream":true' in body and name == "/chat/completions":
        return Sound("sse", CHUNKS)
    if b'"stream":true' in body and name in ("/api/chat", "/api/generate"):
        return Sound("ndjson", [LINE, LAST])
    content = ANSWERS.get(name, {})
    if name == "/api/embed":
        asked = json.loads(body).get("input")
        content = {"embeddings": [[0.5, 1]] * (len(asked) if isinstance(asked, list) else 1), "prompt_eval_count": 3}
    return Sound("json", content)


def good(method: str, path: str, body: bytes) -> bytes:
    return sound(path, body).http()
