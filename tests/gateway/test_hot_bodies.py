"""Bodies of the hot routes: what is checked, what is changed, and that the OpenAPI page says the same."""

import json
from typing import Any

import pytest
from gateway.api.hot import HOT_ROUTES, parse
from gateway.http.errors import ApiError
from gateway.routing.rename import Rename
from hypothesis import given
from hypothesis import strategies as st

CHAT, COMPLETIONS, EMBEDDINGS = HOT_ROUTES
keys = st.one_of(st.sampled_from(["model", "messages", "mod\u0065l"]), st.text(max_size=6))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(keys, values, max_size=4), st.text(max_size=8), st.booleans())
def test_only_the_model_is_changed(fields: dict[str, Any], model: str, ascii_only: bool) -> None:
    body = json.dumps(fields, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    try:
        changed = json.loads(Rename(was if isinstance(was := fields.get("model"), str) else "", model).apply(body))
    except UnicodeDecodeError:
        return  # not UTF-8, which `parse` refuses before
    assert changed == {**fields, "model": model}


@pytest.mark.parametrize(
    ("body", "changed"),
    [
        (
            b'{ "model" : "a", "x": 1.0, "n": 1180591620717411303424 }',
            b'{"model":"b","x":1.0,"n":1180591620717411303424}',
        ),
        (b'{ "x": 1e5, "model": "a" ,"y":[ ]}', b'{ "x": 1e5, "model": "b" ,"y":[ ]}'),
        (b'{"model":"a\\"b","x":1e5}', b'{"model":"b","x":1e5}'),
        (b'{"x":{"model":"a"},"model":"a"}', b'{"x":{"model":"a"},"model":"b"}'),
        (b'{"\\u006dodel":"a","x":{"model":"a"}}', b'{"model":"b","x":{"model":"a"}}'),
        (b'{"n":1180591620717411303424}', b'{"n":1180591620717411303424,"model":"b"}'),
    ],
)
def test_other_bytes_stay_as_they_came(body: bytes, changed: bytes) -> None:
    assert Rename(json.loads(body).get("model", ""), "b").apply(body) == changed


@pytest.mark.parametrize(
    ("route", "body", "param"),
    [
        (CHAT, {}, "messages"),
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": [{"content": "x"}]}, "messages.0.role"),
        (CHAT, {"messages": "hello"}, "messages"),
        (CHAT, {"messages": [{"role": "user"}], "stream": "yes"}, "stream"),
        (CHAT, {"messages": [{"role": "user"}], "temperature": "hot"}, "temperature"),
        (CHAT, {"messages": [{"role": "user"}], "model": 5}, "model"),
        (COMPLETIONS, {"model": "x"}, "prompt"),
        (EMBEDDINGS, {"input": 5}, "input"),
        (EMBEDDINGS, {"input": "x", "encoding_format": "hex"}, "encoding_format"),
    ],
)
def test_wrong_field_is_named(route: Any, body: Any, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse(json.dumps(body).encode(), route)
    assert caught.value.status == 400
    assert caught.value.param == param
    assert param in caught.value.message


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"messages": NaN}', b"\xff", b"[" * 5000, b'"\\ud800"'])
def test_anything_but_an_object_is_a_400(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        parse(body, CHAT)
    assert caught.value.status == 400


@given(st.binary(max_size=60))
def test_no_bytes_raise_anything_else(body: bytes) -> None:
    try:
        assert isinstance(parse(body, CHAT), dict)
    except ApiError as error:
        assert error.status == 400


def test_unknown_fields_and_null_are_taken() -> None:
    body = {"messages": [{"role": "user", "content": None, "x": 1}], "stream": None, "new_field": {"a": [1]}}
    assert parse(json.dumps(body).encode(), CHAT) == body
