"""What the tests prove of routes, fields and kinds of backends, as their `proves` marks say: by route."""

import contextlib
import io
import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
# In this order; doubles stand for what cannot be had here.
BACKENDS = (
    "openai", "llamacpp", "gateway_embed", "mlx", "litellm", "optillm", "ollama", "nexa",
    "a1111", "comfyui", "invokeai", "mock", "heartmula", "speech",
)  # fmt: skip

FAMILIES = ("chat", "responses", "messages", "completions", "embeddings", "rerank", "images", "audio", "tts", "music")
WORKS, IN_PART, REFUSED = "✓", "in part", "refused"


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
    places = [str(ROOT / "tests" / name) for name in ("unit", "contracts", "system", "clients", "heavy")]
    options = [
        "--collect-only",
        "--assert=plain",
        "-qq",
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


class Section(NamedTuple):
    """What is proven of one route.

    `rows` are the fields that were tried with several kinds of backends, each with a word for each of `kinds`, "" where
    no test says. `alone` are, by word and kind, those that were tried with one kind only; `refused` those that were
    refused wherever they were tried.
    """

    route: str
    kinds: list[str]
    rows: list[list[str]]
    alone: list[tuple[str, str, list[str]]]
    refused: list[str]


def sections(proofs: set[Proof]) -> Iterator[Section]:
    """One for each route, chats first."""
    by_route = itertools.groupby(sorted(proofs, key=_place), key=lambda proof: proof.route)
    return itertools.starmap(_section, by_route)


def _place(proof: Proof) -> tuple[Any, ...]:
    family = proof.route.split("/")[2]
    return (FAMILIES.index(family) if family in FAMILIES else len(FAMILIES), *proof)


def _section(route: str, proofs: Iterable[Proof]) -> Section:
    cells: dict[str, dict[str, set[bool]]] = defaultdict(lambda: defaultdict(set))
    for proof in proofs:
        cells[proof.field][proof.backend].add(proof.refused)
    words = {field: {kind: _word(outcomes) for kind, outcomes in cells[field].items()} for field in sorted(cells)}
    refused = [field for field, told in words.items() if set(told.values()) == {REFUSED}]
    alone = [
        (word, kind, fields)
        for word, kind in itertools.product((WORKS, IN_PART), BACKENDS)
        if (fields := [field for field, told in words.items() if told == {kind: word}])
    ]
    several = [field for field, told in words.items() if len(told) > 1 and field not in refused]
    kinds = [kind for kind in BACKENDS if any(kind in words[field] for field in several)]
    rows = [[field, *(words[field].get(kind, "") for kind in kinds)] for field in several]
    return Section(route, kinds, rows, alone, refused)


def _word(outcomes: set[bool]) -> str:
    return WORKS if outcomes == {False} else REFUSED if outcomes == {True} else IN_PART
