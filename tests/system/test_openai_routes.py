"""Chat, completions, embeddings, models: through a real gateway process to a real upstream socket."""

from __future__ import annotations

import typing
from typing import Any

import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as Chat
from openai.types.completion_create_params import CompletionCreateParamsBase as Completion
from openai.types.embedding_create_params import EmbeddingCreateParams as Embedding

from tests.support.gateways import Gateway
from tests.support.upstream import ANSWER, DONE, EVENT, MODELS, Upstream

EVENTS = b"".join(EVENT % number for number in range(3))
FUNCTION = {"name": "now", "description": "The time", "parameters": {"type": "object", "properties": {}}}
SAMPLING = {
    "frequency_penalty": -0.5,
    "logit_bias": {"50256": -100},
    "max_tokens": 7,
    "model": "echo",
    "n": 2,
    "presence_penalty": 1.5,
    "seed": 12345678901234567890,
    "stop": ["\n", "Ende"],
    "stream": True,
    "stream_options": {"include_usage": True, "include_obfuscation": False},
    "temperature": 0.30000000000000004,
    "top_p": 1,
    "user": "user-1",
}
CHAT: dict[str, Any] = {
    **SAMPLING,
    "audio": {"voice": "ash", "format": "wav"},
    "function_call": "auto",
    "functions": [FUNCTION],
    "logprobs": True,
    "max_completion_tokens": 9,
    "messages": [
        {"role": "developer", "content": "Be brief", "name": "boss"},
        {"role": "user", "content": [{"type": "text", "text": "Grüße 🙂"}, {"type": "image_url", "image_url": {}}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "type": "function", "function": FUNCTION}]},
        {"role": "tool", "tool_call_id": "c1", "content": "12:00"},
    ],
    "metadata": {"a": "b"},
    "modalities": ["text"],
    "moderation": {"mode": "auto"},
    "parallel_tool_calls": False,
    "prediction": {"type": "content", "content": "12"},
    "prompt_cache_key": "k",
    "prompt_cache_options": {"a": 1},
    "prompt_cache_retention": "24h",
    "reasoning_effort": "low",
    "response_format": {"type": "json_schema", "json_schema": {"name": "t", "schema": {"type": "object"}}},
    "safety_identifier": "s",
    "service_tier": "flex",
    "store": True,
    "tool_choice": {"type": "function", "function": {"name": "now"}},
    "tools": [{"type": "function", "function": FUNCTION}],
    "top_logprobs": 3,
    "verbosity": "low",
    "web_search_options": {},
}
COMPLETION: dict[str, Any] = {**SAMPLING, "best_of": 3, "echo": True, "logprobs": 2, "prompt": "Once", "suffix": "end"}
EMBEDDING: dict[str, Any] = {
    "dimensions": 64,
    "encoding_format": "base64",
    "input": ["a", "b"],
    "model": "echo",
    "user": "user-1",
}
ROUTES = {
    "/v1/chat/completions": (Chat, CHAT),
    "/v1/completions": (Completion, COMPLETION),
    "/v1/embeddings": (Embedding, EMBEDDING),
}


def test_answer_and_headers(served: Gateway, seen: Upstream) -> None:
    answer = served.chat("fast", seed=7, unknown_field={"kept": [1.0]})
    assert answer.status_code == 200
    assert answer.json() == ANSWER | {"model": "echo"}
    assert answer.headers["x-backend-used"] == "test"
    assert answer.headers["x-model-used"] == "echo"
    assert answer.headers["x-router-reason"] == "alias:model"
    assert answer.headers["x-request-id"].startswith("req-")
    assert len(answer.headers["x-request-id"]) == len("req-") + 24
    (request,) = seen.wait_for(1)
    assert request.path == "/v1/chat/completions"
    assert request.json == {
        "model": "echo",
        "messages": [{"role": "user", "content": "Hi"}],
        "seed": 7,
        "unknown_field": {"kept": [1.0]},
    }
    assert "authorization" not in request.headers


