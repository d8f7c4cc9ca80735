"""OpenAI's JavaScript SDK and Vercel's AI SDK, unmodified: the tests are in js/ and js-vercel/."""

from __future__ import annotations

import json
from pathlib import Path

from tests.clients import upstream
from tests.clients.alone import serving
from tests.clients.appliance import Appliance
from tests.clients.javascript import node_test
from tests.clients.upstream import ToolCaller

EXPECTED = json.dumps(
    {
        "model": upstream.MODEL,
        "names": upstream.NAMES,
        "arguments": upstream.ARGUMENTS,
        "final": upstream.FINAL,
        "structured": json.loads(upstream.STRUCTURED),
    }
)


def test_appliance(appliance: Appliance) -> None:
    node_test("js", "appliance.test.mjs", APPLIANCE_URL=appliance.url, APPLIANCE_TOKEN=appliance.token)


def test_tools(program: Path, caller: ToolCaller, tmp_path: Path) -> None:
    with serving(program, tmp_path, caller.url) as gateway:
        node_test("js", "tools.test.mjs", APPLIANCE_URL=gateway.url, APPLIANCE_TOKEN=gateway.token, EXPECTED=EXPECTED)


def test_vercel(appliance: Appliance, program: Path, caller: ToolCaller, tmp_path: Path) -> None:
    with serving(program, tmp_path, caller.url) as gateway:
        node_test(
            "js-vercel",
            "vercel.test.mjs",
            APPLIANCE_URL=appliance.url,
            APPLIANCE_TOKEN=appliance.token,
            TOOLS_URL=gateway.url,
            TOOLS_TOKEN=gateway.token,
            EXPECTED=EXPECTED,
        )
