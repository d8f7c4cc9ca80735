"""OpenAI's JavaScript SDK and Vercel's AI SDK, unmodified: the tests are in js/ and js-vercel/."""

from __future__ import annotations

import json

from tests.clients import upstream
from tests.clients.appliance import Appliance
from tests.clients.javascript import node_test

EXPECTED = json.dumps(
    {
        "model": upstream.MODEL,
        "names": upstream.NAMES,
        "arguments": upstream.ARGUMENTS,
        "final": upstream.FINAL,
        "structured": json.loads(upstream.STRUCTURED),
    }
)


def place(name: str, appliance: Appliance) -> dict[str, str]:
    return {f"{name}_URL": appliance.url, f"{name}_TOKEN": appliance.token}


def test_appliance(appliance: Appliance) -> None:
    node_test("js", "appliance.test.mjs", **place("APPLIANCE", appliance))


def test_tools(alone: Appliance) -> None:
    node_test("js", "tools.test.mjs", **place("APPLIANCE", alone), EXPECTED=EXPECTED)


def test_vercel(appliance: Appliance, alone: Appliance) -> None:
    places = place("APPLIANCE", appliance) | place("TOOLS", alone)
    node_test("js-vercel", "vercel.test.mjs", **places, EXPECTED=EXPECTED)
