"""Ollama's own clients, unmodified, are content with the double of its server; so the gateway's tests may trust it.

The JavaScript one's tests are in js-ollama/, in its own language.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ollama
import pytest

from tests.clients.javascript import node_test
from tests.support.faces.ollama import Ollama
from tests.support.faces.ollama import ollama as ollama_double

USER = [{"role": "user", "content": "Say hello."}]


@pytest.fixture(scope="module")
def double() -> Iterator[Ollama]:
    with ollama_double() as running:
        yield running


@pytest.fixture
def client(double: Ollama) -> Iterator[ollama.Client]:
    with ollama.Client(host=double.url, trust_env=False) as client:
        yield client


def get_weather(city: str) -> str:
    """The weather in a city.

    Args:
        city: Its name.
    """
    return f"Sunny in {city}"


def test_chat_whole_and_streamed(client: ollama.Client) -> None:
    assert "echo:latest" in [model.model for model in client.list().models]
    limited: Any = {"options": {"num_predict": 3}, "logprobs": True, "top_logprobs": 2}
    whole = client.chat("echo", USER, **limited)
    assert (whole.message.content, whole.done_reason, whole.eval_count) == ("You said: Say", "length", 3)
    parts = list(client.chat("echo", USER, stream=True, **limited))
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert [bool(part.done) for part in parts] == [False] * 3 + [True]
    assert parts[0].logprobs is not None
    assert len(parts[0].logprobs[0].top_logprobs or ()) == 2


def test_tools(client: ollama.Client) -> None:
    def get_time(zone: str) -> str:
        """The time in a zone."""
        return zone

    tools = [get_weather, get_time, get_weather]
    parts = list(client.chat("echo", USER, tools=tools, stream=True))
    calls = [call for part in parts for call in part.message.tool_calls or ()]
    assert [call.function.name for call in calls] == ["get_weather", "get_time", "get_weather"]
    assert [len(part.message.tool_calls or ()) for part in parts] == [2, 1, 0]
    whole = client.chat("echo", USER, tools=tools)
    assert whole.message.tool_calls == calls
    result = {"role": "tool", "tool_name": "get_weather", "content": get_weather(**calls[0].function.arguments)}
    told = client.chat("echo", [*USER, whole.message, result])
    assert (told.message.content or "").startswith("get_weather said Sunny in Zürich")


def test_thinking_and_images(client: ollama.Client) -> None:
    thought = client.chat("echo", USER, think="high")
    assert thought.message.thinking == "Let me think (high)."
    assert thought.message.content == "You said: Say hello."
    seen = client.chat("echo", [{"role": "user", "content": "Look", "images": [b"\x01\x02\x03"]}])
    assert seen.message.content == "You said: Look and showed 1 images of 3 bytes"


def test_texts_and_embeddings(client: ollama.Client) -> None:
    assert client.generate("echo", "Once", suffix="end").response == "You said: Once … end"
    parts = list(client.generate("echo", "Once upon", options={"num_predict": 3}, stream=True))
    assert "".join(part.response or "" for part in parts) == "You said: Once"
    vectors = client.embed("minilm", ["a", "b", "a"], dimensions=8).embeddings
    assert [len(vector) for vector in vectors] == [8] * 3
    assert vectors[0] == vectors[2] != vectors[1]


@pytest.mark.parametrize(
    ("model", "more", "status", "message"),
    [
        ("nope", {}, 404, "model 'nope' not found"),
        ("minilm", {}, 400, '"minilm" does not support chat'),
        ("smollm2:135m", {"tools": [get_weather]}, 400, "smollm2:135m does not support tools"),
        ("error-mid", {"stream": True}, -1, "CUDA error"),
    ],
)
def test_errors(client: ollama.Client, model: str, more: dict[str, object], status: int, message: str) -> None:
    with pytest.raises(ollama.ResponseError, match=message) as raised:
        list(client.chat(model, USER, **more))  # type: ignore[call-overload]  # the table's fields are of several types
    assert raised.value.status_code == status


def test_the_javascript_client(double: Ollama) -> None:
    node_test("js-ollama", "ollama.test.mjs", OLLAMA_URL=double.url)
