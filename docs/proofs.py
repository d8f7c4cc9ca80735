"""What the tests prove of routes, fields and kinds of backends, as their `proves` marks say: a table for each route."""

import contextlib
import io
import itertools
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
# In this order; doubles stand for what cannot be had here.
BACKENDS = (
    "openai", "llamacpp", "mlx", "litellm", "optillm", "ollama", "nexa",
    "a1111", "comfyui", "invokeai", "mock", "heartmula", "speech",
)  # fmt: skip


class Proof(NamedTuple):
    """That a test shows a field of a route to work with a kind of backend, or to be refused there by name."""

    route: str
    field: str
    backend: str
    refused: bool


class _Collector:
    def __init__(self) -> None:
        self.proofs: set[Proof] = set()
        self.problems: list[str] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            for mark in item.iter_markers("proves"):
                route, *fields = mark.args
                backend = mark.kwargs.get("backend")
                if backend not in BACKENDS or not str(route).startswith("/") or not fields:
                    self.problems.append(f"{item.nodeid}: proves{mark.args} backend={backend}")
                refused = bool(mark.kwargs.get("refused"))
                self.proofs |= {Proof(route, field, str(backend), refused) for field in fields}


def collect() -> set[Proof]:
    """All proofs of all tests, none of which runs; raises SystemExit when one cannot be read."""
    collector = _Collector()
    said = io.StringIO()
    places = [str(ROOT / "tests" / name) for name in ("gateway", "clients", "heavy")]
    options = [
        "--collect-only",
        "-q",
        "-p",
        "no:cacheprovider",
        f"--rootdir={ROOT}",
        f"--config-file={ROOT}/pyproject.toml",
    ]
    with contextlib.redirect_stdout(said):
        status = pytest.main([*options, *places], plugins=[collector])
    if status or collector.problems:
        raise SystemExit("\n".join(collector.problems) or said.getvalue())
    return collector.proofs


def tables(proofs: set[Proof]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """For each route: its path, the kinds of backends that it is proven with, and a row for each field."""
    for route, group in itertools.groupby(sorted(proofs), key=lambda proof: proof.route):
        cells: dict[tuple[str, str], set[bool]] = defaultdict(set)
        for proof in group:
            cells[proof.field, proof.backend].add(proof.refused)
        kinds = [kind for kind in BACKENDS if any(kind == backend for _, backend in cells)]
        fields = sorted({field for field, _ in cells})
        yield route, kinds, [[field, *(_word(cells.get((field, kind), set())) for kind in kinds)] for field in fields]


def _word(outcomes: set[bool]) -> str:
    return {0: "", 1: "refused" if True in outcomes else "yes", 2: "yes; some values refused"}[len(outcomes)]
