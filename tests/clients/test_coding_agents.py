"""Coding agents, unmodified and as they come: each runs a command in a shell that the model asks for."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.clients import upstream
from tests.clients.appliance import Appliance
from tests.clients.javascript import packages

TASK = "Make the file."
# Where npm puts the program for this machine, without the scripts of an installation.
PROGRAMS = {
    "codex": ".bin/codex",
    "claude": "@anthropic-ai/claude-code-*-*64/claude",
    "opencode": "opencode-*-*64/bin/opencode",
}
NOWHERE = "http://127.0.0.1:9"  # where they would tell of themselves: nobody listens there
CODEX = """
model = "{model}"
model_provider = "appliance"
[model_providers.appliance]
name = "AI Appliance"
base_url = "{url}"
env_key = "GATEWAY_TOKEN"
wire_api = "responses"
"""


def codex(place: Path, gateway: Appliance) -> tuple[list[str], dict[str, str]]:
    (place / "config.toml").write_text(CODEX.format(model=upstream.AGENT, url=gateway.url))
    command = ["codex", "exec", "--skip-git-repo-check", "--sandbox", "danger-full-access", TASK]
    return command, {"CODEX_HOME": str(place), "GATEWAY_TOKEN": gateway.token}


def claude(place: Path, gateway: Appliance) -> tuple[list[str], dict[str, str]]:
    base_url = gateway.url.removesuffix("/v1")
    settings = {"ANTHROPIC_BASE_URL": base_url, "ANTHROPIC_AUTH_TOKEN": gateway.token}
    settings |= {"ANTHROPIC_MODEL": upstream.AGENT, "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1"}
    return ["claude", "--print", "--allowedTools", "Bash", "--", TASK], settings


def opencode(place: Path, gateway: Appliance) -> tuple[list[str], dict[str, str]]:
    options = {"baseURL": gateway.url, "apiKey": gateway.token}
    provider = {"npm": "@ai-sdk/openai-compatible", "options": options, "models": {upstream.AGENT: {}}}
    config = {"permission": "allow", "autoupdate": False, "share": "disabled", "provider": {"appliance": provider}}
    (place / "opencode.json").write_text(json.dumps(config))
    command = ["opencode", "run", "--model", f"appliance/{upstream.AGENT}", TASK]
    return command, {"OPENCODE_CONFIG": str(place / "opencode.json")}


@pytest.mark.parametrize("agent", [codex, claude, opencode])
def test_agent_runs_the_command_and_goes_on(
    alone: Appliance, tmp_path: Path, agent: Callable[[Path, Appliance], tuple[list[str], dict[str, str]]]
) -> None:
    home, project = tmp_path / "home", tmp_path / "project"
    home.mkdir()
    project.mkdir()
    (name, *arguments), settings = agent(home, alone)
    quiet = {"HTTPS_PROXY": NOWHERE, "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [next((packages("js-agents") / "node_modules").glob(PROGRAMS[name])), *arguments],
        cwd=project,
        env={
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            **quiet,
            **settings,
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert (project / "made.txt").read_text() == "made by the agent\n", done.stdout + done.stderr
    assert upstream.DONE in done.stdout
    assert done.returncode == 0
