"""A prompt's tokens as the real tokenizer counts them decide where a request for no model goes: llama.cpp, SmolLM2."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.clients.alone import fronting, record
from tests.clients.servers import SMOLLM2

CONTEXT = 600
LONG, FAST = "policy:long_context->alias:long", "policy:fast->alias:fast"
# By 4 characters a token each would go the other way: a digit is a token of its own, a long word is of three.
DIGITS, WORDS = "0123456789" * 65, "internationalization " * 120


@pytest.fixture(scope="module")
def client(program: Path, llamacpp: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    records = {"llamacpp@here": record("llamacpp", llamacpp, "chat", "completions", protocol="llamacpp")}
    model = {"backend": "llamacpp", "model": SMOLLM2}
    aliases = {"default": model, "fast": model, "long": model | {"context": CONTEXT}}
    place = tmp_path_factory.mktemp("counted")
    with (
        fronting(program, place, records, aliases, ROUTER_ENABLE_POLICY="true") as gateway,
        gateway.sdk() as client,
    ):
        yield client


@pytest.mark.parametrize(("text", "reason"), [(DIGITS, LONG), (WORDS, FAST)])
def test_the_count_decides(client: openai.OpenAI, text: str, reason: str) -> None:
    messages: Any = [{"role": "user", "content": text}]
    chat = client.chat.completions.with_raw_response.create(model="auto", messages=messages, max_tokens=1)
    completion = client.completions.with_raw_response.create(model="auto", prompt=text, max_tokens=1)
    for raw in (chat, completion):
        usage = raw.parse().usage
        assert usage is not None
        assert (usage.prompt_tokens >= CONTEXT) == (reason == LONG)
        assert raw.headers["x-router-reason"] == reason
