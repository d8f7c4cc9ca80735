"""The real OptiLLM in front of the real llama.cpp: the tests of its double once more, and the double beside it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.clients import servers
from tests.clients.alone import program
from tests.clients.fidelity import events, payload
from tests.clients.optillm_tests import *  # noqa: F403 - tests and fixtures, for pytest to find
from tests.clients.optillm_tests import ASK
from tests.support.faces import optillm

__all__ = ["program"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    place = tmp_path_factory.mktemp("optillm-server")
    with servers.llamacpp(place) as upstream, servers.optillm(place, upstream) as url:
        yield url


CASES = [
    {"model": f"{prefix}{optillm.MODEL}", "max_tokens": tokens, **fields}
    for prefix, tokens in (("", 3), ("re2-", 200), ("re2-", 4), ("bon-", 4), ("moa-", 4))
    for fields in ({}, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}})
]


def shape(value: Any) -> Any:
    """A value's form: keys and kinds without the values, numbers alike."""
    if isinstance(value, dict):
        return {key: shape(member) for key, member in sorted(value.items())}
    if isinstance(value, list):
        return [shape(member) for member in value]
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__


def answered(url: str, body: dict[str, Any]) -> Any:
    """Status, content type and form of an answer, the finish reasons as they are."""
    request = {**body, "messages": ASK, "temperature": 0}
    answer = httpx.post(f"{url}/chat/completions", json=request, timeout=300, trust_env=False)
    kind = answer.headers["content-type"].partition(";")[0]
    parts = [payload(event) for event in events(answer.content)] if kind == "text/event-stream" else [answer.json()]
    ends = [choice["finish_reason"] for part in parts for choice in part.get("choices", [])]
    return answer.status_code, kind, [shape(part) for part in parts], ends


@pytest.mark.parametrize("body", CASES, ids=lambda body: "-".join(map(str, body.values())))
def test_the_double_is_true(server: str, body: dict[str, Any]) -> None:
    with optillm.optillm() as double:
        assert answered(double, body) == answered(server, body)
