"""The pages hold together: links lead somewhere, and what they name is there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gateway.app import FEATURES, load_settings, sections
from gateway.backends.records import load_backends
from gateway.observe.metrics import FAMILIES

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "SECURITY.md", *ROOT.glob("docs/*.md"), *ROOT.glob("roles/*/README.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
SETTING = re.compile(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b")
# Environment variables of others: of SDKs, of examples, and what `make up` prints.
NOT_OURS = {"OPENAI_API_KEY", "OPENAI_BASE_URL", "ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL"}
NOT_OURS |= {
    "ANTHROPIC_MODEL",
    "GATEWAY_TOKEN",
    "OPENAI_API_BASE",
    "VLLM_API_KEY",
    "TOKEN_FILE",
    "COUNTER_MAX",
    "UPDATE_GOLDEN",
    "TYPE_CHECKING",
}
# What the OpenAPI page leaves out: words to proxies and browsers, HTTP's own, and what few answers have.
NOT_ON_THE_PAGE = {"access-control-allow-origin", "content-encoding", "x-accel-buffering"}
NOT_ON_THE_PAGE |= {"anthropic-version", "x-gateway-ignored"}


def anchors(text: str) -> Iterator[str]:
    """The headings' anchors, as GitHub makes them."""
    for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def broken(page: Path, text: str) -> Iterator[str]:
    """The links in a page's text to what is not there."""
    for link in LINK.findall(FENCE.sub("", text)):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name
        exists = not name or target.exists()
        if not exists or (anchor and anchor not in anchors(target.read_text() if name else text)):
            yield link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert list(broken(page, page.read_text())) == []


def test_the_readme_leads_to_every_page() -> None:
    linked = set(LINK.findall((ROOT / "README.md").read_text()))
    assert [page.name for page in ROOT.glob("docs/*.md") if f"docs/{page.name}" not in linked] == []


def test_each_promise_is_held_by_tests_that_there_are() -> None:
    rows = re.findall(r"^\| [A-Z].* \| (`.*`) \|$", (ROOT / "SECURITY.md").read_text(), re.MULTILINE)
    assert len(rows) > 10
    named = [name.split("::") for row in rows for name in re.findall(r"`(\S+::\w+)`", row)]
    assert [name for file, name in named if f"def {name}(" not in (ROOT / "tests" / file).read_text()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_settings_that_are_named_exist(page: Path) -> None:
    known = {name.upper() for section in sections() for name in section.model_fields} | NOT_OURS
    assert sorted(set(SETTING.findall(page.read_text())) - known) == []


def test_metrics_that_are_named_exist() -> None:
    families = [*FAMILIES, *(family for feature in FEATURES for family in feature.families)]
    names = {family.name + ("_total" if family.kind == "counter" else "") for family in families}
    names |= {f"{family.name}_bucket" for family in FAMILIES if family.kind == "histogram"}
    assert set(re.findall(r"\bgateway_\w+", (ROOT / "docs/observe.md").read_text())) <= names


def test_the_table_of_headers_has_every_header_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    from docs.generate import openapi

    section = (ROOT / "docs/api.md").read_text().partition("## Headers")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`.+?) \|", section, re.MULTILINE)
    assert {name.lower() for cell in cells for name in re.findall(r"`(.+?)`", cell)} == headers(
        openapi()
    ) | NOT_ON_THE_PAGE


def test_the_request_log_s_fields_are_those_that_are_described() -> None:
    section = (ROOT / "docs/observe.md").read_text().partition("## The request log\n")[2].partition("\nStatus 499")[0]
    source = ROOT / "gateway_pkg/src/gateway"
    trees = [ast.parse((source / name).read_text()) for name in ("observe/record.py", "backends/registry.py")]
    (log_fields,) = (
        node for node in ast.walk(trees[1]) if isinstance(node, ast.FunctionDef) and node.name == "_log_fields"
    )
    assert set(re.findall(r"`(\w+)`", section)) == keys(trees[0]) | keys(log_fields)


def keys(tree: ast.AST) -> set[str]:
    """The strings by which a source writes into dicts."""
    found: list[ast.expr | None] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            found += node.keys
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            found.append(node.slice)
    return {each.value for each in found if isinstance(each, ast.Constant) and isinstance(each.value, str)}


def test_the_example_of_a_backends_file_is_one(tmp_path: Path) -> None:
    example = re.search(r"```yaml\n(backends:.*?)```", (ROOT / "docs/add-a-backend.md").read_text(), re.DOTALL)
    assert example is not None
    path = tmp_path / "backends.yaml"
    path.write_text(example[1])
    settings = load_settings(gateway_bearer_token="a-token-of-the-example", gateway_backends_path=path)
    records = load_backends(settings, {"VLLM_API_KEY": "key"}).records
    assert {name: record.protocol for name, record in records.items()} == {
        "ollama@here": "ollama",
        "vllm@gpu1": "openai",
    }


def headers(page: dict[str, Any]) -> set[str]:
    """Those of the requests and answers of an OpenAPI page."""
    found = {*page["components"]["headers"]}
    found |= {name for name, parameter in page["components"]["parameters"].items() if parameter["in"] == "header"}
    for item in page["paths"].values():
        for operation in item.values():
            found |= {parameter["name"] for parameter in operation["parameters"] if parameter.get("in") == "header"}
            found |= {name for answer in operation["responses"].values() for name in answer["headers"]}
    return {name.lower() for name in found}
