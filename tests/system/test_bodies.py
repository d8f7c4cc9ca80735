"""Bodies of requests: their codings, how much of them counts, and who reads why one is refused."""

from __future__ import annotations

import asyncio
import gzip
import json
from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import Any

import brotli
import openai
import pytest
import zstandard

from tests.support.gateways import TOKEN, Gateway, gateway, write_files
from tests.support.upstream import Upstream
from tests.support.waiting import PATIENCE_SEC

CHAT = "/v1/chat/completions"
PICTURE = b64encode(b"\x89PNG\r\n\x1a\n" + bytes(900_000)).decode()


def chat(content: Any) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": content}]}


def with_picture(text: str = "Look") -> dict[str, Any]:
    url = f"data:image/png;base64,{PICTURE}"
    return chat([{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}])


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory, backend: Upstream) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("strict")
    write_files(home, backend.url)
    with gateway(home, MAX_REQUEST_BYTES_STRICT="true") as running:
        yield running


@pytest.mark.parametrize(
    ("coding", "code"), [("gzip", gzip.compress), ("br", brotli.compress), ("zstd", zstandard.compress)]
)
def test_coded_body_is_read(served: Gateway, seen: Upstream, coding: str, code: Callable[[bytes], bytes]) -> None:
    body = json.dumps(chat("Hi")).encode()
    answer = served.client.post(CHAT, content=code(body), headers={"Content-Encoding": coding})
    assert answer.status_code == 200, answer.text
    asked = seen.seen[-1]
    assert asked.json == json.loads(body)
    assert "content-encoding" not in asked.headers


def test_bomb_is_too_large(served: Gateway) -> None:
    bomb = gzip.compress(json.dumps(chat("x" * 60_000_000)).encode())
    answer = served.client.post(CHAT, content=bomb, headers={"Content-Encoding": "gzip"})
    assert (answer.status_code, "MAX_UPLOAD_BYTES" in answer.text) == (413, True)


def test_unknown_coding_names_the_known_ones(served: Gateway) -> None:
    answer = served.client.post(CHAT, content=b"x", headers={"Content-Encoding": "pack200"})
    assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "gzip, deflate, br, zstd")


def test_picture_counts_against_the_upload_limit_alone(served: Gateway, strict: Gateway) -> None:
    assert served.client.post(CHAT, json=with_picture()).status_code == 200
    for running, body in (
        (served, with_picture("word " * 250_000)),
        (served, chat("x" * 1_200_000)),
        (strict, with_picture()),
    ):
        answer = running.client.post(CHAT, json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
        assert "MAX_REQUEST_BYTES" in answer.text


@pytest.mark.parametrize(
    ("key", "model", "status"), [("x" * 20, "echo", 401), (TOKEN, "nowhere", 404), (TOKEN, "echo", 413)]
)
def test_sdk_that_sends_more_than_it_may_reads_why(served: Gateway, key: str, model: str, status: int) -> None:
    """It sends all before it reads. Also when its connections are kept: each of them still works."""
    text = "word " * (1_000_000 if status != 404 else 100_000)

    async def ask(client: openai.AsyncOpenAI) -> int:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}])
        return caught.value.status_code

    async def test() -> list[int]:
        url = f"http://127.0.0.1:{served.port}/v1"
        async with openai.AsyncOpenAI(api_key=key, base_url=url, max_retries=0, timeout=PATIENCE_SEC) as client:
            return await asyncio.gather(*(ask(client) for _ in range(8))) + [await ask(client) for _ in range(8)]

    assert asyncio.run(test()) == [status] * 16
