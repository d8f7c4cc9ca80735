"""Reranking, sans I/O: reads the answers of several kinds of rerankers, compares embeddings, and makes the answer."""

from __future__ import annotations

import math
from collections.abc import Container, Generator, Mapping, Sequence
from operator import mul
from typing import Any

from gateway.backends.protocols.base import AnswerError, vector_in
from gateway.wire.stepwise import LongTexts

DIMENSIONS_MAX = 1 << 18  # of an embedding; large ones have 4,096
NUMBERS_AT_ONCE = 1 << 16  # between two turns of the event loop: under 5 ms
Document = str | dict[str, Any]


def text_of(document: Document) -> str:
    return document if isinstance(document, str) else str(document["text"])


def scores_of(answer: Any, count: int) -> list[tuple[int, float]]:
    """Index and score of each document in a reranker's answer; `count` documents were sent.

    Jina, Cohere, vLLM and llama.cpp answer `results`, Voyage `data`, text-embeddings-inference a bare list, and Nexa
    `result` with only the scores in the documents' order.

    Raises:
        AnswerError: another shape, an unknown index, or an index that comes twice.
    """
    if isinstance(answer, Mapping):
        answer = next((answer[name] for name in ("results", "data", "result") if name in answer), None)
    if not isinstance(answer, list):
        raise AnswerError("a ranking without results")
    found = [_scored(item, place) for place, item in enumerate(answer)]
    indexes = {index for index, _ in found}
    if len(indexes) < len(found) or not indexes <= set(range(count)):
        raise AnswerError("a ranking of other documents than were sent")
    return found


def vectors_of(answer: Mapping[str, Any], count: int, lists: Container[str] = ()) -> list[Any]:
    """The `count` vectors of an OpenAI embeddings answer, in the order of their texts; their numbers are unchecked.

    Each vector is a list, or the name of one of `lists`.

    Raises:
        AnswerError: the number of vectors is not `count`, or a vector has another type.
    """
    data = answer.get("data")
    if not isinstance(data, list) or len(data) != count:
        raise AnswerError(f"not {count} embeddings for {count} texts")
    vectors: dict[int, Any] = {}
    for place, item in enumerate(data):
        item = item if isinstance(item, dict) else {}
        index, vector = item.get("index", place), item.get("embedding")
        is_named = isinstance(vector, str) and vector in lists
        if type(index) is not int or not (is_named or isinstance(vector, list)):
            raise AnswerError("a malformed embedding")
        vectors[index] = vector
    if set(vectors) != set(range(count)):
        raise AnswerError("embeddings of other texts than were sent")
    return [vectors[index] for index in range(count)]


def norm(vector: Sequence[float]) -> float:
    return math.sqrt(sum(map(mul, vector, vector)))


def cosines(vectors: Sequence[Any], lists: LongTexts) -> Generator[None, None, list[tuple[int, float]]]:
    """The cosine of each later vector to the first, by index; raises AnswerError when vectors cannot be compared."""
    query = yield from vector_in(vectors[0], lists)
    if len(query) > DIMENSIONS_MAX:
        raise AnswerError(f"an embedding of more than {DIMENSIONS_MAX} numbers")
    length, seen = norm(query), 0
    scores: list[tuple[int, float]] = []
    for index, vector in enumerate(vectors[1:]):
        numbers = yield from vector_in(vector, lists)
        if len(numbers) != len(query):
            raise AnswerError("embeddings of different lengths")
        scores.append((index, cosine(query, numbers, length)))
        seen += len(numbers)
        if seen >= NUMBERS_AT_ONCE:
            seen = 0
            yield
    return scores


def cosine(one: Sequence[float], other: Sequence[float], norm_of_one: float) -> float:
    """From -1 to 1; 0 when a vector is zero."""
    length = norm_of_one * norm(other)
    return max(-1.0, min(1.0, sum(map(mul, one, other)) / length)) if length else 0.0


def ranking(
    scores: Sequence[tuple[int, float]], documents: Sequence[Document], top_n: int | None, with_documents: bool
) -> dict[str, Any]:
    """The best document first, equal scores in the documents' order, as `results` and as `data`.

    Clients of Jina's and Cohere's APIs read `results`, with `document` as `{"text": …}`; clients of the earlier gateway
    read `data`, with `document` as it was sent.
    """
    best = sorted(scores, key=lambda scored: (-scored[1], scored[0]))[:top_n]
    results, data = [], []
    for index, score in best:
        result: dict[str, Any] = {"index": index, "relevance_score": score}
        document = documents[index]
        results.append({**result, "document": {"text": text_of(document)}} if with_documents else result)
        data.append({**result, "document": document} if with_documents else result)
    return {"results": results, "data": data}


def _scored(item: Any, place: int) -> tuple[int, float]:
    if isinstance(item, Mapping):
        index, score = item.get("index"), item.get("relevance_score", item.get("score"))
    else:
        index, score = place, item
    if type(index) is not int or not isinstance(score, int | float) or not math.isfinite(score):
        raise AnswerError("a ranking whose index or score is not a number")
    return index, score
