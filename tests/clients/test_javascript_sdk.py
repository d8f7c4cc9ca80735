"""OpenAI's JavaScript SDK, unmodified: the tests are in js/, in its own language."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.clients import upstream
from tests.clients.alone import serving
from tests.clients.appliance import Appliance
from tests.clients.upstream import ToolCaller

JS = Path(__file__).parent / "js"


def run(*argv: str, **environment: str) -> None:
    done = subprocess.run(
        argv,
        cwd=JS,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="session")
def installed() -> None:
    """The SDK as the lock has it; installed again only when the lock is newer than what is there."""
    if shutil.which("npm") is None:
        pytest.skip("node and npm are missing; type: sudo apt-get install nodejs npm")
    there, lock = JS / "node_modules" / ".package-lock.json", JS / "package-lock.json"
    if not there.exists() or there.stat().st_mtime < lock.stat().st_mtime:
        run("npm", "ci", "--no-fund", "--no-audit")
        there.touch()


def node_test(name: str, gateway: Appliance, **environment: str) -> None:
    run("node", "--test", name, APPLIANCE_URL=gateway.url, APPLIANCE_TOKEN=gateway.token, **environment)


@pytest.mark.usefixtures("installed")
def test_appliance(appliance: Appliance) -> None:
    node_test("appliance.test.mjs", appliance)


@pytest.mark.usefixtures("installed")
def test_tools(program: Path, caller: ToolCaller, tmp_path: Path) -> None:
    expected = {"model": upstream.MODEL, "names": upstream.NAMES, "arguments": upstream.ARGUMENTS}
    with serving(program, tmp_path, caller.url) as gateway:
        node_test("tools.test.mjs", gateway, EXPECTED=json.dumps(expected))
