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


@pytest.fixture(scope="module")
def langchain(appliance: Appliance, fleet: Appliance) -> Found:
    return run("with_langchain", appliance, fleet)


@pytest.fixture(scope="module")
def llama_index(appliance: Appliance, fleet: Appliance) -> Found:
    return run("with_llama_index", appliance, fleet)


@pytest.fixture(scope="module")
def agents(appliance: Appliance, fleet: Appliance) -> Found:
    return run("with_agents", appliance, fleet)


def test_langchain_with_real_models(langchain: Found) -> None:
    real = langchain["real"]
    assert real["answer"].strip()
    assert 0 < real["usage"]["output_tokens"] <= 16
    assert len(real["pieces"]) > 1
    assert [usage["output_tokens"] for usage in real["stream_usage"]] == [pytest.approx(8, abs=8)]
    assert real["vectors"] == [384, 384]


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_langchain_calls_tools(langchain: Found, api: str) -> None:
    found = langchain[api]
    assert found["called"] == found["streamed"] == CALLED
    assert found["results"] == RESULTS
    assert found["final"] == upstream.FINAL


def test_langchain_agent_and_structure(langchain: Found) -> None:
    assert langchain["agent"] == ["", *RESULTS, upstream.FINAL]
    assert langchain["structured"] == PLACE


def test_llama_index_with_real_models(llama_index: Found) -> None:
    real = llama_index["real"]
    assert real["answer"].strip()
    assert len(real["pieces"]) > 1
    assert real["completion"].strip()
    assert real["vectors"] == [384, 384]


def test_llama_index_calls_tools(llama_index: Found) -> None:
    found = llama_index["chat"]
    assert found["called"] == found["streamed"] == CALLED
    assert llama_index["agent"] == {"results": RESULTS, "final": upstream.FINAL}
    assert llama_index["structured"] == PLACE


def test_agents_with_real_models(agents: Found) -> None:
    assert agents["real_chat"].strip()
    assert agents["real_responses"].strip()


@pytest.mark.parametrize("api", ["chat", "responses"])
def test_agents_run_whole_rounds(agents: Found, api: str) -> None:
    found = agents[api]
    assert found["results"] == RESULTS
    assert found["final"] == found["streamed"] == upstream.FINAL
    assert found["structured"] == PLACE
    assert "response.output_text.delta" in found["events"]
    assert "response.function_call_arguments.delta" in found["events"]


def test_what_the_backend_was_asked(agents: Found, caller: ToolCaller) -> None:
    """The tools' results reached the model under the ids of their calls."""
    results = [message for request in caller.requests for message in request["messages"] if message["role"] == "tool"]
    assert {message["tool_call_id"] for message in results} == {"call_0", "call_1"}
