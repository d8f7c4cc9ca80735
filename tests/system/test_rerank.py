"""Reranking: by a backend that reranks, else by embeddings."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.chat_script import ChatScript
from tests.support.gateways import Gateway, gateway, write_files
from tests.support.in_process import http, in_process

ROUTE = "/v1/rerank"
DOCUMENTS = ["far", {"text": "near", "id": 2**70}, "middle"]
VECTORS = {"query": [1, 0], "far": [-1, 0.0], "near": [2, 0], "middle": [1, 1]}
USAGE = {"prompt_tokens": 4, "total_tokens": 4}


def embeddings(request: dict[str, Any]) -> dict[str, Any]:
    data = [{"index": index, "embedding": VECTORS[text]} for index, text in enumerate(request["input"])]
    return {"object": "list", "model": request["model"], "data": data[::-1], "usage": USAGE}


@pytest.fixture
def told(script: ChatScript) -> ChatScript:
    script.seen.clear()
    script.paths = {"/v1/embeddings": embeddings}
    return script


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, script: ChatScript) -> Iterator[Gateway]:
    """A gateway with a backend that embeds, and one that reranks."""
    home = tmp_path_factory.mktemp("reranking")
    health = {"liveness": "/v1/models", "readiness": "/v1/models"}
    write_files(home, script.url, {"ranker@here": {"health": health, "supported_capabilities": ["rerank"]}})
    with gateway(home) as running:
        yield running


def ask(served: Gateway, **fields: Any) -> httpx.Response:
    return served.client.post(ROUTE, json={"query": "query", "documents": DOCUMENTS, "model": "test:echo", **fields})


def ranked(*scores: tuple[int, Any]) -> list[tuple[int, Any, Any]]:
    """Index, score and document, as they stand in both lists of an answer."""
    return [(index, score, DOCUMENTS[index]) for index, score in scores]


def lists(answer: dict[str, Any]) -> list[tuple[int, Any, Any]]:
    """The same of the answer's `data`; its `results` have each document's text."""
    texts = [
        item["document"] if isinstance(item["document"], str) else item["document"]["text"] for item in answer["data"]
    ]
    assert answer["results"] == [
        {**item, "document": {"text": text}} for item, text in zip(answer["data"], texts, strict=True)
    ]
    return [(item["index"], item["relevance_score"], item["document"]) for item in answer["data"]]


@pytest.mark.proves(ROUTE, "query", "documents", "model", "top_n", "return_documents", backend="openai")
def test_by_embeddings(served: Gateway, told: ChatScript) -> None:
    answer = ask(served, user="u-1")
    content = answer.json()
    assert lists(content) == ranked((1, 1.0), (2, pytest.approx(math.sqrt(0.5))), (0, -1.0))
    assert (content["object"], content["model"], content["usage"]) == ("list", "echo", USAGE)
    (seen,) = told.wait_for(1)
    assert seen.path == "/v1/embeddings"
    assert seen.json == {"model": "echo", "input": ["query", "far", "near", "middle"], "user": "u-1"}
    assert answer.headers["x-backend-used"] == "test"
    entry = served.entry_of(answer)
    assert (entry["path"], entry["op"], entry["input_tokens"], entry["output_tokens"]) == (ROUTE, "rerank", 4, 0)
    best = ask(served, top_n=1, return_documents=False).json()
    assert best["results"] == best["data"] == [{"index": 1, "relevance_score": 1.0}]


@pytest.mark.proves(ROUTE, "query", "documents", "model", "top_n", "return_documents", backend="openai")
def test_by_a_reranker(served: Gateway, told: ChatScript) -> None:
    results = [{"index": 2, "relevance_score": 0.1}, {"index": 0, "relevance_score": 0.9}]
    told.paths[ROUTE] = lambda _: {"model": "r", "results": results, "usage": USAGE}
    answer = ask(served, model="ranker:echo", top_n=2, return_documents=True, max_chunks_per_doc=3)
    content = answer.json()
    assert lists(content) == ranked((0, 0.9), (2, 0.1))
    assert (content["model"], content["usage"]) == ("r", USAGE)
    (seen,) = told.wait_for(1)
    texts = ["far", "near", "middle"]
    assert seen.json == {"model": "echo", "query": "query", "documents": texts, "top_n": 2, "max_chunks_per_doc": 3}
    assert answer.headers["x-backend-used"] == "ranker"
    assert served.entry_of(answer)["input_tokens"] == 4


@pytest.mark.parametrize(
    ("capability", "models", "path", "asked"),
    [
        ("rerank", ["m"], "/v1/rerank", "m"),
        ("rerank", ["m", "n"], "/v1/rerank", None),
        ("embeddings", ["m", "n"], "/v1/embeddings", "m"),
    ],
    ids=["the reranker's only one", "the reranker chooses", "the usual embedder's"],
)
async def test_without_a_model(
    tmp_path: Path, capability: str, models: list[str], path: str, asked: str | None
) -> None:
    answer = http(json.dumps({"results": [], "data": [{"id": model} for model in models]}).encode())
    async with in_process(tmp_path, lambda *_: answer, {"open": ("openai", "/v1", [capability])}) as gateway:
        gateway.settle()
        await gateway.post(ROUTE, b'{"query": "q", "documents": ["d"]}')
        ((seen, body),) = gateway.double.seen
    assert (seen, json.loads(body).get("model")) == (path, asked)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"query": ""}, "query"),
        ({"query": None}, "query"),
        ({"documents": []}, "documents"),
        ({"documents": ["x"] * 1001}, "documents"),
        ({"documents": [5]}, "documents.0"),
        ({"documents": [{"title": "x"}]}, "documents.0"),
        ({"top_n": 0}, "top_n"),
        ({"return_documents": "no"}, "return_documents"),
        ({"rank_fields": ["title"]}, "rank_fields"),
    ],
)
def test_what_is_wrong_is_named(served: Gateway, told: ChatScript, fields: dict[str, Any], param: str) -> None:
    answer = ask(served, **fields)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"].startswith(param)
    assert told.seen == []


@pytest.mark.proves(
    ROUTE, "max_tokens_per_doc", "max_chunks_per_doc", "priority", "stream", backend="openai", refused=True
)
@pytest.mark.parametrize("field", ["max_tokens_per_doc", "max_chunks_per_doc", "priority", "stream"])
def test_what_embeddings_cannot_do_is_refused(served: Gateway, told: ChatScript, field: str) -> None:
    answer = ask(served, **{field: field == "stream" or 1})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
