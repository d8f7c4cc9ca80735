"""Data that comes in pieces, and work that is done in steps."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st


@st.composite
def cut(draw: st.DrawFn, data: bytes) -> list[bytes]:
    places = sorted(draw(st.sets(st.integers(0, len(data)), max_size=10)))
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True) if b > a]


def ended(steps: Any) -> tuple[Any, int]:
    """What a generator returns, and how often it stopped before."""
    stops = 0
    try:
        while True:
            next(steps)
            stops += 1
    except StopIteration as end:
        return end.value, stops
