"""What modules know of each other: rooms import in one direction, wire protocols are named in their files alone."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import gateway
import preflight
from gateway.backends.protocols import PROTOCOLS

ROOT = Path(gateway.__file__).parent
# Each line may import itself and the lines after it.
ORDER = (
    {"__main__", "app", "cli", "server", "shims"},
    {"api"},
    {"dialects"},
    {"features"},
    {"observe"},
    {"web"},
    {"backends"},
    {"access"},
    {"routing"},
    {"wire"},
    {"config"},
    {"background", "errors", "steps", "storage"},
    {"__init__"},
)
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}


def test_rooms_import_in_one_direction() -> None:
    upward = {
        f"{'.'.join(parts)} -> {imported}"
        for path in ROOT.rglob("*.py")
        for parts in [path.relative_to(ROOT).with_suffix("").parts]
        for imported in _rooms_imported(path)
        if RANK[imported] < RANK[parts[0]]
    }
    assert upward == set()


def _imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _rooms_imported(path: Path) -> set[str]:
    rooms = {name.split(".")[1] for name in _imported(path) if name.startswith("gateway.")}
    return {"__init__" if room == "__version__" else room for room in rooms}


def test_no_test_module_imports_another() -> None:
    """What two share stands in a module without tests of its own."""
    tests = Path(__file__).parents[1]
    found = {
        f"{path.relative_to(tests)} -> {name}"
        for path in tests.rglob("*.py")
        for name in _imported(path)
        if re.match(r"tests\.(\w+\.)*(test_|conftest\b)", name) and not name.startswith("tests.support")
    }
    assert found == set()


# What only has the name of a protocol.
NAMESAKES = {
    ("api/openapi.py", "openai"): "the tag of OpenAI's routes",
    ("features/conversations/pages.py", "openai"): "the tag of OpenAI's routes",
    ("web/endpoint.py", "openai"): "the tag of OpenAI's routes",
    ("backends/settings.py", "ollama"): "the earlier system's backend class",
    ("routing/settings.py", "ollama"): "the earlier system's backend class",
    ("routing/aliases.py", "ollama"): "the earlier system's backend class",
    ("features/music/pages.py", "heartmula"): "the earlier system's path of a piece's audio",
    ("features/music/routes.py", "heartmula"): "the same path",
}


def test_wire_protocols_are_named_in_their_own_files_alone() -> None:
    """In no text of the source: what else asks a protocol's record, and no name."""
    found = {
        (file, name)
        for path in ROOT.rglob("*.py")
        for file in [str(path.relative_to(ROOT))]
        for text in _texts(ast.parse(path.read_text()))
        for name in (each.name for each in PROTOCOLS)
        if re.search(rf"\b{name}\b", text) and not file.startswith(f"backends/protocols/{name}")
    }
    assert found == set(NAMESAKES)


def _texts(tree: ast.AST) -> list[str]:
    """The strings and bytes of a source, but for docstrings."""
    nodes = list(ast.walk(tree))
    docs = [node.value for node in nodes if isinstance(node, ast.Expr)]
    constants = [node.value for node in nodes if isinstance(node, ast.Constant) and node not in docs]
    return [str(value) for value in constants if isinstance(value, str | bytes)]


def test_wire_protocols_are_named_like_their_files_and_preflight_reads_them() -> None:
    names = [each.name for each in PROTOCOLS]
    assert names == preflight.PROTOCOLS
    files = {path.stem for path in (ROOT / "backends/protocols").iterdir()}
    assert set(names) <= files
