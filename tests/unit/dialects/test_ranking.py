"""Rankings of several shapes, and vectors compared, sans I/O."""

from __future__ import annotations

from typing import Any

import pytest
from gateway.backends.protocols.base import AnswerError
from gateway.dialects.ranking import cosine, norm, ranking, scores_of, vectors_of
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"results": [{"index": 1, "relevance_score": 0.5}]}, [(1, 0.5)]),
        ({"data": [{"index": 1, "relevance_score": 0.5, "document": "x"}]}, [(1, 0.5)]),
        ([{"index": 0, "score": 1}], [(0, 1)]),
        ({"result": [0.25, -1]}, [(0, 0.25), (1, -1)]),
        ({"results": []}, []),
    ],
)
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
        {"results": [{"index": 2, "score": 1}]},
        [{"index": -1, "score": 1}],
        [{"index": 0, "score": 1}, {"index": 0, "score": 2}],
        {"result": [0.1, 0.2, 0.3]},
        {"result": ["x"]},
        {"result": [float("nan")]},
    ],
)
def test_malformed_ranking(answer: Any) -> None:
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
def test_malformed_vectors(data: Any) -> None:
    with pytest.raises(AnswerError):
        vectors_of({"data": data} if data else {}, 2)


VECTOR = st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3)


@given(VECTOR, VECTOR)
def test_cosine_is_symmetric_and_within_its_bounds(one: list[float], other: list[float]) -> None:
    score = cosine(one, other, norm(one))
    assert -1 <= score <= 1
    assert score == pytest.approx(cosine(other, one, norm(other)))
    assert cosine(one, [0, 0, 0], norm(one)) == 0


@given(st.lists(st.floats(-1, 1) | st.just(0.5), min_size=1, max_size=20), st.integers(1, 25))
def test_ranking_is_sorted_and_cut(scores: list[float], top_n: int) -> None:
    """Documents of equal scores keep their order, in whichever order a backend lists the scores."""
    documents = [str(index) for index in range(len(scores))]
    results = ranking([*enumerate(scores)][::-1], documents, top_n, with_documents=True)["results"]
    best = sorted(range(len(scores)), key=lambda index: -scores[index])[:top_n]
    assert results == [
        {"index": index, "relevance_score": scores[index], "document": {"text": str(index)}} for index in best
    ]