def test_body_goes_up_byte_for_byte_when_the_model_is_the_backends(served: Gateway, seen: Upstream) -> None:
    body = b'{ "messages":[{"role":"user","content":"\xc3\xa9"}] ,"model":"echo", "big": 1180591620717411303424}'
    assert served.client.post("/v1/chat/completions", content=body).status_code == 200
    assert seen.wait_for(1)[0].body == body


def test_stream_is_passed_on_as_it_came(served: Gateway, seen: Upstream) -> None:
    answer = served.chat("echo", stream=True)
    assert answer.content == EVENTS + DONE
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.headers["x-router-reason"] == "pinned:model"


@pytest.mark.parametrize("model", ["no-done", "no-blank-line"])
def test_terminator_is_added_when_a_complete_stream_lacks_it(served: Gateway, seen: Upstream, model: str) -> None:
    assert served.chat(model, stream=True).content == EVENTS + DONE


@pytest.mark.proves("/v1/embeddings", "stream", backend="openai", refused=True)
def test_embeddings_do_not_stream(served: Gateway, seen: Upstream) -> None:
    body = {"model": "echo", "input": "Hi"}
    refused = served.client.post("/v1/embeddings", json=body | {"stream": True})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "stream")
    assert seen.seen == []
    assert served.client.post("/v1/embeddings", json=body | {"stream": False}).json()["object"] == "list"


def test_models(served: Gateway) -> None:
    listed = served.client.get("/v1/models").json()
    ids = [model["id"] for model in listed["data"]]
    assert ids == [f"test:{model}" for model in MODELS] + ["auto", "test", "default", "fast"]
    assert served.client.get("/v1/models/fast").json()["upstream_model"] == "echo"
    assert served.client.get("/v1/models/test:echo").json()["owned_by"] == "local"
    assert served.client.get("/v1/models/echo").json()["id"] == "echo"
    missing = served.client.get("/v1/models/fasst")
    assert missing.status_code == 404
    assert "fast" in missing.json()["error"]["message"]


def test_unknown_model_names_the_nearest(served: Gateway) -> None:
    answer = served.chat("defualt")
    assert answer.status_code == 404
    assert answer.json()["error"]["param"] == "model"
    assert "default" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/chat/completions", "There is no /chat/completions; did you mean /v1/chat/completions?"),
        ("/v1/v1/messages", "There is no /v1/v1/messages; did you mean /v1/messages?"),
        ("/v1/model", "There is no /v1/model; did you mean /v1/models?"),
        ("/zzzzzzzz", "There is no /zzzzzzzz; /docs lists the paths"),
    ],
)
def test_unknown_path_names_the_nearest(served: Gateway, path: str, says: str) -> None:
    answer = served.client.post(path, json={})
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    assert answer.json()["error"]["message"] == says


def test_model_name_cannot_forge_a_header(served: Gateway, seen: Upstream) -> None:
    answer = served.chat("test:\u00e9\r\nX-Evil: 1")
    assert "x-evil" not in answer.headers
    assert answer.headers["x-model-used"] == "%C3%A9%0D%0AX-Evil: 1"


@pytest.mark.parametrize(
    "route",
    [pytest.param(route, marks=pytest.mark.proves(route, *ROUTES[route][1], backend="openai")) for route in ROUTES],
)
def test_each_field_of_the_sdk_and_unknown_ones_reach_the_backend(served: Gateway, seen: Upstream, route: str) -> None:
    kind, examples = ROUTES[route]
    assert set(examples) - {"stream"} == set(typing.get_type_hints(kind)) - {"stream"}
    body = {**examples, "options": {"num_ctx": 8192}, "x_new": [1.0, 1e400 > 1, None]}
    sent = served.client.build_request("POST", route, json=body)
    assert served.client.send(sent).status_code == 200
    assert seen.seen[-1].body == sent.content
