"""LangChain, LlamaIndex and OpenAI's Agents SDK, unmodified: programs/ holds what their users write.

Chat, streams and embeddings are the appliance's real models; tools and structured answers the scripted model's.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.clients import upstream
from tests.clients.appliance import Appliance
from tests.clients.upstream import ToolCaller
from tests.support.environments import ROOT, environment

HERE = Path(__file__).parent
CALLED = [[name, json.loads(text)] for name, text in zip(upstream.NAMES, upstream.ARGUMENTS, strict=True)]
RESULTS = ['18 degrees in Zürich (a "quoted" word)', "noon in Europe/Zurich"]
PLACE = json.loads(upstream.STRUCTURED)
Found = dict[str, Any]


def run(program: str, appliance: Appliance, tools: Appliance) -> Found:
    """What a program found; it runs in the environment of the frameworks."""
    python = environment(HERE / "frameworks.txt") / "python"
    done = subprocess.run(
        [python, "-m", f"tests.clients.programs.{program}"],
        cwd=ROOT,
        env={
            "PATH": os.environ["PATH"],
            "APPLIANCE_URL": appliance.url,
            "APPLIANCE_TOKEN": appliance.token,
            "TOOLS_URL": tools.url,
            "TOOLS_TOKEN": tools.token,
        },
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: Found = json.loads(done.stdout.splitlines()[-1])
    return found


def test_langchain(appliance: Appliance, fleet: Appliance) -> None:
    found = run("with_langchain", appliance, fleet)
    real = found["real"]
    assert real["answer"].strip()
    assert 0 < real["usage"]["output_tokens"] <= 16
    assert len(real["pieces"]) > 1
    assert [usage["output_tokens"] for usage in real["stream_usage"]] == [pytest.approx(8, abs=8)]
    assert real["vectors"] == [384, 384]
    for api in ("chat", "responses"):
        assert found[api]["called"] == found[api]["streamed"] == CALLED
        assert found[api]["results"] == RESULTS
        assert found[api]["final"] == upstream.FINAL
    assert found["agent"] == ["", *RESULTS, upstream.FINAL]
    assert found["structured"] == PLACE


def test_llama_index(appliance: Appliance, fleet: Appliance) -> None:
    found = run("with_llama_index", appliance, fleet)
    real = found["real"]
    assert real["answer"].strip()
    assert len(real["pieces"]) > 1
    assert real["completion"].strip()
    assert real["vectors"] == [384, 384]
    assert found["chat"]["called"] == found["chat"]["streamed"] == CALLED
    assert found["agent"] == {"results": RESULTS, "final": upstream.FINAL}
    assert found["structured"] == PLACE


def test_agents(appliance: Appliance, fleet: Appliance, caller: ToolCaller) -> None:
    caller.seen.clear()
    found = run("with_agents", appliance, fleet)
    assert found["real_chat"].strip()
    assert found["real_responses"].strip()
    for api in ("chat", "responses"):
        assert found[api]["results"] == RESULTS
        assert found[api]["final"] == found[api]["streamed"] == upstream.FINAL
        assert found[api]["structured"] == PLACE
        assert "response.output_text.delta" in found[api]["events"]
        assert "response.function_call_arguments.delta" in found[api]["events"]
    # The tools' results reach the model under the ids of their calls.
    results = [message for request in caller.requests for message in request["messages"] if message["role"] == "tool"]
    assert {message["tool_call_id"] for message in results} == {"call_0", "call_1"}
