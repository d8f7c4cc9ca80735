"""A multipart/form-data body: the place of each field in it, and the same body with another value of one.

A file may be most of what a request may be at all: nothing of it is decoded or copied but when a field changes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from gateway.errors import ApiError

FIELDS_MAX = 100
HEAD_MAX_BYTES = 8 * 1024  # of one part
TEXT_MAX_BYTES = 128 * 1024  # of a field that is read as a text
# RFC 2046, 5.1.1; those that need no quotes in a header.
_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
_TOKEN = re.compile(rb"[0-9A-Za-z'+_.-]+")
# One parameter of a header; the quotes' content is found again only as it stands, escapes and all.
_PARAMETER = re.compile(rb';[ \t]*([\w*-]+)[ \t]*=[ \t]*(?:"([^"\\]*(?:\\.[^"\\]*)*)"|([^\s";]*))[ \t]*')
# A backend may decode others than these (RFC 7578, 4.7, wants none at all), and read another value then.
_PLAIN_ENCODINGS = (b"7bit", b"8bit", b"binary")


@dataclass(frozen=True, slots=True)
class Field:
    """One field: its boundary begins at `at`, its content is `body[start:end]`; a file has a `filename`."""

    name: str
    filename: str | None
    at: int
    start: int
    end: int


class Form:
    """A parsed body."""

    def __init__(self, content_type: bytes | None, body: bytes) -> None:
        """Raises ApiError 400 for another content type, and for a malformed or incomplete body."""
        media, options = _options(content_type or b"")
        boundary = options.get(b"boundary", b"")
        if media != b"multipart/form-data" or not _BOUNDARY.fullmatch(boundary):
            raise _malformed("send multipart/form-data with a boundary")
        self.body = body
        self.fields = _fields(boundary, body)
        self._boundary = boundary

    @property
    def content_type(self) -> bytes:
        """The header value that tells a backend how to read the body."""
        quoted = self._boundary if _TOKEN.fullmatch(self._boundary) else b'"%b"' % self._boundary
        return b"multipart/form-data; boundary=" + quoted

    def check(self, known: Iterable[str]) -> None:
        """Raises ApiError 400 for a known field that is there twice, or in another case; lists (`…[]`) may be."""
        by_case = {name.casefold(): name for name in known}
        for name, count in Counter(field.name for field in self.fields).items():
            usual = by_case.get(name.casefold(), name)
            if usual != name:
                raise ApiError(400, f"'{usual}' must be written so, not '{name[:100]}'", param=usual, code="conflict")
            if count > 1 and name in by_case.values() and not name.endswith("[]"):
                self.find(name)

    def find(self, name: str) -> Field | None:
        """The field of this name, None without one; raises ApiError 400 when there are several."""
        found = [field for field in self.fields if field.name == name]
        if len(found) > 1:
            raise ApiError(400, f"'{name}' is there {len(found)} times: send it once", param=name, code="conflict")
        return found[0] if found else None

    def text(self, name: str) -> str | None:
        """The text of a field, None without one; raises ApiError 400 for a file, and for text other than UTF-8."""
        field = self.find(name)
        return self.text_of(field) if field is not None else None

    def text_of(self, field: Field) -> str:
        """Raises ApiError 400 for a file, and for text other than UTF-8."""
        try:
            if field.filename is None and field.end - field.start <= TEXT_MAX_BYTES:
                return self.body[field.start : field.end].decode()
        except UnicodeDecodeError:
            pass
        raise ApiError(400, f"'{field.name}': must be a text in UTF-8", param=field.name, code="invalid_value")

    def with_text(self, name: str, value: str) -> bytes:
        """The body with this value of a field, "" for a body without it; every other byte as it came."""
        field = self.find(name)
        if not value:
            return self.body if field is None else self.body[: field.at] + self.body[field.end + 2 :]
        if field is not None:
            return b"".join((self.body[: field.start], value.encode(), self.body[field.end :]))
        head = b'--%b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n' % (self._boundary, name.encode())
        return b"".join((head, value.encode(), b"\r\n", self.body.lstrip(b"\r\n")))


def _fields(boundary: bytes, body: bytes) -> tuple[Field, ...]:
    dashes = b"--" + boundary
    at = len(body) - len(body.lstrip(b"\r\n"))
    if not body.startswith(dashes, at):
        raise _malformed("it does not begin with its boundary")
    fields: list[Field] = []
    while not body.startswith(b"--", head := at + len(dashes)):
        head_end = body.find(b"\r\n\r\n", head, head + HEAD_MAX_BYTES)
        if not body.startswith(b"\r\n", head) or head_end < 0:
            raise _malformed("a boundary is not followed by the headers of a part")
        start = head_end + 4
        end = body.find(b"\r\n" + dashes, start)
        if end < 0:
            raise _malformed("it ends before its last boundary")
        if len(fields) >= FIELDS_MAX:
            raise _malformed(f"send at most {FIELDS_MAX} fields")
        fields.append(Field(*_disposition(body[head + 2 : head_end]), at, start, end))
        at = end + 2
    return tuple(fields)


def _disposition(head: bytes) -> tuple[str, str | None]:
    """A part's name, and its file's; the file's name may be "" where it is written in another way."""
    found: dict[bytes, bytes] = {}
    for line in head.split(b"\r\n"):
        key, colon, value = line.partition(b":")
        key = key.lower()
        if not colon or key != key.strip() or b"\n" in line or b"\r" in line:
            raise _malformed("each header of a part must be on one line")
        if key in found and key.startswith(b"content-"):
            raise _malformed(f"a part has '{key[:100].decode('latin-1')}' twice")
        found[key] = value.strip()
    if found.get(b"content-transfer-encoding", b"binary").lower() not in _PLAIN_ENCODINGS:
        raise _malformed("send the parts as they are, without Content-Transfer-Encoding")
    kind, options = _options(found.get(b"content-disposition", b""))
    name = options.get(b"name", b"")
    if kind != b"form-data" or not name or b"\\" in name or b"name*" in options:
        raise _malformed("each part needs a Content-Disposition of form-data with a plain name")
    filename = options.get(b"filename", b"" if b"filename*" in options else None)
    return name.decode("utf-8", "replace"), None if filename is None else filename.decode("utf-8", "replace")


def _options(header: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    """A header's value and its parameters, lower-case; raises ApiError 400 where one is there twice."""
    value, _, _ = header.partition(b";")
    options: dict[bytes, bytes] = {}
    at = len(value)
    while at < len(header) and (found := _PARAMETER.match(header, at)):
        key = found[1].lower()
        if key in options:
            raise _malformed(f"a header has '{key[:100].decode('latin-1')}' twice")
        options[key] = found[2] if found[2] is not None else found[3]
        at = found.end()
    if header[at:].strip(b"; \t"):
        raise _malformed("a header of it has parameters that cannot be read")
    return value.strip().lower(), options


def _malformed(what: str) -> ApiError:
    return ApiError(400, f"The body is not a form: {what}", code="invalid_multipart")
