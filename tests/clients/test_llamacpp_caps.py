"""An alias's cap bounds what the real llama.cpp generates, under its own name for the limit too."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.clients.alone import fronting, record
from tests.clients.servers import SMOLLM2

CAP = 5


@pytest.fixture(scope="module")
def client(program: Path, llamacpp: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    records = {"llamacpp@here": record("llamacpp", llamacpp, "chat", "completions", protocol="llamacpp")}
    aliases = {"capped": {"backend": "llamacpp", "model": SMOLLM2, "max_tokens_cap": CAP}}
    with (
        fronting(program, tmp_path_factory.mktemp("capped"), records, aliases) as gateway,
        openai.OpenAI(base_url=gateway.url, api_key=gateway.token, max_retries=0, timeout=60) as client,
    ):
        yield client


@pytest.mark.parametrize(
    "fields",
    [{"n_predict": 60}, {"n_predict": -1, "max_tokens": 3}, {"max_completion_tokens": 60}, {"max_tokens": 0}, {}],
)
def test_no_answer_is_longer(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    wanted: dict[str, Any] = {"model": "capped", "extra_body": {"ignore_eos": True, **fields}}
    chat = client.chat.completions.create(messages=[{"role": "user", "content": "Count to 99."}], **wanted)
    text = client.completions.create(prompt="1 2 3", **wanted)
    assert chat.usage is not None
    assert text.usage is not None
    assert chat.usage.completion_tokens <= CAP
    assert text.usage.completion_tokens <= CAP
