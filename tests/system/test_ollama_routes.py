"""OpenAI's routes with Ollama behind them: a real gateway process in front of the double, which its clients approve."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.faces.ollama import Ollama, go_json, instance, ollama
from tests.support.gateways import Gateway, gateway, write_files
from tests.support.upstream import Upstream
from tests.support.waiting import until

Json = dict[str, Any]
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
MODEL = "test:echo"
PROBES = {"liveness": "/api/version", "readiness": "/api/version"}
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "exact": {"type": "number"},
        "of": {"type": "array", "items": {"type": "boolean"}},
    },
}
TOOLS = [{"type": "function", "function": {"name": f"tool_{n}", "parameters": SCHEMA}} for n in range(4)]
ARGUMENTS = go_json(instance(SCHEMA)).decode()
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()


@pytest.fixture(scope="module")
def double() -> Iterator[Ollama]:
    with ollama() as running:
        yield running


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, double: Ollama) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("gateway")
    write_files(home, double.url, protocol="ollama", health=PROBES)
    with gateway(home) as running:
        yield running


@pytest.fixture
def seen(double: Ollama) -> Ollama:
    double.seen.clear()
    double.left.clear()
    return double


def told(seen: Ollama) -> Json:
    """The one request that the double has seen."""
    ((_, request),) = seen.seen
    return request


def completion(answer: httpx.Response) -> Json:
    assert answer.status_code == 200, answer.text
    content: Json = answer.json()
    return content


def events(answer: httpx.Response) -> list[Json]:
    """The stream's chunks; it must have ended as it should."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/event-stream"
    *chunks, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(chunk.removeprefix("data: ")) for chunk in chunks]


def deltas(chunks: list[Json]) -> list[Json]:
    return [chunk["choices"][0]["delta"] for chunk in chunks]


@pytest.mark.proves(CHAT, "model", "messages", backend="ollama")
def test_chat(served: Gateway, seen: Ollama) -> None:
    answer = served.chat(MODEL)
    content = completion(answer)
    assert content["object"] == "chat.completion"
    assert content["model"] == "ollama:echo"
    assert content["choices"] == [
        {"index": 0, "message": {"role": "assistant", "content": "You said: Hi"}, "finish_reason": "stop"}
    ]
    assert content["usage"] == {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}
    assert answer.headers["x-backend-used"] == "test"
    assert answer.headers["x-model-used"] == "echo"
    assert completion(served.chat("echo:latest"))["model"] == "ollama:echo:latest"
    assert completion(served.chat("default"))["model"] == "ollama:echo"


@pytest.mark.proves(CHAT, "stream", backend="ollama")
def test_streamed_chat(served: Gateway, seen: Ollama) -> None:
    chunks = events(served.chat(MODEL, stream=True))
    assert deltas(chunks) == [{"role": "assistant", "content": "You"}, {"content": " said:"}, {"content": " Hi"}, {}]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["model"] for chunk in chunks} == {"ollama:echo"}


@pytest.mark.proves(CHAT, "stream", "stream_options.include_usage", backend="ollama")
def test_usage_of_a_stream(served: Gateway, seen: Ollama) -> None:
    *chunks, last = events(served.chat(MODEL, stream=True, stream_options={"include_usage": True}))
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}
    assert len(chunks) == 4
    assert not any(chunk.get("usage") for chunk in chunks)


