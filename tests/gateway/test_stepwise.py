"""Base64 in steps: the same as at once, whatever the length."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest
from gateway.stepwise import STEP_BYTES, decoded, encoded, run
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
