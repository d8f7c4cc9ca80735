"""A request has one meaning: no known field or header twice, in another case, or under an escaped name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gateway.dialects.chat import CHAT_REQUEST
from gateway.errors import ApiError
from gateway.web.endpoint import parse
from gateway.web.known import known_fields
from gateway.web.multipart import Form
from hypothesis import given
from hypothesis import strategies as st

from tests.support.page import BODIES, read_page

MESSAGES = '"messages":[{"role":"user","content":"Hi"}]'
KNOWN = sorted(known_fields(CHAT_REQUEST)._names - {"messages"})
values = st.recursive(
    st.none() | st.integers() | st.text(max_size=5) | st.sampled_from(["model", '"model":1', "\\u006dodel", 'a"']),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*KNOWN, "y"]), inner, max_size=3),
    max_leaves=6,
)
unknown = st.dictionaries(st.text(max_size=4).map(lambda name: f"x-{name}"), values, max_size=3)


def escaped(name: str, at: int) -> str:
    return f"{name[:at]}\\u{ord(name[at]):04x}{name[at + 1 :]}"


@st.composite
def spellings(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A known name, and one or two ways to write it that are not the usual one alone."""
    name = draw(st.sampled_from(KNOWN))
    at = draw(st.integers(0, len(name) - 1))
    long_s = name.replace("s", "\u017f")  # Go takes it for the same letter
    other = draw(st.sampled_from([name.upper(), name.capitalize(), *([long_s] if long_s != name else [])]))
    again = draw(st.sampled_from([name, escaped(name, at)]))
    return name, draw(st.sampled_from([[other], [name, other], [other, name], [name, again], [again, name]]))


def written(pairs: list[tuple[str, str]], space: str) -> bytes:
    return b"{%b}" % f",{space}".join(f'"{name}":{space}{value}' for name, value in pairs).encode()


@given(spellings(), unknown, st.sampled_from(["", " ", "\n "]), st.randoms(use_true_random=False))
def test_a_known_field_twice_or_in_another_case_is_a_400(
    spelled: tuple[str, list[str]], others: dict[str, Any], space: str, random: Any
) -> None:
    name, spellings = spelled
    rest = [(json.dumps(key)[1:-1], json.dumps(value)) for key, value in others.items()]
    pairs = [*((key, "null") for key in spellings), *rest, ("messages", '[{"role":"user"}]')]
    random.shuffle(pairs)
    with pytest.raises(ApiError) as caught:
        parse(written(pairs, space), CHAT_REQUEST)
    assert (caught.value.status, caught.value.param) == (400, name)


@given(st.sets(st.sampled_from(KNOWN)), unknown, st.sampled_from(["", " ", "\n "]), st.booleans())
def test_any_other_body_is_taken(known: set[str], others: dict[str, Any], space: str, is_ascii: bool) -> None:
    """Also where known names stand in unknown fields and texts, and where an unknown field is there twice."""
    rest = [(json.dumps(key)[1:-1], json.dumps(value, ensure_ascii=is_ascii)) for key, value in others.items()]
    pairs = [*((key, "null") for key in known), *rest, *rest, ("messages", '[{"role":"user"}]')]
    assert parse(written(pairs, space), CHAT_REQUEST).keys() == {*known, *others, "messages"}


@pytest.mark.parametrize("again", ["include_usage", "include\\u005fusage"])
@pytest.mark.parametrize("space", ["", " "])
def test_fields_of_a_known_object_are_there_once(again: str, space: str) -> None:
    body = f'{{{space}{MESSAGES},"stream_options":{{"include_usage":true,"{again}":false}}}}'
    with pytest.raises(ApiError) as caught:
        parse(body.encode(), CHAT_REQUEST)
    assert caught.value.param == "stream_options.include_usage"


@pytest.mark.parametrize("path", BODIES)
def test_every_route_refuses_them(path: str, tmp_path: Path) -> None:
    """Each field of each route, and those of a chat, which every route passes on."""
    page = read_page(tmp_path)
    adapter = page.endpoints[path].request
    assert adapter is not None
    example = page.document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["example"]
    base = [(name, json.dumps(value)) for name, value in example.items()]
    for name in {*page.body(path)["properties"], "model", "tools", "max_tokens", "max_completion_tokens"}:
        doubled = base if name in example else [*base, (name, "null")]
        value = dict(doubled)[name]
        for pairs in ([*doubled, (name, value)], [*doubled, (name.upper(), value)]):
            with pytest.raises(ApiError) as caught:
                parse(written(pairs, ""), adapter)
            assert caught.value.param == name or name not in example, (name, caught.value)
    assert parse(written(base, ""), adapter) == example


def part(head: bytes, text: bytes = b"1") -> bytes:
    return b"--B\r\n%b\r\n\r\n%b\r\n" % (head, text)


MODEL = b'Content-Disposition: form-data; name="model"'


@pytest.mark.parametrize(
    "parts",
    [
        [MODEL, MODEL],
        [MODEL, MODEL.replace(b"model", b"Model")],
        [MODEL.replace(b"model", b"MODEL")],
        [MODEL + b'; name="a"'],
        [MODEL + b"; name*=utf-8''a"],
        [MODEL.replace(b"model", b"mo\\del")],
        [MODEL + b"\r\n" + MODEL.replace(b"model", b"a")],
        [MODEL + b"\r\n folded"],
        [MODEL + b"\nX: y"],
        [MODEL + b"\r\nContent-Transfer-Encoding: base64"],
        [MODEL.replace(b"form-data", b"attachment")],
        [MODEL + b'; x="' + b";" * 4_000],
    ],
)
def test_a_form_has_one_meaning(parts: list[bytes]) -> None:
    body = b"".join(map(part, parts)) + b"--B--\r\n"
    with pytest.raises(ApiError) as caught:
        Form(b"multipart/form-data; boundary=B", body).check(["model"])
    assert caught.value.status == 400


def test_a_form_s_boundary_is_there_once() -> None:
    with pytest.raises(ApiError):
        Form(b"multipart/form-data; boundary=B; boundary=C", part(MODEL) + b"--B--\r\n")


def test_lists_and_unknown_fields_of_a_form_may_come_again() -> None:
    again = [MODEL, *[MODEL.replace(b"model", name) for name in (b"include[]", b"include[]", b"x", b"x")]]
    form = Form(b'multipart/form-data; boundary="B"; charset=utf-8', b"".join(map(part, again)) + b"--B--\r\n")
    form.check(["model", "include[]"])
    assert form.text("model") == "1"