@pytest.mark.proves(
    CHAT,
    *("temperature", "top_p", "seed", "presence_penalty", "frequency_penalty", "stop", "max_tokens", "user"),
    backend="ollama",
)
def test_sampling(served: Gateway, seen: Ollama) -> None:
    fields = {"temperature": 0.5, "top_p": 0.9, "seed": 7, "presence_penalty": 0.1, "frequency_penalty": 0.2}
    answer = served.chat(MODEL, **fields, stop=["Hi"], max_tokens=1, user="u-1", options={"num_ctx": 4096})
    choice = completion(answer)["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("You", "length")
    request = told(seen)
    assert request["options"] == {**fields, "stop": ["Hi"], "num_predict": 1, "num_ctx": 4096}
    assert request["user"] == "u-1"


@pytest.mark.proves(CHAT, "max_completion_tokens", "stop", backend="ollama")
def test_limits_are_kept(served: Gateway, seen: Ollama) -> None:
    assert completion(served.chat(MODEL, max_completion_tokens=2))["choices"][0]["finish_reason"] == "length"
    content = completion(served.chat(MODEL, stop=" Hi"))
    assert content["choices"][0]["message"]["content"] == "You said:"
    assert content["choices"][0]["finish_reason"] == "stop"


@pytest.mark.proves(CHAT, "keep_alive", "think", backend="ollama")
def test_ollamas_own_fields(served: Gateway, seen: Ollama) -> None:
    content = completion(served.chat(MODEL, keep_alive="1h", think=True))
    assert content["choices"][0]["message"]["thinking"] == "Let me think."
    assert told(seen)["keep_alive"] == "1h"
    chunks = deltas(events(served.chat(MODEL, think=True, stream=True)))
    assert "".join(delta.get("thinking", "") for delta in chunks) == "Let me think."
    assert "".join(delta.get("content", "") for delta in chunks) == "You said: Hi"


@pytest.mark.proves(CHAT, "reasoning_effort", backend="ollama")
def test_reasoning_effort(served: Gateway, seen: Ollama) -> None:
    content = completion(served.chat(MODEL, reasoning_effort="high"))
    assert content["choices"][0]["message"]["thinking"] == "Let me think (high)."


@pytest.mark.proves(CHAT, "response_format", backend="ollama")
def test_schemas(served: Gateway, seen: Ollama) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "days", "schema": SCHEMA}}
    content = completion(served.chat(MODEL, response_format=wanted))["choices"][0]["message"]["content"]
    assert json.loads(content) == instance(SCHEMA)
    content = completion(served.chat(MODEL, response_format={"type": "json_object"}))
    assert json.loads(content["choices"][0]["message"]["content"]) == {"answer": "yes"}


@pytest.mark.proves(CHAT, "logprobs", "top_logprobs", "stream", backend="ollama")
def test_log_probabilities(served: Gateway, seen: Ollama) -> None:
    whole = completion(served.chat(MODEL, logprobs=True, top_logprobs=2))["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in whole] == ["You", " said:", " Hi"]
    assert [len(entry["top_logprobs"]) for entry in whole] == [2, 2, 2]
    chunks = events(served.chat(MODEL, logprobs=True, top_logprobs=2, stream=True))
    assert [entry for c in chunks[:3] for entry in c["choices"][0]["logprobs"]["content"]] == whole


@pytest.mark.proves(CHAT, "messages", backend="ollama")
def test_images_and_roles(served: Gateway, seen: Ollama) -> None:
    parts = [
        {"type": "text", "text": "Look"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
    ]
    messages = [{"role": "developer", "content": "Be brief"}, {"role": "user", "content": parts}]
    content = completion(served.client.post(CHAT, json={"model": MODEL, "messages": messages}))
    assert content["choices"][0]["message"]["content"] == "You said: Look and showed 1 images of 8 bytes"
    assert [message["role"] for message in told(seen)["messages"]] == ["system", "user"]


@pytest.mark.proves(CHAT, "tools", "tool_choice", "messages", "stream", backend="ollama")
def test_parallel_tools_in_a_stream_and_back(served: Gateway, seen: Ollama) -> None:
    chunks = events(served.chat(MODEL, tools=TOOLS, tool_choice="auto", stream=True))
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    assert [len(delta.get("tool_calls", ())) for delta in deltas(chunks)] == [2, 1, 1, 0]
    calls = [call for delta in deltas(chunks) for call in delta.get("tool_calls", ())]
    assert [call["index"] for call in calls] == [0, 1, 2, 3]
    assert len({call["id"] for call in calls}) == 4
    assert [call["function"]["name"] for call in calls] == [f"tool_{n}" for n in range(4)]
    assert {call["function"]["arguments"] for call in calls} == {ARGUMENTS}  # byte for byte

    said = [{key: value for key, value in call.items() if key != "index"} for call in calls]
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": f"{n}"} for n, call in reversed([*enumerate(said)])
    ]
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None, "tool_calls": said}, *results]
    content = completion(served.client.post(CHAT, json={"model": MODEL, "messages": messages, "tools": TOOLS}))
    assert content["choices"][0]["message"]["content"] == "; ".join(f"tool_{n} said {n}" for n in (3, 2, 1, 0))
    given = seen.seen[-1][1]["messages"][1]["tool_calls"]
    assert [call["function"]["arguments"] for call in given] == [instance(SCHEMA)] * 4


