"""Counts by themselves: bounded whatever the names are, and histograms that add up."""

import pytest
from gateway.backends.records import BackendRecord
from gateway.backends.usage import Usage
from gateway.observe.metrics import BOUNDS, CALLERS_MAX, MODELS_MAX, OTHER, SERIES_MAX, Histogram, Metrics
from hypothesis import given
from hypothesis import strategies as st

from tests.support.registries import record, registry


def test_series_are_bounded() -> None:
    metrics = Metrics(registry(a=record()), None)
    for number in range(SERIES_MAX + CALLERS_MAX):
        metrics.series(f"/{number}", 200, "test").duration.observe(1)
        metrics.caller(str(number)).requests += 1
        metrics.aborted(f"reason {number}")
        metrics.series("/v1/chat/completions", number, "test")
    assert len(metrics._series) == SERIES_MAX + 1
    assert len(metrics._callers) == CALLERS_MAX + 1
    assert metrics._aborted == {OTHER: SERIES_MAX + CALLERS_MAX}


def test_made_up_names_leave_real_models_their_series() -> None:
    backends = registry(
        a=record(), b=BackendRecord.model_validate(record().model_dump(by_alias=True) | {"class": "bare"})
    )
    metrics = Metrics(backends, None)
    listing, bare = backends.backends
    listing.models, bare.models = tuple(f"listed {n}" for n in range(300)), ()
    backends.refresh_names()
    for number in range(1_000):
        for backend_class in ("test", "bare"):
            metrics.model(backend_class, f"made up {number}").add(Usage(1, 1))
    own = {name for _, name in metrics._models} - {OTHER}
    assert len(own) == MODELS_MAX["unlisted"]
    assert metrics.model("test", "made up 5").is_other
    assert not metrics.model("test", "listed 7").is_other
    for number in range(300):
        metrics.model("test", f"listed {number}")
    assert len(metrics._models) == MODELS_MAX["unlisted"] + MODELS_MAX["listed"] + 2
    assert not metrics.model("test", "m").is_other  # an alias means it
    listing.models = ("made up 5:latest",)
    backends.refresh_names()
    metrics._taken.clear()
    assert not metrics.model("test", "made up 5").is_other


@given(st.lists(st.floats(0, 1e7), max_size=50), st.lists(st.floats(0, 1e7), max_size=50))
def test_histograms_add_up(some: list[float], more: list[float]) -> None:
    one, other = Histogram(), Histogram()
    for histogram, values in ((one, some), (other, more)):
        for milliseconds in values:
            histogram.observe(milliseconds)
    one.add(other)
    rows = one.cumulative()
    assert rows[-1] == ("+Inf", len(some) + len(more))
    for (bound, count), limit in zip(rows, BOUNDS, strict=False):
        assert bound == str(limit)
        assert count == sum(each <= limit for each in some + more)
    assert one.sum == pytest.approx(sum(some) + sum(more))
