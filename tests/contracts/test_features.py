"""Each feature absent, present, and with settings that are refused; and the one that docs/add-a-feature.md adds."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import apsw
import gateway.features
import pytest
from gateway.app import FEATURES, App, load_settings, schema
from gateway.config.reload import Source
from gateway.errors import Refusal
from gateway.features.conversations.feature import Conversations
from gateway.features.face import Core, Feature

from tests.support.gateways import write_files
from tests.support.in_process import http, in_process
from tests.support.page import built

PAGE = Path(__file__).parents[2] / "docs/add-a-feature.md"
UNREACHED = "http://127.0.0.1:1/v1"
NUMBERS = [
    (feature, name)
    for feature in FEATURES
    if feature.section is not None
    for name, field in feature.section.model_fields.items()
    if field.annotation in (int, float, bool)
]


def routes(app: App) -> set[tuple[str, str]]:
    paths = app.pages.made().openapi()["paths"]
    return {(method, path) for path, operations in paths.items() for method in operations}


def needed_by(feature: type[Feature]) -> set[type[Feature]]:
    return {feature, *(one for one in FEATURES if feature is Conversations and one.name == "responses")}


@pytest.mark.parametrize("feature", FEATURES)
def test_a_feature_that_is_absent_takes_along_what_is_its_own_and_no_more(tmp_path: Path, feature: Any) -> None:
    write_files(tmp_path, UNREACHED)
    left_out = needed_by(feature)
    features = [one for one in FEATURES if one not in left_out]
    whole, rest = built(tmp_path, FEATURES), built(tmp_path, features)
    made = [whole.features[one] for one in left_out]
    own = {("post", endpoint.path) for one in made for endpoint, _ in one.endpoints}
    for router in (router for one in made if (router := one.router()) is not None):
        own |= {(method.lower(), route.path) for route in router.routes for method in route.methods}  # type: ignore[attr-defined]  # FastAPI's
    assert own
    assert routes(whole) - routes(rest) == {(method, path) for method, path in own if method != "head"}
    assert routes(rest) < routes(whole)
    assert schema() == {**schema(features), **{one.name: one.migrations for one in left_out if one.migrations}}
    assert set(rest.problems()) == set(whole.problems()) == set()


@pytest.mark.parametrize(("feature", "name"), NUMBERS)
def test_a_setting_of_a_feature_is_refused_by_its_name_where_the_feature_is(feature: Any, name: str) -> None:
    with pytest.raises(Refusal, match=f"^{name.upper()}: "):
        load_settings(None, FEATURES, **{name: "much"})
    load_settings(None, [one for one in FEATURES if one is not feature], **{name: "much"})


def test_names_are_each_feature_s_own() -> None:
    assert len({feature.name for feature in FEATURES} | {"access", "earlier"}) == len(FEATURES) + 2


def test_a_policy_key_has_effect_where_a_feature_enforces_it(tmp_path: Path) -> None:
    write_files(tmp_path, UNREACHED)

    class Shell(Feature):
        name = "shell"
        policy_keys = frozenset({"tools_allow_shell"})

    without, with_it = built(tmp_path, FEATURES).unenforced, built(tmp_path, [*FEATURES, Shell]).unenforced
    assert without - with_it == {"tools_allow_shell"}
    assert {"memory_namespace", "tools_allowlist", "tools_rate_limit_rps"} <= with_it


def test_a_feature_s_file_is_reloaded_with_the_others(tmp_path: Path) -> None:
    write_files(tmp_path, UNREACHED)
    file, in_force = tmp_path / "specs.json", []
    file.write_text("[1]")

    class Specs(Feature):
        name = "specs"

        def __init__(self, core: Core) -> None:
            source = Source("specs.json", lambda: json.loads(file.read_text()))
            core.reloader.follow(lambda: in_force.append(source.content), source)

    app = built(tmp_path, [*FEATURES, Specs])
    for text in ("[2]", "["):
        file.write_text(text)
        report = asyncio.run(app.reloader.reload())
        assert report.ok is (text == "[2]")
        assert "backends.yaml" in report.reloaded[0]
    assert in_force == [[2], [2]]
    assert [kept.file for kept in report.kept] == ["specs.json"]


@pytest.fixture
def counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Feature]]:
    """The feature of the page, as somebody who follows it writes it."""
    room = tmp_path / "counter"
    room.mkdir()
    for name, source in zip(
        ("feature.py", "pages.py"), re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL), strict=True
    ):
        (room / name).write_text(source)
    (room / "__init__.py").touch()
    monkeypatch.setattr(gateway.features, "__path__", [*gateway.features.__path__, str(tmp_path)])
    yield import_module("gateway.features.counter.feature").Counter
    for name in ("", ".feature", ".pages"):
        sys.modules.pop(f"gateway.features.counter{name}", None)


def test_the_feature_of_the_page_is_one(tmp_path: Path, counter: type[Feature]) -> None:
    features = [*FEATURES, counter]

    async def count(**settings: Any) -> list[tuple[int, Any]]:
        answers = []
        async with in_process(tmp_path, lambda *_: http(b"{}"), features=features, **settings) as gateway:
            for _ in range(2):
                told = await gateway.post("/v1/counter", b"")
                answers.append((told.status, json.loads(told.body)))
            assert ("post", "/v1/counter") in routes(gateway.app)
        return answers

    async def test() -> None:
        assert await count() == [(200, {"count": 1}), (200, {"count": 2})]
        third, (status, error) = await count(counter_max=3)
        assert third == (200, {"count": 3})
        assert (status, error["error"]["code"]) == (409, "counter_full")

    asyncio.run(test())
    connection = apsw.Connection(str(tmp_path / "gateway.sqlite"))
    assert connection.execute("SELECT version FROM schema_namespaces WHERE name = 'counter'").get == 1
    assert connection.execute("SELECT count FROM counters").get == 3
    connection.close()
    with pytest.raises(Refusal, match="COUNTER_MAX: "):
        load_settings(None, features, counter_max=0)
