"""Reranking by the provisioned appliance and its real embedder."""

from __future__ import annotations

import pytest

from tests.clients.appliance import Appliance

DOCUMENTS = [
    "The central bank raised its interest rate by a quarter of a percent.",
    "A kitten naps on the couch.",
    "The striker scored twice in the second half.",
]


@pytest.mark.proves("/v1/rerank", "query", "documents", "model", "top_n", backend="gateway_embed")
@pytest.mark.parametrize("model", ["all-minilm-l6-v2", None])
def test_what_answers_the_query_comes_first(appliance: Appliance, model: str | None) -> None:
    body = {"model": model, "query": "Where does the cat sleep?", "documents": DOCUMENTS, "top_n": 2}
    with appliance.http() as client:
        answer = client.post("/rerank", json=body)
    assert answer.status_code == 200, answer.text
    first, second = answer.json()["results"]
    assert (first["index"], first["document"]) == (1, {"text": DOCUMENTS[1]})
    assert first["relevance_score"] > 0.3 > second["relevance_score"]
    assert answer.json()["usage"]["prompt_tokens"] > 0
