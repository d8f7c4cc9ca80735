"""Each field that the OpenAPI page has is shown to work, or to be refused, by a test that says so."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support.ansible_run import ROOT
from tests.support.page import BODIES, FORMS, Page, read_page

PROGRAM = "import json; from docs.proofs import collect; print(json.dumps(sorted(collect())))"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return read_page(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def proven() -> set[tuple[str, str]]:
    """Routes and top-level fields. A proof of `text.format` is one of `text`.

    In a process of its own: pytest does not collect within pytest.
    """
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {(route, field.partition(".")[0]) for route, field, *_ in json.loads(done.stdout)}


@pytest.mark.parametrize("path", [*BODIES, *FORMS])
def test_each_field_of_a_request_is_proven(page: Page, proven: set[tuple[str, str]], path: str) -> None:
    """On its route, or on another that reads its body by the same declaration."""
    fields, request = page.body(path)["properties"], page.endpoints[path].request
    assert fields
    alike = {other for other, one in page.endpoints.items() if other == path or (request and one.request is request)}
    assert [field for field in fields if not any((other, field) in proven for other in alike)] == []
