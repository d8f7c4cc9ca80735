"""Base64 in steps: the same as at once, whatever the length."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from gateway.wire import stepwise
from gateway.wire.stepwise import (
    LONG_BYTES,
    STEP_BYTES,
    LongTexts,
    TooMuchJson,
    decoded,
    encoded,
    loads,
    numbers_in,
    parsed,
    run,
    without_numbers,
)
from hypothesis import given
from hypothesis import strategies as st

from tests.support.pieces import ended


@pytest.mark.parametrize("size", [0, 1, 2, 3, STEP_BYTES - 1, STEP_BYTES, STEP_BYTES + 1, 2 * STEP_BYTES + 5])
def test_base64_goes_step_by_step(size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    text, stops = ended(encoded(data[:size]))
    assert text == base64.b64encode(data[:size]).decode()
    assert stops == max(size - 1, 0) // (STEP_BYTES // 3 * 3)
    assert ended(decoded(text))[0] == data[:size]
    assert ended(decoded(f"data:image/png;base64,{text}"))[0] == data[:size]


@given(st.text(max_size=200))
def test_text_other_than_base64_is_refused(text: str) -> None:
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


def whole(content: Any, texts: LongTexts, read: Callable[[bytes], Any] = bytes.decode) -> Any:
    """What was parsed, its long texts where they were, each as `read` gives it."""
    if isinstance(content, dict):
        return {whole(name, texts, read): whole(value, texts, read) for name, value in content.items()}
    if isinstance(content, list):
        return [whole(value, texts, read) for value in content]
    return read(bytes(texts[content])) if isinstance(content, str) and content in texts else content


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
def test_malformed_json_is_refused(body: bytes) -> None:
    with pytest.raises(orjson.JSONDecodeError):
        parsed(body, 8)


@given(st.binary(max_size=200))
def test_long_texts_are_decoded_as_others(data: bytes) -> None:
    text = "data:image/png;base64," + base64.b64encode(data).decode()
    assert ended(decoded(memoryview(text.encode())))[0] == data


# --- what is parsed at once, and lists of numbers a step at a time


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"[" + b"[]," * 250_000 + b"0]", "too many values"),
        (b"[" + b"{}," * 250_000 + b"0]", "too many values"),
        (b"[" + b"0," * 1_000_001 + b"0]", "too many values"),
        (b'"' + b"a" * (stepwise.PARSED_MAX_BYTES - 1) + b'"', "more than 16777216 bytes"),
    ],
    ids=["lists", "objects", "numbers", "bytes"],
)
def test_json_that_is_too_much(body: bytes, why: str) -> None:
    with pytest.raises(TooMuchJson, match=why):
        loads(body)


@pytest.mark.parametrize("body", [b"[" + b"0," * 900_000 + b"0]", b'"' + b"a" * (stepwise.PARSED_MAX_BYTES - 2) + b'"'])
def test_json_that_is_not_too_much(body: bytes) -> None:
    assert loads(body) == orjson.loads(body)


NUMBERS = st.lists(st.integers(-9, 10**9) | st.floats(-1e9, 1e9), max_size=9)


@given(st.recursive(CONTENT | NUMBERS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(STRINGS, inner)))
def test_json_is_the_same_without_its_lists_of_numbers(content: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stepwise, "_UNCOUNTED_BYTES", -1)
        patch.setattr(stepwise, "LIST_STEP", 99)
        bodies = (orjson.dumps(content), json.dumps(content, indent=3, ensure_ascii=False).encode())
        for body in bodies:
            (found, lists), _ = ended(without_numbers(body, 5))
            assert whole(found, lists, orjson.loads) == content
            for text in lists.values():
                numbers = orjson.loads(bytes(text))
                if all(isinstance(number, int | float) and number is not True for number in numbers):
                    assert ended(numbers_in(text))[0].tolist() == numbers


@pytest.mark.parametrize("text", [b"[1,,2]", b"[1,]", b"[,1]", b"[1 2]", b'[1,"a"]', b"[null]", b"[1,[2]]"])
@pytest.mark.parametrize("step", [1, 2, 3, 100])
def test_malformed_lists_of_numbers_are_refused(monkeypatch: pytest.MonkeyPatch, text: bytes, step: int) -> None:
    monkeypatch.setattr(stepwise, "LIST_STEP", step)
    with pytest.raises((ValueError, TypeError)):
        ended(numbers_in(memoryview(text)))


def test_a_list_of_numbers_goes_step_by_step() -> None:
    numbers = [0.5] * 1_000_000
    found, stops = ended(numbers_in(memoryview(orjson.dumps(numbers))))
    assert found.tolist() == numbers
    assert stops == 4_000_001 // stepwise.LIST_STEP
