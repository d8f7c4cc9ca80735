"""Each server's words for a request that is too long for the model's context, and words that only look like them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from gateway.backends.overflow import Overflow, overflow_in

ROWS = [line.split("\t") for line in Path(__file__).with_name("overflow.tsv").read_text().splitlines()[1:]]


@pytest.mark.parametrize(("fields", "asked", "limit", "words"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_overflow_is_told_from_other_refusals(fields: str, asked: str, limit: str, words: str) -> None:
    numbers = [None if number == "-" else int(number) for number in (asked, limit) if number]
    assert overflow_in(json.loads(fields), words) == (Overflow(*numbers) if numbers else None)
