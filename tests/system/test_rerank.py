"""Reranking: by a backend that reranks, in the several shapes of their answers, else by embeddings."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from gateway.backends.protocols.base import AnswerError
from gateway.dialects.ranking import cosine, norm, ranking, scores_of, vectors_of
from hypothesis import given
from hypothesis import strategies as st

from tests.support.chat_script import ChatScript, chat_script
from tests.support.gateways import Gateway, gateway, write_files
from tests.support.pieces import json_values

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
def embedding(tmp_path_factory: pytest.TempPathFactory, script: ChatScript) -> Iterator[httpx.Client]:
    """A gateway whose only backend embeds."""
    home = tmp_path_factory.mktemp("embedding")
    write_files(home, script.url)
    with gateway(home) as running:
        yield running.client


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, script: ChatScript) -> Iterator[Gateway]:
    """A gateway with a backend that embeds and two that rerank."""
    home = tmp_path_factory.mktemp("reranking")
    health = {"liveness": "/v1/models", "readiness": "/v1/models"}
    ranker = {"health": health, "supported_capabilities": ["rerank"]}
    write_files(home, script.url, {"ranker@here": ranker, "nexa@here": {**ranker, "protocol": "nexa"}})
    with gateway(home) as running:
        yield running


def ask(client: httpx.Client, **fields: Any) -> httpx.Response:
    return client.post(ROUTE, json={"query": "query", "documents": DOCUMENTS, **fields})


@pytest.mark.proves(ROUTE, "query", "documents", "model", backend="openai")
def test_by_embeddings(embedding: httpx.Client, told: ChatScript) -> None:
    answer = ask(embedding, model="echo", user="u-1")
    half = pytest.approx(math.sqrt(0.5))
    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "object": "list",
        "model": "echo",
        "results": [
            {"index": 1, "relevance_score": 1.0, "document": {"text": "near"}},
            {"index": 2, "relevance_score": half, "document": {"text": "middle"}},
            {"index": 0, "relevance_score": -1.0, "document": {"text": "far"}},
        ],
        "data": [
            {"index": 1, "relevance_score": 1.0, "document": {"text": "near", "id": 2**70}},
            {"index": 2, "relevance_score": half, "document": "middle"},
            {"index": 0, "relevance_score": -1.0, "document": "far"},
        ],
        "usage": USAGE,
    }
    (seen,) = told.wait_for(1)
    assert seen.json == {"model": "echo", "input": ["query", "far", "near", "middle"], "user": "u-1"}
    assert answer.headers["x-backend-used"] == "test"


@pytest.mark.proves(ROUTE, "top_n", "return_documents", backend="openai")
def test_the_best_alone_without_its_text(embedding: httpx.Client, told: ChatScript) -> None:
    answer = ask(embedding, model="echo", top_n=1, return_documents=False).json()
    assert answer["results"] == answer["data"] == [{"index": 1, "relevance_score": 1.0}]


def test_without_a_model_the_usual_embedder(embedding: httpx.Client, told: ChatScript) -> None:
    answer = ask(embedding)
    assert (answer.status_code, answer.json()["model"]) == (200, "echo")


@pytest.mark.proves(ROUTE, "query", "documents", "model", "top_n", "return_documents", backend="openai")
def test_by_a_reranker(served: Gateway, told: ChatScript) -> None:
    results = [{"index": 2, "relevance_score": 0.1}, {"index": 0, "relevance_score": 0.9}]
    told.paths["/v1/rerank"] = lambda _: {"model": "r", "results": results, "usage": {"total_tokens": 9}}
    answer = ask(served.client, model="ranker:echo", top_n=2, max_chunks_per_doc=3)
    assert answer.json() == {
        "object": "list",
        "model": "r",
        "results": [
            {"index": 0, "relevance_score": 0.9, "document": {"text": "far"}},
            {"index": 2, "relevance_score": 0.1, "document": {"text": "middle"}},
        ],
        "data": [
            {"index": 0, "relevance_score": 0.9, "document": "far"},
            {"index": 2, "relevance_score": 0.1, "document": "middle"},
        ],
        "usage": {"total_tokens": 9},
    }
    (seen,) = told.wait_for(1)
    assert seen.path == "/v1/rerank"
    texts = ["far", "near", "middle"]
    assert seen.json == {"model": "echo", "query": "query", "documents": texts, "top_n": 2, "max_chunks_per_doc": 3}
    assert answer.headers["x-backend-used"] == "ranker"


def test_without_a_model_the_reranker_chooses(served: Gateway, told: ChatScript) -> None:
    told.paths["/v1/rerank"] = lambda _: {"results": []}
    answer = ask(served.client)
    assert (answer.status_code, answer.headers["x-backend-used"]) == (200, "ranker")
    assert "model" not in told.wait_for(1)[0].json


def test_without_a_model_the_rerankers_only_one(tmp_path: Path) -> None:
    with chat_script() as script:
        script.models = ("echo",)
        script.paths["/v1/rerank"] = lambda _: {"results": []}
        write_files(tmp_path, script.url, supported_capabilities=["rerank"], concurrency_limits={})
        with gateway(tmp_path) as running:
            answer = ask(running.client)
        assert (answer.status_code, answer.headers["x-model-used"]) == (200, "echo")
        assert script.wait_for(1)[0].json["model"] == "echo"


def test_a_model_of_a_class_that_only_embeds(served: Gateway, told: ChatScript) -> None:
    answer = ask(served.client, model="test:echo")
    assert (answer.status_code, answer.headers["x-backend-used"]) == (200, "test")
    assert told.wait_for(1)[0].path == "/v1/embeddings"


@pytest.mark.proves(ROUTE, "query", "documents", "model", "top_n", "return_documents", backend="nexa")
def test_by_nexa(served: Gateway, told: ChatScript) -> None:
    told.paths["/v1/reranking"] = lambda _: {"result": [-3.5, 2.25, 0.5]}
    answer = ask(served.client, model="nexa:echo", top_n=2, return_documents=False).json()
    assert answer["results"] == [{"index": 1, "relevance_score": 2.25}, {"index": 2, "relevance_score": 0.5}]
    assert "usage" not in answer
    texts = ["far", "near", "middle"]
    assert told.wait_for(1)[0].json == {"model": "echo", "query": "query", "documents": texts, "batch_size": 3}


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
        ({"top_n": -1}, "top_n"),
        ({"return_documents": "no"}, "return_documents"),
        ({"rank_fields": ["title"]}, "rank_fields"),
        ({"model": "nonsuch"}, "model"),
    ],
)
def test_what_is_wrong_is_named(embedding: httpx.Client, told: ChatScript, fields: dict[str, Any], param: str) -> None:
    answer = ask(embedding, **fields)
    assert answer.status_code == (404 if param == "model" else 400)
    assert answer.json()["error"]["param"].startswith(param)
    assert told.seen == []


@pytest.mark.proves(
    ROUTE, "max_tokens_per_doc", "max_chunks_per_doc", "priority", "stream", backend="openai", refused=True
)
@pytest.mark.parametrize("field", ["max_tokens_per_doc", "max_chunks_per_doc", "priority", "stream"])
def test_what_embeddings_cannot_do_is_refused(embedding: httpx.Client, told: ChatScript, field: str) -> None:
    answer = ask(embedding, model="echo", **{field: field == "stream" or 1})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)


@pytest.mark.parametrize(
    ("path", "model", "content"),
    [
        ("/v1/rerank", "ranker:echo", {"results": [{"index": 3, "relevance_score": 1}]}),
        ("/v1/rerank", "ranker:echo", {}),
        ("/v1/reranking", "nexa:echo", {"result": ["x"]}),
        ("/v1/embeddings", "test:echo", {"data": []}),
        ("/v1/embeddings", "test:echo", {"data": [{"embedding": "AAAA"}] * 4}),
        ("/v1/embeddings", "test:echo", {"data": [{"embedding": [1, "2"]}] * 4}),
    ],
)
def test_answers_that_are_none_are_a_502(
    served: Gateway, told: ChatScript, path: str, model: str, content: dict[str, Any]
) -> None:
    told.paths[path] = lambda _: content
    answer = ask(served.client, model=model)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_error")


def test_the_request_log_and_the_usage(served: Gateway, told: ChatScript) -> None:
    answer = ask(served.client, model="test:echo", documents=["near"])
    request_id = answer.headers["x-request-id"]
    entry = served.log_entry(lambda entry: entry["request_id"] == request_id)
    assert (entry["path"], entry["op"]) == ("/v1/rerank", "rerank")
    assert (entry["input_tokens"], entry["output_tokens"]) == (4, 0)


SHAPES: list[tuple[Any, list[tuple[int, float]]]] = [
    ({"results": [{"index": 1, "relevance_score": 0.5}]}, [(1, 0.5)]),
    ({"data": [{"index": 1, "relevance_score": 0.5, "document": "x"}]}, [(1, 0.5)]),
    ([{"index": 0, "score": 1}], [(0, 1)]),
    ({"result": [0.25, -1]}, [(0, 0.25), (1, -1)]),
    ({"results": []}, []),
]


@pytest.mark.parametrize(("answer", "expected"), SHAPES)
def test_shapes_of_rankings(answer: Any, expected: list[tuple[int, float]]) -> None:
    assert scores_of(answer, 2) == expected


@pytest.mark.parametrize(
    "answer",
    [
        None,
        {},
        {"results": {}},
        {"results": [{"index": "0", "score": 1}]},
        {"results": [{"index": 0}]},
        [{"index": -1, "score": 1}],
        [{"index": 0, "score": 1}, {"index": 0, "score": 2}],
        {"result": [0.1, 0.2, 0.3]},
        {"result": [float("nan")]},
    ],
)
def test_what_is_no_ranking(answer: Any) -> None:
    with pytest.raises(AnswerError):
        scores_of(answer, 2)


def test_vectors_are_in_the_order_of_their_texts() -> None:
    second, first = {"index": 1, "embedding": [1]}, {"index": 0, "embedding": [0.5]}
    assert vectors_of({"data": [second, first]}, 2) == [[0.5], [1]]
    assert vectors_of({"data": [{"embedding": [1]}, {"embedding": [2]}]}, 2) == [[1], [2]]


@pytest.mark.parametrize(
    "data",
    [
        None,
        [{"embedding": [1]}],
        [{"embedding": [1]}, {"embedding": {}}],
        [{"embedding": [1]}, {"embedding": "list at 5"}],
        [{"embedding": [1], "index": 1}] * 2,
        [{"embedding": [1], "index": [0]}] * 2,
        [{"embedding": [1], "index": "0"}, {"embedding": [1]}],
    ],
)
def test_what_are_no_vectors(data: Any) -> None:
    with pytest.raises(AnswerError):
        vectors_of({"data": data}, 2)


VECTOR = st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3)


@given(VECTOR, VECTOR)
def test_a_cosine_is_symmetric_and_within_its_bounds(one: list[float], other: list[float]) -> None:
    score = cosine(one, other, norm(one))
    assert -1 <= score <= 1
    assert score == pytest.approx(cosine(other, one, norm(other)))
    assert cosine(one, [0, 0, 0], norm(one)) == 0


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=20), st.integers(1, 25))
def test_a_ranking_is_sorted_and_cut(scores: list[float], top_n: int) -> None:
    documents = [str(index) for index in range(len(scores))]
    results = ranking(list(enumerate(scores)), documents, top_n, with_documents=True)["results"]
    told = [result["relevance_score"] for result in results]
    assert told == sorted(scores, reverse=True)[:top_n]
    assert all(scores[int(result["document"]["text"])] == result["relevance_score"] for result in results)


KEYS = ("results", "data", "result", "index", "score", "embedding")


@given(json_values(st.sampled_from(KEYS)))
def test_garbage_is_an_answer_error_or_a_ranking(answer: Any) -> None:
    try:
        scores = scores_of(answer, 2)
    except AnswerError:
        pass
    else:
        assert {index for index, _ in scores} <= {0, 1}
    try:
        vectors = vectors_of(answer if isinstance(answer, dict) else {}, 1)
    except AnswerError:
        pass
    else:
        assert len(vectors) == 1
