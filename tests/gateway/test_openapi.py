"""The OpenAPI page tells the truth about the hot routes: its schemas take the bodies that the gateway takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import orjson
import pytest
from gateway import app
from gateway.api.endpoint import parse
from gateway.api.hot import CHAT, COMPLETIONS, EMBEDDINGS
from gateway.http.errors import ApiError
from gateway.settings import load_settings
from hypothesis import given
from hypothesis import strategies as st

from tests.gateway.conftest import TOKEN, write_files

VALUES: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from([None, True, False, 0.5, "float", "base64", {}, [{}], [[1, 2]], {"include_usage": True}]),
    st.sampled_from([[{"role": "user"}], [{"role": "user", "content": 5}], [{"role": "user", "content": [{}]}]]),
    st.integers(-5, 5) | st.text(max_size=3),
    st.lists(st.text(max_size=2) | st.integers(0, 9), max_size=2),
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home: Path = tmp_path_factory.mktemp("page")
    write_files(home, "http://127.0.0.1:1/v1")
    settings = load_settings(
        gateway_bearer_token=TOKEN,
        gateway_backends_path=home / "backends.yaml",
        model_aliases_path=home / "model_aliases.json",
        request_log_enabled=False,
    )
    edge: Any = app.House(settings).api
    document: dict[str, Any] = edge._pages.openapi()
    return document


@pytest.mark.parametrize("route", [CHAT, COMPLETIONS, EMBEDDINGS], ids=lambda route: route.op)
def test_page_and_gateway_take_the_same_bodies(page: dict[str, Any], route: Any) -> None:
    schema = page["paths"][route.path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    validator = jsonschema.Draft202012Validator(schema | {"components": page["components"]})
    fields = st.sampled_from(sorted(schema["properties"]))
    required = {"messages": [{"role": "user", "content": "Hi"}], "prompt": "Hi", "input": "Hi"}
    base = {name: required[name] for name in schema["required"]}

    @given(st.dictionaries(fields, VALUES, max_size=3), st.sets(st.sampled_from(schema["required"])))
    def check(changes: dict[str, Any], left_out: set[str]) -> None:
        body = {name: value for name, value in (base | changes).items() if name not in left_out}
        try:
            parse(orjson.dumps(body), route.request)
            taken = True
        except ApiError:
            taken = False
        assert taken == validator.is_valid(body), body

    check()
