"""Bodies in a coding: undone whatever is in them, bounded, and refused where they are cut."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable

import brotli
import pytest
import zstandard
from gateway.errors import ApiError
from gateway.web.codings import MEMBERS_MAX, decoded
from hypothesis import given
from hypothesis import strategies as st


def raw_deflate(data: bytes) -> bytes:
    stream = zlib.compressobj(wbits=-15)
    return stream.compress(data) + stream.flush()


CODERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": lambda data: gzip.compress(data[:1]) + gzip.compress(data[1:]),
    "deflate": zlib.compress,
    "DEFLATE": raw_deflate,
    "br": brotli.compress,
    "zstd": zstandard.compress,
    "identity": bytes,
    "gzip, br": lambda data: brotli.compress(gzip.compress(data)),
}
CODED = [name for name in CODERS if name != "identity"]


@pytest.mark.parametrize("coding", CODERS)
@given(data=st.binary(max_size=2_000).map(lambda data: data * 50))
def test_body_is_what_was_coded(coding: str, data: bytes) -> None:
    assert decoded(CODERS[coding](data), coding.encode(), 100_000) == data


@pytest.mark.parametrize("coding", CODED)
def test_body_beyond_the_limit_is_not_undone(coding: str) -> None:
    bomb = CODERS[coding](bytes(20_000_000))
    assert decoded(bomb, coding.encode(), 1_000_000) is None


@pytest.mark.parametrize("coding", CODED)
@given(data=st.binary(min_size=50, max_size=500), cut=st.integers(1, 20))
def test_cut_body_is_refused(coding: str, data: bytes, cut: int) -> None:
    with pytest.raises(ApiError) as error:
        decoded(CODERS[coding](data)[:-cut], coding.encode(), 1_000)
    assert (error.value.status, error.value.code) == (400, "invalid_encoding")


@pytest.mark.parametrize("codings", ["compress", "gzip, pack200", "gzip, gzip, gzip, gzip, gzip"])
def test_unknown_coding_is_refused_with_those_that_are_known(codings: str) -> None:
    with pytest.raises(ApiError, match="gzip, deflate, br, zstd") as error:
        decoded(b"x", codings.encode(), 10)
    assert (error.value.status, error.value.headers) == (415, ((b"accept-encoding", b"gzip, deflate, br, zstd"),))


def test_members_of_gzip_are_bounded() -> None:
    """Each costs a copy of what follows: a million of them would keep a thread for hours."""
    assert decoded(gzip.compress(b"x") * MEMBERS_MAX, b"gzip", 1_000) == b"x" * MEMBERS_MAX
    with pytest.raises(ApiError, match="more than 100 members"):
        decoded(gzip.compress(b"x") * (MEMBERS_MAX + 1), b"gzip", 1_000)
