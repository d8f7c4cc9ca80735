"""docs/api.md explains each error code that the gateway can answer, under its status, and no other."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from gateway.backends.failures import FAILURES

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "gateway_pkg/src/gateway"
OF_A_RESPONSE = {"server_error"}  # within the object of /v1/responses, as OpenAI's
OTHER_SERVICES = SOURCE / "shims"  # they have APIs of their own


def codes(tree: ast.AST) -> Iterator[tuple[int | None, str]]:
    """Each code with its status, as given to ApiError; None where the status is no number in the source."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            status = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else None
            values = [keyword.value for keyword in node.keywords if keyword.arg == "code"]
        elif isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "code" for t in node.targets):
            status, values = None, [node.value]
        else:
            continue
        for value in values:
            yield from ((status if isinstance(status, int) else None, text) for text in texts(value))


def texts(value: ast.expr) -> Iterator[str]:
    """The strings that an expression can be."""
    match value:
        case ast.Constant(value=str(text)):
            yield text
        case ast.IfExp(body=one, orelse=other):
            yield from (*texts(one), *texts(other))
        case ast.BoolOp(values=several):
            yield from (text for each in several for text in texts(each))
        case ast.Call(func=ast.Attribute(value=ast.Dict(values=several))):
            yield from (text for each in several for text in texts(each))


def in_source() -> set[tuple[int | None, str]]:
    paths = [path for path in SOURCE.rglob("*.py") if OTHER_SERVICES not in path.parents]
    found = {code for path in paths for code in codes(ast.parse(path.read_text()))}
    found |= {(failure.status, failure.code) for failure in FAILURES.values() if failure.code}
    return {(status, code) for status, code in found if code not in OF_A_RESPONSE}


def in_table() -> dict[str, set[int]]:
    """Each code's statuses."""
    rows = re.findall(r"^\| (\d{3}) \| (.*?) \|", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    found: dict[str, set[int]] = {}
    for status, cell in rows:
        for code in re.findall(r"`(\w+)`", cell):
            found.setdefault(code, set()).add(int(status))
    return found


def test_the_table_has_every_code_and_no_other() -> None:
    table, source = in_table(), in_source()
    assert {code for _, code in source} - set(table) == set(), "not in the table"
    assert set(table) - {code for _, code in source} == set(), "not in the source"
    assert [(status, code) for status, code in source if status is not None and status not in table[code]] == []
    assert len(table) > 30
