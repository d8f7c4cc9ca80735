"""Ollama's own clients, unmodified, are content with the double of its server; so the gateway's tests may trust it.

The JavaScript one's tests are in js-ollama/, in its own language.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import ollama
import pytest

from tests.clients.javascript import node_test
from tests.support.faces.ollama import Ollama
from tests.support.faces.ollama import ollama as ollama_double

USER = [{"role": "user", "content": "Say hello."}]
LIBRARY = "registry.ollama.ai/library"
SHORT = {"num_predict": 8, "temperature": 0}


@pytest.fixture(scope="module")
def double() -> Iterator[Ollama]:
    with ollama_double(with_llama=True) as running:
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


def test_models(client: ollama.Client) -> None:
    assert "smollm2:135m" in [model.model for model in client.list().models]
    shown = client.show("smollm2:135m")
    assert shown.capabilities == ["completion"]
    assert shown.details is not None
    assert shown.details.format == "gguf"
    progress = list(client.pull("tiny", stream=True))
    assert [progress[0].status, progress[-1].status] == ["pulling manifest", "success"]
    assert any(part.completed == part.total == 1000 for part in progress)
    assert client.pull("tiny").status == "success"


def test_chat_of_a_real_model(client: ollama.Client) -> None:
    whole = client.chat("smollm2:135m", USER, options=SHORT)
    assert whole.message.content
    assert whole.done_reason == "length"
    assert whole.eval_count == 8
    parts = list(client.chat("smollm2:135m", USER, options=SHORT, stream=True, logprobs=True, top_logprobs=2))
    assert "".join(part.message.content or "" for part in parts) == whole.message.content
    assert [bool(part.done) for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[0].logprobs is not None
    assert len(parts[0].logprobs[0].top_logprobs or ()) == 2
    assert "smollm2:135m" in [model.model for model in client.ps().models]


def test_schemas_of_a_real_model(client: ollama.Client) -> None:
    schema = {"type": "object", "properties": {"city": {"enum": ["Zurich", "Paris"]}}, "required": ["city"]}
    answer = client.chat("smollm2:135m", USER, format=schema, options={"num_predict": 200})
    assert json.loads(answer.message.content or "")["city"] in ("Zurich", "Paris")


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


def test_generate(client: ollama.Client) -> None:
    assert client.generate("echo", "Once", suffix="end").response == "You said: Once … end"
    parts = list(client.generate("echo", "Once upon", options={"num_predict": 3}, stream=True))
    assert "".join(part.response or "" for part in parts) == "You said: Once"
    assert parts[-1].done_reason == "length"
    assert client.generate("smollm2:135m", "Say hello.", options=SHORT).response


def test_embed(client: ollama.Client) -> None:
    vectors = client.embed("minilm", ["a", "b", "a"]).embeddings
    assert [len(vector) for vector in vectors] == [384] * 3
    assert vectors[0] == vectors[2] != vectors[1]
    assert len(client.embed("minilm", "a", dimensions=8).embeddings[0]) == 8


def test_loading(client: ollama.Client) -> None:
    client.generate("echo", "", keep_alive="1h")
    assert "echo:latest" in [model.model for model in client.ps().models]
    assert client.generate("echo", "", keep_alive=0).done_reason == "unload"
    assert "echo:latest" not in [model.model for model in client.ps().models]


@pytest.mark.parametrize(
    ("model", "more", "status", "message"),
    [
        ("nope", {}, 404, "model 'nope' not found"),
        ("minilm", {}, 400, '"minilm" does not support chat'),
        ("smollm2:135m", {"think": True}, 400, '"smollm2:135m" does not support thinking'),
        (
            "smollm2:135m",
            {"tools": [get_weather]},
            400,
            f"{LIBRARY}/smollm2:135m does not support tools",
        ),
        ("echo", {"top_logprobs": 21}, 400, "top_logprobs must be between 0 and 20"),
    ],
)
def test_errors(client: ollama.Client, model: str, more: dict[str, object], status: int, message: str) -> None:
    with pytest.raises(ollama.ResponseError) as raised:
        client.chat(model, USER, **more)  # type: ignore[call-overload]  # the table's fields are of several types
    assert (raised.value.status_code, raised.value.error) == (status, message)


def test_an_error_within_a_stream(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="CUDA error"):
        list(client.chat("error-mid", USER, stream=True))


def test_the_javascript_client(double: Ollama) -> None:
    node_test("js-ollama", "ollama.test.mjs", OLLAMA_URL=double.url)
