"""Base64 in steps: the same as at once, whatever the length."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import orjson
import pytest
from gateway.stepwise import LONG_BYTES, STEP_BYTES, LongTexts, decoded, encoded, parsed, run
from hypothesis import given
from hypothesis import strategies as st


def ended(steps: Any) -> tuple[Any, int]:
    """What a generator returns, and how often it stopped before."""
    stops = 0
    try:
        while True:
            next(steps)
            stops += 1
    except StopIteration as end:
        return end.value, stops


@pytest.mark.parametrize("size", [0, 1, 2, 3, STEP_BYTES - 1, STEP_BYTES, STEP_BYTES + 1, 2 * STEP_BYTES + 5])
def test_base64_goes_step_by_step(size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    text, stops = ended(encoded(data[:size]))
    assert text == base64.b64encode(data[:size]).decode()
    assert stops == max(size - 1, 0) // (STEP_BYTES // 3 * 3)
    assert ended(decoded(text))[0] == data[:size]
    assert ended(decoded(f"data:image/png;base64,{text}"))[0] == data[:size]


@given(st.text(max_size=200))
def test_text_that_is_no_base64(text: str) -> None:
    try:
        assert isinstance(ended(decoded(text))[0], bytes)
    except ValueError as error:
        assert str(error) == "no base64"


def test_event_loop_has_its_turn_between_steps() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def both() -> str:
        counting = asyncio.create_task(count())
        text = await run(encoded(bytes(5 * STEP_BYTES)))
        counting.cancel()
        return text

    assert len(asyncio.run(both())) > 5 * STEP_BYTES
    assert turns == 5


def whole(content: Any, texts: LongTexts) -> Any:
    """What was parsed, its long texts where they were."""
    if isinstance(content, dict):
        return {whole(name, texts): whole(value, texts) for name, value in content.items()}
    if isinstance(content, list):
        return [whole(value, texts) for value in content]
    return bytes(texts[content]).decode() if isinstance(content, str) and content in texts else content


STRINGS = st.text(max_size=5) | st.sampled_from(["A" * 30, "A" * 29 + "\n", '"' + "A" * 30, ", " + "A" * 40, "\\" * 15])
CONTENT = st.recursive(
    st.none() | st.integers(0, 10**9) | STRINGS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(STRINGS, inner, max_size=4),
    max_leaves=12,
)


@given(CONTENT, st.integers(1, 20))
def test_json_is_the_same_without_its_long_texts(content: Any, long: int) -> None:
    assert whole(*parsed(orjson.dumps(content), long)) == content
    spaced = json.dumps(content, indent=20, ensure_ascii=False).encode("utf-8", "surrogatepass")
    assert whole(*parsed(spaced, long)) == content


@pytest.mark.parametrize("before", ["", "x" * LONG_BYTES])
def test_long_texts_are_cut_out(before: str) -> None:
    long = "A" * (2 * LONG_BYTES)
    content, texts = parsed(json.dumps({"before": before, "images": [long, "short", long]}).encode())
    first, short, second = content["images"]
    assert [bytes(texts[name]).decode() for name in (first, second)] == [long, long]
    assert short == "short"


@pytest.mark.parametrize("body", [b"", b"{", b'"', b'{"a": "' + b"A" * 99, b'"a" ' + b"A" * 99 + b'"b"'])
def test_what_is_no_json_stays_none(body: bytes) -> None:
    with pytest.raises(orjson.JSONDecodeError):
        parsed(body, 8)


@given(st.binary(max_size=200))
def test_long_texts_are_decoded_as_others(data: bytes) -> None:
    text = "data:image/png;base64," + base64.b64encode(data).decode()
    assert ended(decoded(memoryview(text.encode())))[0] == data
