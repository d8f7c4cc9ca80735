"""The real OptiLLM behind the gateway, itself in front of the real llama.cpp.

Its habits: a prefix of the model's name chooses an approach. An approach's answer has neither id nor prompt tokens, and
no usage in streams. One that was cut short is a 500 (`re2`), or words about an error with status 200 (`bon`, `moa`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.clients import servers
from tests.clients.alone import fronting, program, record
from tests.clients.appliance import Appliance
from tests.clients.fidelity import events, payload, post, sent
from tests.clients.recorder import Recorder, recording

__all__ = ["program"]
MODEL = servers.SMOLLM2
FAILED = "Error: Could not generate any completions"

ASK: list[Any] = [{"role": "user", "content": "What is 2 plus 2?"}]
LONG, SHORT = 200, 4  # tokens; the first is enough for an answer
BODY: dict[str, Any] = {"messages": ASK, "max_tokens": LONG, "temperature": 0}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    place = tmp_path_factory.mktemp("optillm-server")
    with servers.llamacpp(place) as upstream, servers.optillm(place, upstream) as url:
        yield url


@pytest.fixture(scope="module")
def recorder(server: str) -> Iterator[Recorder]:
    with recording(server) as recorder:
        yield recorder


@pytest.fixture(scope="module")
def gateway(program: Path, recorder: Recorder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Appliance]:
    records = {"optillm@here": record("optillm", recorder.url, api_key="none-is-asked-for")}
    aliases = {"careful": {"backend": "optillm", "model": f"re2-{MODEL}"}}
    with fronting(program, tmp_path_factory.mktemp("optillm"), records, aliases) as gateway:
        yield gateway


@pytest.fixture
def sdk(gateway: Appliance) -> Iterator[openai.OpenAI]:
    with gateway.sdk(120) as client:
        yield client


@pytest.mark.proves("/v1/chat/completions", "messages", "max_tokens", backend="optillm")
def test_an_approach_is_named_by_the_model(sdk: openai.OpenAI) -> None:
    for model in (f"optillm:re2-{MODEL}", "careful"):
        raw = sdk.chat.completions.with_raw_response.create(**{**BODY, "model": model})
        assert raw.headers["x-model-used"] == f"re2-{MODEL}"
        answer = raw.parse()
        assert answer.choices[0].message.content
        assert answer.choices[0].finish_reason == "stop"


def test_answers_pass_byte_for_byte(gateway: Appliance, recorder: Recorder) -> None:
    received = post(gateway, "/chat/completions", {**BODY, "model": f"optillm:{MODEL}", "max_tokens": SHORT})
    assert received == sent(recorder, received)


@pytest.mark.proves("/v1/chat/completions", "stream", "stream_options.include_usage", backend="optillm")
@pytest.mark.parametrize("model", [f"optillm:{MODEL}", f"optillm:re2-{MODEL}"])
def test_streams_pass_byte_for_byte(gateway: Appliance, recorder: Recorder, model: str) -> None:
    """An approach's stream tells no usage, asked or not: then none is removed, and none is made up."""
    body = {**BODY, "model": model, "stream": True}
    asked = post(gateway, "/chat/completions", {**body, "stream_options": {"include_usage": True}})
    assert asked == sent(recorder, asked)
    plain = post(gateway, "/chat/completions", body)
    upstream = events(sent(recorder, plain))
    assert events(plain) == [event for event in upstream if not payload(event).get("usage")]
    assert events(plain)[-1] == b"data: [DONE]\n\n"


def test_a_truncated_answer_that_is_a_500(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.InternalServerError, match="truncated response") as error:
        sdk.chat.completions.create(model="careful", messages=ASK, max_tokens=SHORT)
    assert error.value.status_code == 502
    assert error.value.code == "upstream_error"


@pytest.mark.parametrize("approach", ["bon", "moa"])
def test_a_truncated_answer_that_is_words(sdk: openai.OpenAI, approach: str) -> None:
    """Status 200 and words, as any answer: it cannot be told from one, so it passes as it came."""
    answer = sdk.chat.completions.create(model=f"optillm:{approach}-{MODEL}", messages=ASK, max_tokens=SHORT)
    assert answer.choices[0].message.content == FAILED
