"""The wheel alone is useful; and what it cannot serve it refuses in one line that says what to type."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml
from openai.types.chat import ChatCompletionChunk, ChatCompletionToolParam

from tests.clients import upstream
from tests.clients.alone import command, environment, record
from tests.clients.upstream import ToolCaller
from tests.support.ports import free_ports

HELLO: Any = [{"role": "user", "content": "Hello"}]
TOOLS: list[ChatCompletionToolParam] = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": 'Zürich, "quoted", 天気',
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
    for name in upstream.NAMES
]


def test_it_serves_without_provisioning(sdk: openai.OpenAI) -> None:
    assert f"tools:{upstream.MODEL}" in [model.id for model in sdk.models.list()]
    answer = sdk.chat.completions.create(model=upstream.MODEL, messages=HELLO)
    assert answer.to_dict() == upstream.whole(upstream.CALLS)


@pytest.mark.proves("/v1/chat/completions", "tools", "tool_choice", "parallel_tool_calls", backend="openai")
def test_tools_reach_the_backend_as_they_were_given(sdk: openai.OpenAI, caller: ToolCaller) -> None:
    caller.seen.clear()
    answer = sdk.chat.completions.create(
        model=upstream.MODEL, messages=HELLO, tools=TOOLS, tool_choice="required", parallel_tool_calls=True
    )
    assert caller.requests == [
        {
            "model": upstream.MODEL,
            "messages": HELLO,
            "tools": TOOLS,
            "tool_choice": "required",
            "parallel_tool_calls": True,
        }
    ]
    calls = answer.choices[0].message.tool_calls or []
    assert [call.id for call in calls] == ["call_0", "call_1"]
    assert [call.function.arguments for call in calls if call.type == "function"] == list(upstream.ARGUMENTS)


@pytest.mark.proves("/v1/chat/completions", "tools", "stream", backend="openai")
def test_tool_deltas_of_a_stream_keep_index_id_and_every_byte(sdk: openai.OpenAI, caller: ToolCaller) -> None:
    caller.seen.clear()
    stream = sdk.chat.completions.create(model=upstream.MODEL, messages=HELLO, tools=TOOLS, stream=True)
    chunks: list[ChatCompletionChunk] = list(stream)
    deltas = [chunk.choices[0].delta.to_dict() for chunk in chunks]
    assert deltas == [*upstream.deltas(upstream.CALLS), {}]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert caller.requests[0]["tools"] == TOOLS


def test_the_sdks_own_accumulator_reads_the_stream(sdk: openai.OpenAI) -> None:
    with sdk.chat.completions.stream(model=upstream.MODEL, messages=HELLO, tools=TOOLS) as stream:
        calls = stream.get_final_completion().choices[0].message.tool_calls or []
    assert [json.loads(call.function.arguments) for call in calls] == list(map(json.loads, upstream.ARGUMENTS))


def refusal(program: Path, place: Path, text: str, *, token: str = "", port: int = 0) -> str:
    """The one line that the gateway says before it ends with exit code 2."""
    (place / "backends.yaml").write_text(text)
    done = subprocess.run(
        command(program, place, port or free_ports(1)[0]),
        env=environment(place) | ({"GATEWAY_BEARER_TOKEN": token} if token else {}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2, done
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert sorted(path.name for path in place.iterdir()) == ["backends.yaml"]
    return done.stderr


GOOD = yaml.safe_dump({"backends": {"tools@here": record("tools", "http://127.0.0.1:9/v1")}})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (GOOD.replace("base_url", "bas_url"), ("bas_url", "did you mean 'base_url'?")),
        (GOOD.replace("http://", "htp://"), ("base_url", "must begin with http:// or https://")),
        (GOOD.replace("- chat", "- chatt"), ("supported_capabilities.0", "'chat', 'completions', 'embeddings'")),
        (GOOD.replace("backends:", "backends: ["), ("line ", "not YAML")),
        (GOOD.replace("backends:", "backend:"), ("needs a mapping 'backends:'",)),
    ],
)
def test_a_typo_in_backends(program: Path, tmp_path: Path, text: str, told: tuple[str, ...]) -> None:
    assert text != GOOD
    line = refusal(program, tmp_path, text)
    assert "backends.yaml" in line
    for words in told:
        assert words in line


def test_a_token_of_three_letters(program: Path, tmp_path: Path) -> None:
    line = refusal(program, tmp_path, GOOD, token="abc")
    assert "GATEWAY_BEARER_TOKEN is 3 characters long" in line
    assert "python3 -c 'import secrets" in line
    assert "abc" not in line


def test_a_taken_port(program: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refusal(program, tmp_path, GOOD, port=port)
    assert f"port {port} on 127.0.0.1 is taken" in line
    assert "GATEWAY_PORT" in line
