"""Every field of the OpenAI SDK's requests reaches a backend that speaks OpenAI's API as it was sent."""

from __future__ import annotations

import typing
from typing import Any

import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase as Chat
from openai.types.completion_create_params import CompletionCreateParamsBase as Completion
from openai.types.embedding_create_params import EmbeddingCreateParams as Embedding

from tests.support.gateways import Gateway
from tests.support.upstream import Upstream

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
    "/v1/chat/completions": (Chat, CHAT, "messages"),
    "/v1/completions": (Completion, COMPLETION, "prompt"),
    "/v1/embeddings": (Embedding, EMBEDDING, "input"),
}
FIELDS = [
    pytest.param(route, field, marks=pytest.mark.proves(route, field, backend="openai"), id=f"{route}-{field}")
    for route, (_, examples, _) in ROUTES.items()
    for field in examples
]


@pytest.mark.parametrize("route", ROUTES)
def test_examples_cover_the_sdk(route: str) -> None:
    kind, examples, _ = ROUTES[route]
    assert set(examples) - {"stream"} == set(typing.get_type_hints(kind)) - {"stream"}


@pytest.mark.parametrize(("route", "field"), FIELDS)
def test_field_reaches_the_backend_as_it_was_sent(served: Gateway, seen: Upstream, route: str, field: str) -> None:
    _, examples, required = ROUTES[route]
    body = {"model": "echo", required: examples[required], field: examples[field]}
    answer = served.client.post(route, json=body)
    assert answer.status_code == 200, answer.text
    reached = seen.seen[-1].json
    if field == "stream":
        assert reached.pop("stream_options") == {"include_usage": True}  # the one addition, for streams alone
    assert reached == body


@pytest.mark.parametrize("route", ROUTES)
def test_all_fields_at_once_and_unknown_ones_reach_it_byte_for_byte(
    served: Gateway, seen: Upstream, route: str
) -> None:
    body = {**ROUTES[route][1], "options": {"num_ctx": 8192}, "x_new": [1.0, 1e400 > 1, None]}
    sent = served.client.build_request("POST", route, json=body)
    assert served.client.send(sent).status_code == 200
    assert seen.seen[-1].body == sent.content
