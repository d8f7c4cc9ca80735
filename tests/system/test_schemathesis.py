"""Schemathesis goes by the OpenAPI page against a running gateway: no answer is other than the page says."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.chat_script import ChatScript
from tests.support.faces.a1111 import A1111
from tests.support.faces.heartmula import HeartMula
from tests.support.faces.speech import SpeechServer
from tests.support.gateways import TOKEN, Gateway, gateway, write_files
from tests.support.sampling import IS_FULL, SEED, cases
from tests.support.upstream import ANSWER, Seen, running

ROOT = Path(__file__).resolve().parents[2]
CONFIG = Path(__file__).with_name("schemathesis.toml")
APART = ("--phases", "examples,coverage,fuzzing")
DEADLINE_SEC = 3600  # for what takes a minute, or in full twenty


def embedded(request: dict[str, Any]) -> dict[str, Any]:
    """A vector for each text; a list of numbers is one text's tokens."""
    given = request["input"]
    is_one = not isinstance(given, list) or all(isinstance(item, int) for item in given)
    vectors = [{"object": "embedding", "index": i, "embedding": [0.5, i]} for i in range(1 if is_one else len(given))]
    return {"object": "list", "data": vectors, "model": "echo", "usage": {"prompt_tokens": 1, "total_tokens": 1}}


def ranked(request: dict[str, Any]) -> dict[str, Any]:
    return {"results": [{"index": i, "relevance_score": 0.5} for i in range(len(request["documents"]))]}


@dataclass
class Models(ChatScript):
    """Chats, completions, embeddings, reranking and counts of tokens: sound answers to whatever is asked."""

    paths: dict[str, Any] = field(
        default_factory=lambda: {
            "/v1/embeddings": embedded,
            "/v1/completions": lambda _: {**ANSWER, "object": "text_completion"},
            "/v1/rerank": ranked,
            "/v1/chat/completions/input_tokens": lambda _: {"input_tokens": 7},
        }
    )

    async def _act(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = {name: value for name, value in seen.json.items() if name != "model"}
        await super()._act(replace(seen, body=json.dumps(request).encode()), reader, writer)


class Musician(HeartMula):
    """Takes longer than a request waits, for some pieces."""

    async def _make(self, request: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if request.get("prompt") == "slow":
            await asyncio.sleep(0.3)
        await super()._make(request, reader, writer)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with a backend for each capability."""
    home = tmp_path_factory.mktemp("everything")
    with ExitStack() as stack:
        models = stack.enter_context(running(Models()))
        others = {
            f"{backend_class}@here": {
                "protocol": protocol,
                "base_url": stack.enter_context(running(server)).url.removesuffix(prefix),
                "supported_capabilities": capabilities,
            }
            for backend_class, protocol, prefix, server, capabilities in (
                ("gpu_heavy", "a1111", "/v1", A1111(), ["images"]),
                ("pocket_tts", "openai", "", SpeechServer(), ["tts", "transcription"]),
                ("heartmula_music", "heartmula", "", Musician(is_released=True), ["music"]),
            )
        }
        write_files(home, models.url, others, supported_capabilities=["chat", "completions", "embeddings", "rerank"])
        yield stack.enter_context(gateway(home, TRANSCRIPTION_BACKEND_CLASS="pocket_tts", MUSIC_WAIT_SEC="0.1"))


def tried(served: Gateway, home: Path, examples: int, *options: str) -> str:
    """What Schemathesis says after a run that has found nothing; `examples` for each operation and phase."""
    page = served.client.get("/openapi.json").json()
    for item in page["paths"].values():
        for operation in item.values():
            # The doubles refuse nothing by a status of their own: whatever else comes is the gateway's.
            operation["responses"].pop("4XX", None)
    path = home / "page.json"
    path.write_text(json.dumps(page))
    print(f"TEST_SEED={SEED}")
    program: list[str | Path] = [Path(sys.executable).with_name("schemathesis"), "--config-file", CONFIG, "run", path]
    url = f"http://127.0.0.1:{served.port}"
    done: subprocess.CompletedProcess[str] = subprocess.run(
        [*program, "--url", url, "--max-examples", str(examples), "--seed", str(SEED), *options],
        cwd=home,
        env={**os.environ, "TOKEN": TOKEN, "NO_COLOR": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=DEADLINE_SEC,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def counted(said: str, pattern: str) -> int:
    found = re.search(pattern, said)
    assert found is not None, said
    return int(found[1])


def test_no_answer_is_other_than_the_page_says(everything: Gateway, tmp_path: Path) -> None:
    said = tried(everything, tmp_path, cases(10, full=150), *APART)
    assert counted(said, r"(\d+) generated, \1 passed") >= (5_000 if IS_FULL else 500)
    assert counted(said, r"Tested: (\d+)") == counted(said, r"Selected: (\d+)") > 20


def test_what_is_made_can_be_gone_on_with(everything: Gateway, tmp_path: Path) -> None:
    """Chains of requests by the page's links."""
    said = tried(everything, tmp_path, cases(60, full=600), "--phases", "stateful", "--mode", "positive")
    print(said)
    assert counted(said, r"API Links: +(\d+) covered") >= 6


def test_placeholders_are_as_the_page_says(served: Gateway, tmp_path: Path) -> None:
    """Without a server of images."""
    said = tried(served, tmp_path, cases(10, full=150), "--include-path-regex", "^/v1/images/", *APART)
    assert counted(said, r"(\d+) generated, \1 passed") >= 50