@pytest.mark.proves(CHAT, "tools", "parallel_tool_calls", backend="ollama")
def test_tools_without_a_stream(served: Gateway, seen: Ollama) -> None:
    message = completion(served.chat(MODEL, tools=TOOLS))["choices"][0]["message"]
    assert [call["function"]["arguments"] for call in message["tool_calls"]] == [ARGUMENTS] * 4
    assert message["content"] is None
    message = completion(served.chat(MODEL, tools=TOOLS, parallel_tool_calls=False))["choices"][0]["message"]
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["tool_0"]


@pytest.mark.proves(CHAT, "tool_choice", backend="ollama")
def test_no_tools_where_none_are_wanted(served: Gateway, seen: Ollama) -> None:
    message = completion(served.chat(MODEL, tools=TOOLS, tool_choice="none"))["choices"][0]["message"]
    assert message == {"role": "assistant", "content": "You said: Hi"}


ELSEWHERE = [{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]
USUAL: dict[str, Json] = {
    CHAT: {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]},
    COMPLETIONS: {"model": MODEL, "prompt": "Once"},
    EMBEDDINGS: {"model": "minilm:latest"},
}
REFUSED: list[tuple[str, Json, str]] = [
    (CHAT, {"n": 2}, "n"),
    (CHAT, {"logit_bias": {"1": 5}}, "logit_bias"),
    (CHAT, {"modalities": ["audio"]}, "modalities"),
    (CHAT, {"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
    (CHAT, {"functions": [{"name": "f"}]}, "functions"),
    (CHAT, {"function_call": "auto"}, "function_call"),
    (CHAT, {"web_search_options": {}}, "web_search_options"),
    (CHAT, {"verbosity": "high"}, "verbosity"),
    (CHAT, {"tool_choice": "required", "tools": TOOLS}, "tool_choice"),
    (CHAT, {"messages": [{"role": "user", "content": ELSEWHERE}]}, "messages.0.content.0.image_url.url"),
    (COMPLETIONS, {"prompt": ["a", "b"]}, "prompt"),
    (COMPLETIONS, {"n": 2}, "n"),
    (COMPLETIONS, {"best_of": 2}, "best_of"),
    (COMPLETIONS, {"echo": True}, "echo"),
    (COMPLETIONS, {"logit_bias": {"1": 1}}, "logit_bias"),
    (EMBEDDINGS, {"input": [1, 2]}, "input"),
]


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        pytest.param(*row, marks=pytest.mark.proves(row[0], next(iter(row[1])), backend="ollama", refused=True))
        for row in REFUSED
    ],
)
def test_what_ollama_cannot_do_is_refused_by_name(
    served: Gateway, seen: Ollama, path: str, fields: Json, param: str
) -> None:
    answer = served.client.post(path, json=USUAL[path] | fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
    assert seen.seen == []


@pytest.mark.proves(COMPLETIONS, "model", "prompt", "suffix", "stream", "logprobs", "max_tokens", backend="ollama")
def test_completions(served: Gateway, seen: Ollama) -> None:
    body = {"model": MODEL, "prompt": "Once", "suffix": "end", "logprobs": 1, "max_tokens": 4}
    content = completion(served.client.post(COMPLETIONS, json=body))
    assert content["object"] == "text_completion"
    choice = content["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("You said: Once …", "length")
    assert choice["logprobs"]["tokens"] == ["You", " said:", " Once", " …"]
    assert choice["logprobs"]["text_offset"] == [0, 3, 9, 14]
    assert content["usage"]["completion_tokens"] == 4
    chunks = events(served.client.post(COMPLETIONS, json=body | {"stream": True}))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == choice["text"]
    assert [path for path, _ in seen.seen] == ["/api/generate"] * 2


@pytest.mark.proves(EMBEDDINGS, "model", "input", "dimensions", "encoding_format", backend="ollama")
def test_embeddings(served: Gateway, seen: Ollama) -> None:
    body: Json = {"model": "minilm:latest", "input": ["one", "two words"], "dimensions": 4}
    content = completion(served.client.post(EMBEDDINGS, json=body))
    vectors = [item["embedding"] for item in content["data"]]
    assert [len(vector) for vector in vectors] == [4, 4]
    assert content["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    packed = completion(served.client.post(EMBEDDINGS, json=body | {"encoding_format": "base64"}))
    numbers = struct.unpack("<4f", base64.b64decode(packed["data"][1]["embedding"]))
    assert numbers == pytest.approx(vectors[1], abs=1e-6)
    assert (
        completion(served.client.post(EMBEDDINGS, json=body | {"input": "one"}))["data"][0]["embedding"] == vectors[0]
    )


@pytest.mark.parametrize(
    ("model", "fields", "status", "message"),
    [
        ("test:nope", {}, 404, "model 'nope' not found"),
        ("minilm:latest", {}, 400, '"minilm:latest" does not support chat'),
        ("smollm2:135m", {"think": True}, 400, '"smollm2:135m" does not support thinking'),
        (MODEL, {"top_logprobs": 21, "logprobs": True}, 400, "top_logprobs must be between 0 and 20"),
    ],
)
def test_what_ollama_refuses_is_told(
    served: Gateway, seen: Ollama, model: str, fields: Json, status: int, message: str
) -> None:
    for stream in (False, True):
        answer = served.chat(model, stream=stream, **fields)
        assert answer.status_code == status
        assert answer.json()["error"]["message"] == message


@pytest.mark.parametrize("model", ["error-mid", "cut-mid", "no-done", "garbage-mid"])
def test_a_stream_that_fails_ends_with_an_error_and_no_done(served: Gateway, seen: Ollama, model: str) -> None:
    answer = served.chat(f"test:{model}", stream=True)
    assert answer.status_code == 200
    first, error, rest = answer.text.split("\n\n")
    assert json.loads(first.removeprefix("data: "))["choices"][0]["delta"]["content"] == "You"
    told_error = json.loads(error.removeprefix("data: "))["error"]
    assert told_error["type"] == "upstream_error"
    assert ("CUDA error" in told_error["message"]) is (model == "error-mid")
    assert rest == ""
    # Such a failure takes no host out: the next one is answered.
    assert served.chat(MODEL).status_code == 200


def test_a_client_that_leaves_ends_ollamas_work(served: Gateway, seen: Ollama) -> None:
    body = {"model": "test:endless", "messages": [{"role": "user", "content": "Go"}], "stream": True}
    with served.client.stream("POST", CHAT, json=body) as answer:
        assert next(answer.iter_raw())
    seen.wait_until_left()


def test_the_models_are_listed(served: Gateway, double: Ollama) -> None:
    ids = [model["id"] for model in served.client.get("/v1/models").json()["data"]]
    assert {"test:echo:latest", "test:smollm2:135m", "test:minilm:latest"} <= set(ids)


def test_an_address_alone_is_enough(tmp_path: Path, backend: Upstream, double: Ollama) -> None:
    """OLLAMA_BASE_URL adds a backend of class `ollama` to those of the file."""
    write_files(tmp_path, backend.url)
    with gateway(tmp_path, OLLAMA_BASE_URL=double.url) as running:
        answer = running.chat("ollama:echo")
        assert completion(answer)["choices"][0]["message"]["content"] == "You said: Hi"
        assert answer.headers["x-backend-used"] == "ollama"
        assert "ollama:echo:latest" in running.client.get("/v1/models").text


def test_a_list_of_models_that_is_none_is_a_failed_probe(tmp_path: Path) -> None:
    with ollama() as double:
        write_files(tmp_path, double.url, protocol="ollama", health=PROBES)
        with gateway(tmp_path, HEALTH_CHECK_INTERVAL_SEC="0.05") as running:
            for broken in (True, False):
                double.tags_are_broken = broken
                until(lambda: is_ready(running) is not double.tags_are_broken, "the probe did not notice")


def is_ready(running: Gateway) -> bool:
    return bool(running.observe.get("/readyz").json()["backends"]["test@here"]["ready"])
