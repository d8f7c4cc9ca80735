"""Schemathesis goes by the OpenAPI page against a running gateway: no answer is other than the page says."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.faces.speech import AUDIO, SpeechServer
from tests.support.gateways import TOKEN, Gateway, gateway, write_files
from tests.support.in_process import http
from tests.support.sampling import IS_FULL, SEED, cases
from tests.support.sound import dump, good
from tests.support.upstream import Seen, running

ROOT = Path(__file__).resolve().parents[2]
CONFIG = Path(__file__).with_name("schemathesis.toml")
APART = ("--phases", "examples,coverage,fuzzing")
DEADLINE_SEC = 3600  # for what takes a minute, or in full twenty


class Everything(SpeechServer):
    """Each kind of backend at once: sound answers to whatever is asked, to what is slow after a job has begun."""

    async def _act(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if seen.path.startswith("/v1/audio/"):
            await super()._act(seen, reader, writer)
            return
        if seen.body == b'{"prompt":"slow"}':
            await asyncio.sleep(0.3)
        content = self._counted(seen.path, seen.body)
        answer = good(seen.method, seen.path, seen.body) if content is None else http(content)
        writer.write(http(AUDIO, content_type="audio/wav") if seen.path.startswith("/audio/") else answer)
        await writer.drain()

    def _counted(self, path: str, body: bytes) -> bytes | None:
        """A vector for each text, a score for each document; a list of numbers is one text's tokens."""
        if path.endswith("/embeddings"):
            given = json.loads(body)["input"]
            is_one = not isinstance(given, list) or all(isinstance(item, int) for item in given)
            vectors = [{"embedding": [0.5, n], "index": n, "object": "embedding"} for n in range(is_one or len(given))]
            return dump({"object": "list", "data": vectors, "model": "echo"})
        if path.endswith("/rerank"):
            return dump([{"index": n, "score": 0.5} for n in range(len(json.loads(body)["documents"]))])
        return None


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with a backend for each capability."""
    home = tmp_path_factory.mktemp("everything")
    with running(Everything()) as server:
        address = server.url.removesuffix("/v1")
        others: dict[str, dict[str, Any]] = {
            "gpu_heavy": {"protocol": "a1111", "base_url": address, "supported_capabilities": ["images"]},
            "pocket_tts": {"supported_capabilities": ["tts", "transcription"]},
            "heartmula_music": {"protocol": "heartmula", "base_url": address, "supported_capabilities": ["music"]},
        }
        write_files(home, server.url, others, supported_capabilities=["chat", "completions", "embeddings", "rerank"])
        with gateway(home, TRANSCRIPTION_BACKEND_CLASS="pocket_tts", MUSIC_WAIT_SEC="0.1") as served:
            yield served


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
