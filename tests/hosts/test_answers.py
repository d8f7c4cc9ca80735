"""What clients get from the provisioned appliance, over its network."""

import json
import math
from typing import Any

from tests.support.remote_client import CURL_TIMED_OUT, Caller
from tests.support.services import EXPECTED
from tests.support.waiting import until

QUESTION = {"model": "default", "messages": [{"role": "user", "content": "Say something about the sea."}]}


def test_an_allowed_host_gets_the_models_words_and_their_count(inside: Caller) -> None:
    status, answer = inside.post("/v1/chat/completions", {**QUESTION, "max_tokens": 24})
    assert status == 200, answer
    words = answer["choices"][0]["message"]["content"]
    assert len(words.split()) >= 5
    usage = answer["usage"]
    assert 0 < usage["completion_tokens"] <= 24
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    # A real model says something else to another question.
    other = {**QUESTION, "messages": [{"role": "user", "content": "List three kinds of bread."}]}
    assert inside.post("/v1/chat/completions", {**other, "max_tokens": 24})[1]["choices"] != answer["choices"]


def test_the_right_token_is_needed(inside: Caller) -> None:
    stranger = Caller(inside.host, inside.server, "a-token-that-nobody-was-given")
    status, answer = stranger.post("/v1/chat/completions", QUESTION)
    assert status == 401
    assert answer["error"]["message"]


def test_a_host_outside_the_range_gets_no_answer_at_all(outside: Caller, inside: Caller) -> None:
    assert inside.knocks(8800) == 0
    assert outside.knocks(8800) == CURL_TIMED_OUT


def test_loopback_listeners_answer_nobody_on_the_network(outside: Caller, inside: Caller) -> None:
    ports = {port for expected in EXPECTED.values() for port in expected.ports.values()} - {8800}
    assert {caller.knocks(port) for caller in (inside, outside) for port in ports} == {CURL_TIMED_OUT}


def test_related_sentences_score_higher_than_unrelated_ones(inside: Caller) -> None:
    texts = ["A cat sleeps on the sofa.", "A kitten naps on the couch.", "The central bank raised interest rates."]
    status, answer = inside.post("/v1/embeddings", {"model": "all-minilm-l6-v2", "input": texts})
    assert status == 200, answer
    cat, kitten, bank = (item["embedding"] for item in answer["data"])
    assert cosine(cat, kitten) > cosine(cat, bank) + 0.2


def cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True)) / math.hypot(*one) / math.hypot(*other)


def test_a_killed_model_ends_the_stream_with_an_error_and_comes_back(host: Any, inside: Caller) -> None:
    before = host.service("llamacpp").systemd_properties["MainPID"]
    long = {"model": "default", "prompt": "Once upon a time", "max_tokens": 3000, "ignore_eos": True, "stream": True}
    client = inside.stream("/v1/completions", long)
    assert client.stdout is not None
    first = client.stdout.readline()
    assert json.loads(first.removeprefix("data: "))["choices"]
    host.run_test(f"kill -9 {before}")
    rest, _ = client.communicate(timeout=60)
    events = [line.removeprefix("data: ") for line in rest.splitlines() if line.startswith("data: ")]
    assert "error" in json.loads(events[-1]), events[-1]
    assert "[DONE]" not in events

    def is_back() -> bool:
        status, answer = inside.post("/v1/chat/completions", {**QUESTION, "max_tokens": 8})
        assert status == 200 or (status, answer["error"]["code"]) == (503, "backend_not_ready"), answer
        return status == 200

    until(is_back, seconds=60)
    assert host.service("llamacpp").systemd_properties["MainPID"] not in ("0", before)
