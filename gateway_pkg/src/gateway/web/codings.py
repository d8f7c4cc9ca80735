"""Decodes a request's body by its `Content-Encoding`, to at most so many bytes."""

from __future__ import annotations

import zlib

from gateway.errors import ApiError

CODINGS = ("gzip", "deflate", "br", "zstd")
ZSTD_WINDOW_BYTES = 8 << 20  # RFC 9659
MEMBERS_MAX = 100  # of gzip: the rest of the body is copied for each
CODINGS_MAX = 4  # one after the other


def decoded(body: bytes, codings: bytes, limit: int) -> bytes | None:
    """The body without its codings, of which the last is undone first; None where it is more than `limit` bytes.

    Raises ApiError 415 for an unknown coding, 400 for a body that is not in its coding.
    """
    names = [name.strip().lower().decode("latin-1") for name in codings.split(b",")]
    names = [name.removeprefix("x-") for name in names if name not in ("", "identity")]
    for name in names:
        if name not in CODINGS or len(names) > CODINGS_MAX:
            words = f"Content-Encoding '{name[:100]}' is not supported; send the body in {', '.join(CODINGS)}, or plain"
            raise ApiError(
                415,
                words,
                code="request_body_encoding_unsupported",
                headers=((b"accept-encoding", ", ".join(CODINGS).encode()),),
            )
    for name in reversed(names):
        try:
            undone = {"br": _brotli, "zstd": _zstd}.get(name, _zlib)(body, limit)
        except ValueError as error:
            message = f"The body is not in the coding '{name}' that its Content-Encoding names: {error}"
            raise ApiError(400, message, code="invalid_encoding") from None
        if undone is None:
            return None
        body = undone
    return body


def _zlib(body: bytes, limit: int) -> bytes | None:
    """gzip, of one or several members, and deflate, also without zlib's head, as some clients send it."""
    out = b""
    windows = 15 + 32 if body[:1] in (b"\x1f", b"\x78") else -15
    try:
        for _ in range(MEMBERS_MAX):
            if not body:
                return out
            stream = zlib.decompressobj(windows)
            out += stream.decompress(body, limit + 1 - len(out))
            if len(out) > limit:
                return None
            if not stream.eof:
                raise ValueError("it is cut")
            body = stream.unused_data.lstrip(b"\0")
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if body:
        raise ValueError(f"it has more than {MEMBERS_MAX} members")
    return out


def _brotli(body: bytes, limit: int) -> bytes | None:
    import brotli  # as the next: few clients send it

    stream = brotli.Decompressor()
    out = bytearray()
    try:
        piece = stream.process(body, output_buffer_limit=limit + 1)
        while piece and len(out) <= limit:
            out += piece
            piece = b"" if stream.is_finished() else stream.process(b"", output_buffer_limit=limit + 1)
    except brotli.error as error:
        raise ValueError(str(error)) from None
    if len(out) > limit:
        return None
    if not stream.is_finished():
        raise ValueError("it is cut")
    return bytes(out)


def _zstd(body: bytes, limit: int) -> bytes | None:
    import zstandard

    decoder = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES)
    try:
        with decoder.stream_reader(body) as reader:
            out: bytes = reader.read(limit + 1)
        if len(out) > limit:
            return None
        # The reader does not tell a cut frame from a whole one.
        frame = decoder.decompressobj()
        frame.decompress(body)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from None
    if not frame.eof or frame.unused_data:
        raise ValueError("it is not one whole frame")
    return out
