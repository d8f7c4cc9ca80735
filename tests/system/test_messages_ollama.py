"""Anthropic's Messages API in front of Ollama's own protocol: two translations, one after the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic.types import ToolParam, ToolUseBlock

from tests.support.faces.ollama import Ollama, ollama
from tests.support.gateways import TOKEN, gateway, write_files

ROUTE = "/v1/messages"
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
SCHEMA: dict[str, object] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: list[ToolParam] = [{"name": name, "input_schema": SCHEMA} for name in ("get_weather", "get_time")]

both_ways = pytest.mark.parametrize("is_stream", [False, True], ids=["whole", "stream"])


@pytest.fixture(scope="module")
def double() -> Iterator[Ollama]:
    with ollama() as running:
        running.models["echo"] = running.models["echo:latest"]  # what the gateway's start is waited for with
        yield running


@pytest.fixture(scope="module")
def sdk(tmp_path_factory: pytest.TempPathFactory, double: Ollama) -> Iterator[anthropic.Anthropic]:
    home = tmp_path_factory.mktemp("ollama")
    health = {"liveness": "/api/version", "readiness": "/api/version"}
    write_files(home, double.url, protocol="ollama", health=health, supported_capabilities=["chat"])
    with gateway(home) as running:
        url = f"http://127.0.0.1:{running.port}"
        with anthropic.Anthropic(base_url=url, api_key=TOKEN, max_retries=0, timeout=20) as client:
            yield client


def ask(sdk: anthropic.Anthropic, is_stream: bool, **fields: Any) -> anthropic.types.Message:
    fields = {"model": "echo:latest", "max_tokens": 2000, "messages": HELLO, **fields}
    if is_stream:
        with sdk.messages.stream(**fields) as stream:
            return stream.get_final_message()
    message: anthropic.types.Message = sdk.messages.create(**fields)
    return message


@pytest.mark.proves(ROUTE, "model", "messages", "system", "max_tokens", "stream", backend="ollama")
@pytest.mark.proves(ROUTE, "temperature", "top_p", "top_k", "stop_sequences", backend="ollama")
@pytest.mark.proves(ROUTE, "output_config.format", backend="ollama")
@both_ways
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


@pytest.mark.proves(ROUTE, "tools", "stream", backend="ollama")
@both_ways
def test_a_whole_round_of_parallel_tools(sdk: anthropic.Anthropic, is_stream: bool) -> None:
    first = ask(sdk, is_stream, tools=TOOLS)
    uses = [block for block in first.content if isinstance(block, ToolUseBlock)]
    assert first.stop_reason == "tool_use"
    assert [(use.name, [*use.input]) for use in uses] == [("get_weather", ["city"]), ("get_time", ["city"])]
    assert len({use.id for use in uses}) == 2
    results = [{"type": "tool_result", "tool_use_id": use.id, "content": f"sun and {use.name}"} for use in uses]
    history = [*HELLO, first.to_param(), {"role": "user", "content": results}]
    answer = ask(sdk, is_stream, tools=TOOLS, messages=history)
    assert answer.content[0].type == "text"
    assert "get_weather said sun and get_weather" in answer.content[0].text
    assert "get_time said sun and get_time" in answer.content[0].text


@pytest.mark.proves(ROUTE, "thinking", "output_config.effort", backend="ollama")
@both_ways
def test_thinking(sdk: anthropic.Anthropic, double: Ollama, is_stream: bool) -> None:
    thinking = {"type": "enabled", "budget_tokens": 1024}
    message = ask(sdk, is_stream, thinking=thinking, output_config={"effort": "max"})
    thought = {"type": "thinking", "thinking": "Let me think (max).", "signature": ""}
    assert message.content[0].to_dict() == thought
    ask(sdk, is_stream, thinking={"type": "disabled"}, messages=[*HELLO, message.to_param(), *HELLO])
    _, request = double.seen[-1]
    assert request["think"] is False
    assert request["messages"][1]["thinking"] == "Let me think (max)."


@both_ways
def test_an_image(sdk: anthropic.Anthropic, is_stream: bool) -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AQID"}}
    content = [image, {"type": "text", "text": "Look"}]
    message = ask(sdk, is_stream, messages=[{"role": "user", "content": content}])
    assert message.content[0].type == "text"
    assert "showed 1 images of 3 bytes" in message.content[0].text


@pytest.mark.proves("/v1/messages/count_tokens", "model", backend="ollama", refused=True)
def test_what_breaks_or_cannot_be_counted_is_an_error(sdk: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.APIStatusError) as raised:
        ask(sdk, True, model="test:cut-mid:latest")
    assert raised.value.type == "api_error"
    with pytest.raises(anthropic.BadRequestError, match="no route to count tokens"):
        sdk.messages.count_tokens(model="echo:latest", messages=HELLO)
