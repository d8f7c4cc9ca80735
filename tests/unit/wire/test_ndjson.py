"""Newline-delimited JSON: lines whole and in order, however they arrive, and none without end."""

from __future__ import annotations

import pytest
from gateway.wire.ndjson import LINE_MAX_BYTES, LineCutter, LineTooLong
from hypothesis import given
from hypothesis import strategies as st

from tests.support.pieces import cut as cuts


@given(st.lists(st.binary(max_size=20).filter(lambda line: b"\n" not in line)), st.data())
def test_any_split_gives_the_same_lines(lines: list[bytes], data: st.DataObject) -> None:
    cutter = LineCutter()
    stream = b"".join(line + b"\n" for line in lines)
    cut = [line for piece in data.draw(cuts(stream)) for line in cutter.feed(piece)]
    assert cut == [line for line in lines if line and not line.isspace()]
    assert cutter.feed(b"\n") == []


def test_a_line_without_end_is_not_held() -> None:
    cutter = LineCutter()
    for _ in range(LINE_MAX_BYTES // 2**20):
        cutter.feed(b"x" * 2**20)
    cutter.feed(b"x")
    with pytest.raises(LineTooLong):
        cutter.feed(b"x")
