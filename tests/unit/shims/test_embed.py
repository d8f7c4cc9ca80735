"""What gateway-embed refuses, and how it cuts its work, without its model and a socket."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any, cast

import pytest
from gateway.errors import ApiError
from gateway.shims.embed import (
    BATCH_TOKENS,
    MAX_TEXTS,
    MODEL,
    TOKENIZE_TEXTS,
    Embedder,
    Wanted,
    batches,
    load,
    main,
    parse,
    unless_gone,
)
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import ClientDisconnect, Request

from tests.support.waiting import PATIENCE_SEC


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": ["one", ""]}, "input"),
        ({"input": ["one", None]}, "input"),
        ({"input": [15339, 1917]}, "input"),
        ({"input": [[15339, 1917]]}, "input"),
        ({"input": {"text": "one"}}, "input"),
        ({"input": ["one"] * (MAX_TEXTS + 1)}, "input"),
        ({"model": ""}, "model"),
        ({"model": 7}, "model"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"encoding_format": ["float"]}, "encoding_format"),
        ({"dimensions": 256}, "dimensions"),
        ({"dimensions": "384"}, "dimensions"),
        ({"user": 7}, "user"),
        ({"input_type": "query"}, "input_type"),
    ],
)
def test_wrong_field_is_named(fields: dict[str, Any], param: str) -> None:
    good = {"model": MODEL, "input": "one", "user": "someone", "dimensions": 384, "encoding_format": "base64"}
    assert parse(json.dumps(good).encode()) == Wanted(["one"], base64=True)
    with pytest.raises(ApiError, match=param) as refused:
        parse(json.dumps(good | fields).encode())
    assert (refused.value.status, refused.value.param) == (400, param)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"text"', b'{"input": "\\ud800"}', b"\xff"])
def test_body_that_is_no_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(ApiError) as refused:
        parse(body)
    assert (refused.value.status, refused.value.code) == (400, "invalid_json")


@given(st.lists(st.integers(2, 256)), st.integers(1, 600))
def test_batches_hold_every_text_once_within_the_budget(lengths: list[int], budget: int) -> None:
    cut = batches(lengths, budget)
    assert sorted(index for batch in cut for index in batch) == list(range(len(lengths)))
    for batch in cut:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= budget


def test_short_texts_share_a_batch() -> None:
    assert len(batches([16] * 64, BATCH_TOKENS)) == 4


@pytest.mark.parametrize("name", ["numpy", "onnxruntime", "tokenizers"])
def test_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delitem(sys.modules, "gateway.shims.minilm", raising=False)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit, match=r"^[^\n]*install the gateway with its extra `embed`$"):
        load(1)


@pytest.mark.parametrize("arguments", [["--port", "70000"], ["--port", "http"], ["--port", "1", "--threads", "0"], []])
def test_wrong_arguments_are_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["--host", "127.0.0.1", *arguments])


async def test_texts_that_were_cut_are_counted_over_all_of_them() -> None:
    class Model:
        def tokenize(self, texts: list[str]) -> tuple[list[list[int]], int]:
            return [[1, 2]] * len(texts), 1

        def embed(self, ids: list[list[int]]) -> list[list[int]]:
            return ids

    embedder = Embedder(cast(Any, Model()))
    embedded = await embedder.embed(["x"] * (TOKENIZE_TEXTS + 1))
    assert (embedded.truncated, embedded.tokens, len(embedded.vectors)) == (2, 130, 65)
    embedder.close()


async def test_work_ends_when_its_client_leaves() -> None:
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def leave() -> Any:
        await asyncio.sleep(0)  # the work has begun
        return {"type": "http.disconnect"}

    with pytest.raises(ClientDisconnect):
        await unless_gone(Request({"type": "http"}, leave), work())
    await asyncio.wait_for(ended.wait(), PATIENCE_SEC)
