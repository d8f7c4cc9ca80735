"""The OpenAPI page tells the truth: it is well made, has every route, and takes the bodies that the gateway takes."""

from __future__ import annotations

from typing import Any

import jsonschema
import orjson
import pytest
import schemathesis
from gateway.api.openapi import ROUTING_HEADERS
from gateway.errors import ApiError
from gateway.web.endpoint import parse
from hypothesis import given
from hypothesis import strategies as st

from tests.support.page import BODIES, FORMS, REQUIRED, Page, read_page
from tests.support.pieces import objects_in

# Of each kind some that a field takes and some that it does not, whichever field it is put into.
VALUES: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(
        [None, True, False, 0, 1, 0.5, 3.5, -0.5, 5_000, 2**40, "", "x" * 501, {}, [], [{}], [[1, 2]], [1, "x"]]
    ),
    st.sampled_from(["float", "base64", "url", "b64_json", "png", "auto", "low", "detailed", "standard", "sse", "zzz"]),
    st.sampled_from([[{"role": "user"}], [{"role": "user", "content": 5}], [{"role": "user", "content": [{}]}]]),
    st.sampled_from([[{"role": "user", "content": [{"type": "text"}]}], [{"role": "zzz", "content": ""}]]),
    st.sampled_from([{"include_usage": True}, {"include_obfuscation": 1}, {"user_id": "u"}, {"zzz": "x" * 513}]),
    st.sampled_from([{"type": "auto"}, {"type": "zzz"}, {"type": "enabled", "budget_tokens": 1_023}]),
    st.sampled_from([{"type": "json_schema", "schema": {}}, {"effort": "low"}, {"summary": "zzz"}, {"format": {}}]),
    st.sampled_from([[{"name": ""}], [{"name": "f", "strict": True}], [{"text": "t"}, "u"], [{"text": 5}]]),
    st.integers(-5, 5) | st.text(max_size=3),
    st.lists(st.text(max_size=2) | st.integers(0, 9), max_size=2),
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return read_page(tmp_path_factory.mktemp("page"))


def test_document_is_openapi(page: Page) -> None:
    schemathesis.openapi.from_dict(page.document).validate()  # against the standard's own schema
    assert page.document["openapi"].startswith("3.1.")
    shared = list(page.document["components"]["schemas"].values())
    for within in objects_in(page.document):
        if isinstance(reference := within.get("$ref"), str):
            found: Any = page.document
            for part in reference.removeprefix("#/").split("/"):
                found = found[part]
    for schema in [*shared, *(each["schema"] for each in objects_in(page.document) if "schema" in each)]:
        jsonschema.Draft202012Validator.check_schema(schema)


def test_every_route_is_there_under_a_name_of_its_own(page: Page) -> None:
    described = {(method, path) for method, path, _ in page.operations()}
    shown = [route for route in page.routes if route.include_in_schema]
    served = {(method.lower(), route.path_format) for route in shown for method in route.methods or ()}
    assert described == served | {("post", path) for path in page.endpoints}
    hidden = {route.path for route in page.routes if not route.include_in_schema}
    assert {path for path in hidden if not (path or "").startswith("/docs")} == {
        "/openapi.json",
    }
    names = [operation["operationId"] for _, _, operation in page.operations()]
    assert len(set(names)) == len(names)


def test_every_tag_has_words(page: Page) -> None:
    used = {tag for _, _, operation in page.operations() for tag in operation["tags"]}
    assert {tag["name"] for tag in page.document["tags"] if tag["description"]} == used


def test_every_link_leads_to_an_operation_with_its_parameters(page: Page) -> None:
    operations = {operation["operationId"]: (path, operation) for _, path, operation in page.operations()}
    links = [
        link
        for _, _, operation in page.operations()
        for response in operation["responses"].values()
        for link in response.get("links", {}).values()
    ]
    assert {link["operationId"] for link in links} == {
        "cancel_job",
        "delete_response",
        "get_image",
        "get_job",
        "get_model",
        "get_response",
        "list_input_items",
        "responses",
    }
    for link in links:
        path, _ = operations[link["operationId"]]
        assert all(f"{{{name}}}" in path for name in link.get("parameters", ()))


def test_errors_and_headers_of_every_answer(page: Page) -> None:
    for method, path, operation in page.operations():
        responses = operation["responses"]
        is_open = "security" not in operation
        expected = {"403", "500"} if is_open else {"401", "403", "429", "500"}
        if path in page.endpoints:
            expected |= {"400", "404", "413", "422", "4XX", "502", "503", "504"}
        assert expected <= responses.keys(), (method, path)
        for status, response in responses.items():
            assert "X-Request-Id" in response["headers"]
            assert ("Retry-After" in response["headers"]) >= (status in ("429", "503"))
            assert ("WWW-Authenticate" in response["headers"]) == (status == "401")
            if path in page.endpoints and status != "401":
                assert set(ROUTING_HEADERS) <= response["headers"].keys()
            if status[0] in "45" and "schema" in (about := response["content"].get("application/json", {})):
                shape = "AnthropicError" if path.startswith("/v1/messages") else "Error"
                is_own = (path, status) in (("/v1/gateway/reload", "409"), ("/readyz", "503"))
                assert is_own or about["schema"] == {"$ref": f"#/components/schemas/{shape}"}


def test_every_post_is_tried(page: Page) -> None:
    """The two tests below go over all there is."""
    assert {path for path, endpoint in page.endpoints.items() if endpoint.form is None} == set(BODIES)
    assert {path for path, endpoint in page.endpoints.items() if endpoint.form is not None} == set(FORMS)


@pytest.mark.parametrize("path", BODIES)
def test_what_the_page_offers_to_send_is_taken(page: Page, path: str) -> None:
    adapter = page.endpoints[path].request
    assert adapter is not None
    example = page.document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["example"]
    assert parse(orjson.dumps(example), adapter) == example


@pytest.mark.parametrize("path", BODIES)
def test_page_and_gateway_take_the_same_bodies(page: Page, path: str) -> None:
    reference = page.document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    schema = page.body(path)
    validator = jsonschema.Draft202012Validator({**reference, "components": page.document["components"]})
    adapter = page.endpoints[path].request
    assert adapter is not None
    fields = st.sampled_from(sorted(schema["properties"]))
    required = schema.get("required", [])
    base = {name: REQUIRED[name] for name in required}
    seen = set()

    @given(st.dictionaries(fields, VALUES, max_size=2), st.sets(st.sampled_from(required)) if required else st.just(()))
    def check(changes: dict[str, Any], left_out: set[str]) -> None:
        body = {name: value for name, value in (base | changes).items() if name not in left_out}
        try:
            parse(orjson.dumps(body), adapter)
            taken = True
        except ApiError:
            taken = False
        seen.add(taken)
        assert taken == validator.is_valid(body), body

    check()
    assert seen == {True, False}


@pytest.mark.parametrize("path", FORMS)
def test_forms_have_a_file(page: Page, path: str) -> None:
    assert {"file", "image"} & set(page.body(path)["required"])
