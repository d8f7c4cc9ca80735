"""OpenAI's and Anthropic's routes with Ollama behind them: a real gateway before the double, which its clients approve.

Field by field tests/contracts/wire_protocols/ollama has what is asked and told.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic.types import ToolParam, ToolUseBlock

from tests.support.faces.ollama import Ollama, go_json, instance, ollama
from tests.support.gateways import TOKEN, Gateway, gateway, write_files
from tests.support.upstream import Upstream
from tests.support.waiting import until

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "exact": {"type": "number"},
        "of": {"type": "array", "items": {"type": "boolean"}},
    },
}
FUNCTIONS = [{"type": "function", "function": {"name": f"tool_{n}", "parameters": SCHEMA}} for n in range(4)]
TOOLS: list[ToolParam] = [{"name": name, "input_schema": SCHEMA} for name in ("get_weather", "get_time")]

both_ways = pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])


@pytest.fixture(scope="module")
def double() -> Iterator[Ollama]:
    with ollama() as running:
        yield running


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, backend: Upstream, double: Ollama) -> Iterator[Gateway]:
    """OLLAMA_BASE_URL adds a backend of class `ollama` to those of the file."""
    home = tmp_path_factory.mktemp("gateway")
    write_files(home, backend.url)
    with gateway(home, OLLAMA_BASE_URL=double.url, HEALTH_CHECK_INTERVAL_SEC="0.05") as running:
        until(lambda: "ollama:echo:latest" in running.client.get("/v1/models").text, "no list of models")
        yield running


@pytest.fixture(scope="module")
def sdk(served: Gateway) -> Iterator[anthropic.Anthropic]:
    url = f"http://127.0.0.1:{served.port}"
    with anthropic.Anthropic(base_url=url, api_key=TOKEN, max_retries=0, timeout=20) as client:
        yield client


@pytest.mark.parametrize("model", ["ollama:echo", "echo:latest"])
def test_chat(served: Gateway, model: str) -> None:
    answer = served.chat(model)
    assert answer.status_code == 200, answer.text
    content = answer.json()
    assert content["model"] == f"ollama:{answer.headers['x-model-used']}" == f"ollama:{model.removeprefix('ollama:')}"
    assert content["choices"][0]["message"]["content"] == "You said: Hi"
    assert content["usage"] == {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4}
    assert answer.headers["x-backend-used"] == "ollama"


@pytest.mark.proves(CHAT, "tools", "tool_choice", "messages", "stream", backend="ollama")
def test_parallel_tools_in_a_stream_and_back(served: Gateway, double: Ollama) -> None:
    chunks = served.chat("ollama:echo", tools=FUNCTIONS, tool_choice="auto", stream=True).text.split("\n\n")
    deltas = [json.loads(chunk.removeprefix("data: "))["choices"][0]["delta"] for chunk in chunks[:-2]]
    assert chunks[-2:] == ["data: [DONE]", ""]
    assert [len(delta.get("tool_calls", ())) for delta in deltas] == [2, 1, 1, 0]
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert [(call.pop("index"), call["function"]["name"]) for call in calls] == [(n, f"tool_{n}") for n in range(4)]
    assert len({call["id"] for call in calls}) == 4
    assert {call["function"]["arguments"] for call in calls} == {go_json(instance(SCHEMA)).decode()}  # byte for byte
    results = [{"role": "tool", "tool_call_id": call["id"], "content": str(n)} for n, call in enumerate(calls)]
    messages = [*HELLO, {"role": "assistant", "content": None, "tool_calls": calls}, *reversed(results)]
    answer = served.client.post(CHAT, json={"model": "ollama:echo", "messages": messages, "tools": FUNCTIONS}).json()
    said = "; ".join(f"tool_{n} said {n}" for n in (3, 2, 1, 0))
    assert answer["choices"][0]["message"]["content"] == said
    given = double.seen[-1][1]["messages"][1]["tool_calls"]
    assert [call["function"]["arguments"] for call in given] == [instance(SCHEMA)] * 4


def test_a_client_that_leaves_ends_ollamas_work(served: Gateway, double: Ollama) -> None:
    double.left.clear()
    body = {"model": "ollama:endless", "messages": HELLO, "stream": True}
    with served.client.stream("POST", CHAT, json=body) as answer:
        assert next(answer.iter_raw())
    double.wait_until_left()


def ask(sdk: anthropic.Anthropic, is_stream: bool, **fields: Any) -> anthropic.types.Message:
    fields = {"model": "echo:latest", "max_tokens": 2000, "messages": HELLO, **fields}
    if is_stream:
        with sdk.messages.stream(**fields) as stream:
            return stream.get_final_message()
    message: anthropic.types.Message = sdk.messages.create(**fields)
    return message


@both_ways
@pytest.mark.proves(MESSAGES, "model", "messages", "system", "max_tokens", "stream", backend="ollama")
@pytest.mark.proves(MESSAGES, "temperature", "top_p", "top_k", "stop_sequences", backend="ollama")
@pytest.mark.proves(MESSAGES, "output_config.format", backend="ollama")
def test_a_message(sdk: anthropic.Anthropic, double: Ollama, is_stream: bool) -> None:
    sampling = {"temperature": 0.5, "top_p": 0.9, "top_k": 40}
    message = ask(sdk, is_stream, system="Be brief", stop_sequences=["END"], extra_body=sampling)
    assert [block.to_dict() for block in message.content] == [{"type": "text", "text": "You said: Hello"}]
    assert message.stop_reason == "end_turn"
    assert message.usage.input_tokens > 0
    assert message.usage.output_tokens > 0
    path, request = double.seen[-1]
    assert path == "/api/chat"
    assert request["options"] == {**sampling, "num_predict": 2000, "stop": ["END"]}
    assert request["messages"] == [{"role": "system", "content": "Be brief"}, *HELLO]
    ask(sdk, is_stream, output_config={"format": {"type": "json_schema", "schema": SCHEMA}})
    assert double.seen[-1][1]["format"] == SCHEMA


@both_ways
@pytest.mark.proves(MESSAGES, "tools", "stream", backend="ollama")
def test_a_whole_round_of_parallel_tools(sdk: anthropic.Anthropic, is_stream: bool) -> None:
    first = ask(sdk, is_stream, tools=TOOLS)
    uses = [block for block in first.content if isinstance(block, ToolUseBlock)]
    assert first.stop_reason == "tool_use"
    assert [(use.name, use.input) for use in uses] == [(tool["name"], instance(SCHEMA)) for tool in TOOLS]
    assert len({use.id for use in uses}) == 2
    results = [{"type": "tool_result", "tool_use_id": use.id, "content": f"sun and {use.name}"} for use in uses]
    history = [*HELLO, first.to_param(), {"role": "user", "content": results}]
    answer = ask(sdk, is_stream, tools=TOOLS, messages=history)
    assert answer.content[0].type == "text"
    assert "get_weather said sun and get_weather" in answer.content[0].text
    assert "get_time said sun and get_time" in answer.content[0].text


@both_ways
@pytest.mark.proves(MESSAGES, "thinking", "output_config.effort", backend="ollama")
def test_thinking(sdk: anthropic.Anthropic, double: Ollama, is_stream: bool) -> None:
    thinking = {"type": "enabled", "budget_tokens": 1024}
    message = ask(sdk, is_stream, thinking=thinking, output_config={"effort": "max"})
    thought = {"type": "thinking", "thinking": "Let me think (max).", "signature": ""}
    assert message.content[0].to_dict() == thought
    ask(sdk, is_stream, thinking={"type": "disabled"}, messages=[*HELLO, message.to_param(), *HELLO])
    _, request = double.seen[-1]
    assert request["think"] is False
    assert request["messages"][1]["thinking"] == "Let me think (max)."


@pytest.mark.proves(f"{MESSAGES}/count_tokens", "model", backend="ollama", refused=True)
def test_what_breaks_or_cannot_be_counted_is_an_error(sdk: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.APIStatusError) as raised:
        ask(sdk, True, model="ollama:cut-mid:latest")
    assert raised.value.type == "api_error"
    with pytest.raises(anthropic.BadRequestError, match="no route to count tokens"):
        sdk.messages.count_tokens(model="echo:latest", messages=HELLO)


def test_a_malformed_list_of_models_is_a_failed_probe(served: Gateway, double: Ollama) -> None:
    def is_ready() -> bool:
        return bool(served.observe.get("/readyz").json()["backends"]["ollama"]["ready"])

    for is_broken in (True, False):
        double.tags_are_broken = is_broken
        until(lambda: is_ready() is not double.tags_are_broken, "the probe did not notice")
