"""Multipart bodies, read in place: against what a well-kept client writes, and against what nobody should."""

import httpx
import pytest
from gateway.errors import ApiError
from gateway.web.multipart import FIELDS_MAX, HEAD_MAX_BYTES, Form
from hypothesis import given
from hypothesis import strategies as st

TYPE = b"multipart/form-data; boundary=B"
BODY = (
    b'--B\r\nContent-Disposition: form-data; name="model"\r\n\r\n\r\n'
    b'--B\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'
    b"RIFF\r\n--A\r\n--\r\n"
    b"--B--\r\n"
)
names = st.text(st.characters(codec="utf-8", exclude_characters='"\\\r\n', exclude_categories=["C"]), min_size=1)
texts = st.text(st.characters(codec="utf-8"))


def encoded(fields: dict[str, str], content: bytes) -> tuple[bytes, bytes]:
    """As httpx, which OpenAI's SDK is built on, writes them."""
    request = httpx.Request("POST", "http://x", data=fields, files={"file": ("a.wav", content)})
    return request.headers["content-type"].encode(), request.read()


@given(st.dictionaries(names.filter(lambda name: name != "file"), texts, max_size=5), st.binary(max_size=200))
def test_a_client_s_form_is_read_as_it_was_meant(fields: dict[str, str], content: bytes) -> None:
    content_type, body = encoded(fields, content)
    form = Form(content_type, body)
    assert {field.name for field in form.fields} == {*fields, "file"}
    for name, text in fields.items():
        assert form.text(name) == text
    file = form.find("file")
    assert file is not None
    assert file.filename == "a.wav"
    assert body[file.start : file.end] == content


@given(st.binary(max_size=200), texts)
def test_another_model_changes_nothing_else(content: bytes, model: str) -> None:
    content_type, body = encoded({"model": "auto", "language": "en"}, content)
    changed = Form(content_type, Form(content_type, body).with_text("model", model))
    assert changed.text("model") == (model or None)
    assert not model or changed.with_text("model", "auto") == body
    file = changed.find("file")
    assert file is not None
    assert changed.body[file.start : file.end] == content


def test_an_empty_field_is_filled_and_a_missing_one_added() -> None:
    form = Form(TYPE, BODY)
    assert form.text("model") == ""
    assert Form(TYPE, form.with_text("model", "whisper")).text("model") == "whisper"
    assert form.text("language") is None
    added = Form(TYPE, form.with_text("language", "en"))
    assert added.text("language") == "en"
    assert len(added.fields) == 3
    assert added.body.endswith(BODY)


def test_the_content_type_names_the_same_boundary() -> None:
    assert Form(TYPE, BODY).content_type == TYPE
    quoted = b'multipart/form-data; boundary="B: (1)"'
    assert Form(quoted, BODY.replace(b"--B", b"--B: (1)")).content_type == quoted


PART = b'--B\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n'


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (None, BODY),
        (b"application/json", b"{}"),
        (b"multipart/form-data", BODY),
        (b"multipart/form-data; boundary=", BODY),
        (b'multipart/form-data; boundary="a\x01b"', BODY),
        (b"multipart/form-data; boundary=" + b"x" * 71, BODY),
        (TYPE, b""),
        (TYPE, b"preamble\r\n" + BODY),
        (TYPE, BODY[:-6]),
        (TYPE, PART + b"--Bx"),
        (TYPE, b'--B\r\nContent-Disposition: form-data; name=""\r\n\r\n1\r\n--B--'),
        (TYPE, b"--B\r\nContent-Type: text/plain\r\n\r\n1\r\n--B--"),
        (TYPE, b"--B\r\nX: " + b"x" * HEAD_MAX_BYTES + b"\r\n\r\n1\r\n--B--"),
        (TYPE, PART * (FIELDS_MAX + 1) + b"--B--"),
    ],
)
def test_malformed_forms_are_a_400(content_type: bytes | None, body: bytes) -> None:
    with pytest.raises(ApiError) as error:
        Form(content_type, body)
    assert (error.value.status, error.value.code) == (400, "invalid_multipart")


@given(st.binary(max_size=60), st.integers(0, len(BODY)))
def test_garbage_raises_only_api_errors(garbage: bytes, at: int) -> None:
    for body in (garbage, BODY[:at] + garbage + BODY[at:], BODY[:at], b"--B" + garbage):
        try:
            form = Form(TYPE, body)
        except ApiError as error:
            assert error.status == 400
        else:
            assert all(0 <= field.start <= field.end <= len(body) for field in form.fields)


@pytest.mark.parametrize(
    "body",
    [
        PART + PART + b"--B--",
        b'--B\r\nContent-Disposition: form-data; name="a"\r\n\r\n\xff\r\n--B--',
        b'--B\r\nContent-Disposition: form-data; name="a"; filename="f"\r\n\r\n1\r\n--B--',
        b'--B\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + b"x" * 140_000 + b"\r\n--B--",
    ],
    ids=["twice", "not UTF-8", "a file", "too long"],
)
def test_a_field_other_than_text_is_a_400_that_names_it(body: bytes) -> None:
    with pytest.raises(ApiError) as error:
        Form(TYPE, body).text("a")
    assert (error.value.status, error.value.param) == (400, "a")
