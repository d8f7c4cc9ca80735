"""Any cut of any answer gives the same outcome, no answer raises anything but UpstreamError, and nothing leaks."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import pytest
from gateway.wire.http1 import Pool
from gateway.wire.origin import Origin
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.in_memory import MAX_HEAD, Outcome, Wire, is_settled, outcome
from tests.support.sampling import cases

FUZZ = settings(max_examples=cases(300), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def cut(data: bytes, places: list[int]) -> list[bytes]:
    bounds = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[start:end] for start, end in pairwise(bounds) if start < end]


TOKEN = (
    st.text("abcxyzXYZ-_0123456789", min_size=1, max_size=12)
    .map(str.encode)
    .filter(lambda name: name.lower() not in (b"content-length", b"transfer-encoding", b"connection", b"upgrade"))
)
VALUE = st.binary(max_size=20).map(lambda raw: bytes(byte for byte in raw if 0x21 <= byte != 0x7F))
HEADERS = st.lists(st.tuples(TOKEN, VALUE), max_size=4)
PLACES = st.lists(st.integers(0, 10_000), max_size=12)
ENDS = st.sampled_from(["", "close", "reset"])


def lines(headers: list[tuple[bytes, bytes]]) -> bytes:
    return b"".join(b"%b: %b\r\n" % header for header in headers)


@st.composite
def answers(draw: st.DrawFn) -> tuple[bytes, int, list[tuple[bytes, bytes]], bytes]:
    """A good answer: its bytes, and the status, headers and body that it means."""
    status = draw(st.sampled_from([200, 201, 302, 400, 429, 500, 599]))
    headers = draw(HEADERS)
    pieces = draw(st.lists(st.binary(min_size=1, max_size=60), max_size=6))
    body = b"".join(pieces)
    framing = draw(st.sampled_from(["length", "chunked", "close"]))
    interim = draw(st.sampled_from([b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n"]))
    head = b"HTTP/1.1 %d Reason\r\n%b" % (status, lines(headers))
    if framing == "length":
        headers = [*headers, (b"content-length", b"%d" % len(body))]
        raw = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    elif framing == "chunked":
        headers = [*headers, (b"transfer-encoding", b"chunked")]
        extension = draw(st.sampled_from([b"", b";a=b"]))
        chunks = b"".join(b"%x%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces)
        raw = head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n" + lines(draw(HEADERS)) + b"\r\n"
    else:
        raw = head + b"\r\n" + body
    return interim + raw, status, [(name.lower(), value) for name, value in headers], body


@FUZZ
@given(answer=answers(), places=PLACES)
def test_a_good_answer_means_the_same_however_it_is_cut(
    wires: list[Wire], answer: tuple[bytes, int, list[tuple[bytes, bytes]], bytes], places: list[int]
) -> None:
    raw, status, headers, body = answer

    async def test() -> None:
        got, _ = await outcome(wires, b"GET", cut(raw, places), "close")
        assert got == Outcome(status, tuple(headers), body, "")

    asyncio.run(test())


@FUZZ
@given(answer=answers(), length=st.integers(0, 10_000), ends=ENDS, places=PLACES)
def test_a_truncated_answer_is_never_taken_for_a_whole_one(
    wires: list[Wire],
    answer: tuple[bytes, int, list[tuple[bytes, bytes]], bytes],
    length: int,
    ends: str,
    places: list[int],
) -> None:
    raw, _, headers, body = answer
    part = raw[: length % max(1, len(raw))]
    is_framed = headers[-1:] and headers[-1][0] in (b"content-length", b"transfer-encoding")

    async def test() -> None:
        got, _ = await outcome(wires, b"GET", cut(part, places), ends)
        assert body.startswith(got.body)
        if is_framed or not got.status or ends != "close":
            assert got.error == ("UpstreamClosed" if ends else "waits for more")

    asyncio.run(test())


HOSTILE = [
    b"HTTP/1.1 ", b"HTTP/1.0 ", b"200 OK\r\n", b"204 No\r\n", b"100 Continue\r\n", b"RTSP/1.0 200 OK\r\n\r\n",
    b"\r\n", b"\r\n\r\n", b"\n", b"\r", b":", b"\x00", b" folded\r\n", b"Connection: close\r\n", b"Upgrade: x\r\n",
    b"Connection: upgrade\r\n", b"Content-Length: ", b"Transfer-Encoding: ", b"chunked\r\n",
    b"0\r\n", b"3\r\n", b"abc", b"abc\r\n", b"-1\r\n", b"ffffffffffffffffff\r\n", b"3\r\nabc\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
]  # fmt: skip
GARBAGE = st.lists(st.one_of(st.sampled_from(HOSTILE), st.binary(max_size=8)), max_size=12).map(b"".join)


@FUZZ
@given(raw=GARBAGE, method=st.sampled_from([b"GET", b"HEAD"]), ends=ENDS, places=PLACES)
def test_garbage_is_the_same_garbage_however_it_is_cut(
    wires: list[Wire], raw: bytes, method: bytes, ends: str, places: list[int]
) -> None:
    async def test() -> None:
        whole, _ = await outcome(wires, method, [raw] if raw else [], ends)
        assert whole == (await outcome(wires, method, cut(raw, places), ends))[0]
        assert whole == (await outcome(wires, method, [bytes([byte]) for byte in raw], ends))[0]

    asyncio.run(test())


@FUZZ
@given(beyond=st.integers(-3, 3), interims=st.integers(0, 3), places=PLACES)
def test_the_limit_of_a_head_is_exact(wires: list[Wire], beyond: int, interims: int, places: list[int]) -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\n" * interims
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nX: %b\r\n\r\n"
    raw = interim + head % (b"x" * (MAX_HEAD + beyond - len(interim) - len(head) + 2))
    assert len(raw) == MAX_HEAD + beyond

    async def test() -> None:
        got, _ = await outcome(wires, b"GET", cut(raw + b"abc", places))
        assert (got.body, got.error) == ((b"abc", "") if beyond <= 0 else (b"", "ProtocolViolation"))

    asyncio.run(test())


@FUZZ
@given(answer=answers(), extra=GARBAGE.filter(lambda raw: bool(raw.strip(b"\r\n"))), places=PLACES)
def test_what_follows_a_message_reaches_no_other_request(
    wires: list[Wire], answer: tuple[bytes, int, list[tuple[bytes, bytes]], bytes], extra: bytes, places: list[int]
) -> None:
    raw, status, headers, body = answer
    if not headers or headers[-1][0] not in (b"content-length", b"transfer-encoding"):
        return  # then it does not follow, it belongs to the body

    async def test() -> None:
        got, left = await outcome(wires, b"GET", cut(raw + extra, places))
        assert (got, left) == (Outcome(status, tuple(headers), body, ""), 0)

    asyncio.run(test())


LINES = st.lists(st.sampled_from([b"a", b": ", b"b\r\n", b"\r\n", b"\n", b"host:"])).map(b"".join)


@FUZZ
@given(headers=st.one_of(st.binary(max_size=40), LINES), target=st.one_of(st.binary(max_size=10), st.just(b"/")))
def test_a_request_is_one_request_or_not_sent(wires: list[Wire], headers: bytes, target: bytes) -> None:
    async def test() -> None:
        wires.clear()
        pool = Pool(Origin.parse("http://backend"))
        task = asyncio.create_task(pool.request(b"POST", target, headers, b"body"))
        await is_settled(task)
        if wires:
            head, _, body = wires[0].written.partition(b"\r\n\r\n")
            assert body == b"body"
            line, host, *rest = head.split(b"\r\n")
            assert (line, host) == (b"POST %b HTTP/1.1" % target, b"Host: backend")
            assert rest.pop() == b"Content-Length: 4"
            assert not any(set(line) & set(b"\r\n\x00") or line[:1] in b" \t:" for line in rest)
            assert not any(line.lower().startswith((b"host:", b"content-length:")) for line in rest)
            task.cancel()
        with pytest.raises(asyncio.CancelledError if wires else ValueError):
            await task
        assert pool.open_connections == 0
        await pool.close()

    asyncio.run(test())
