"""Data that comes in pieces, work that is done in steps, and JSON of any kind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, AnyStr

from hypothesis import strategies as st

TEXT = st.text(max_size=8)


@st.composite
def cut(draw: st.DrawFn, data: AnyStr) -> list[AnyStr]:
    places: list[int] = sorted(draw(st.sets(st.integers(0, len(data)), max_size=10)))
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


def objects_in(content: Any) -> Iterator[dict[str, Any]]:
    """All objects within a JSON value."""
    if isinstance(content, dict):
        yield content
        content = list(content.values())
    for inner in content if isinstance(content, list | tuple) else ():
        yield from objects_in(inner)


def json_values(keys: st.SearchStrategy[str] = TEXT, *, is_finite: bool = False) -> st.SearchStrategy[Any]:
    """Small JSON values whose objects have such keys."""
    numbers = st.integers() | st.floats(allow_nan=not is_finite, allow_infinity=not is_finite)
    return st.recursive(
        st.none() | st.booleans() | numbers | TEXT,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
        max_leaves=8,
    )
