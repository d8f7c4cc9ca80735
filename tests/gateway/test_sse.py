"""Events are passed on whole and byte for byte, however the stream was cut on its way."""

import pytest
from gateway.upstream import sse
from gateway.upstream.sse import EventCutter, EventTooLong
from hypothesis import given
from hypothesis import strategies as st

line_ends = st.sampled_from([b"\n", b"\r\n"])
texts = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=20).map(str.encode)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    end = draw(line_ends)
    events = draw(st.lists(st.lists(texts, min_size=1, max_size=3), max_size=5))
    return b"".join(b"".join(b"data: " + line + end for line in event) + end for event in events)


@st.composite
def cut(draw: st.DrawFn, data: bytes) -> list[bytes]:
    places = sorted(draw(st.sets(st.integers(0, len(data)), max_size=10)))
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True) if b > a]


@given(st.data())
def test_any_cut_gives_the_same_bytes_in_whole_events(data: st.DataObject) -> None:
    stream = data.draw(streams())
    cutter = EventCutter()
    out = [cutter.feed(piece) for piece in data.draw(cut(stream))]
    assert b"".join(out) + cutter.rest() == stream
    assert all(not piece or piece.endswith((b"\n\n", b"\r\n\r\n")) for piece in out)


@given(st.lists(st.binary(min_size=1, max_size=30), max_size=10))
def test_any_bytes_pass_unchanged(pieces: list[bytes]) -> None:
    cutter = EventCutter()
    assert b"".join([cutter.feed(piece) for piece in pieces]) + cutter.rest() == b"".join(pieces)


@pytest.mark.parametrize(
    ("stream", "is_done"),
    [
        (b"data: 1\n\ndata: [DONE]\n\n", True),
        (b"data: [DONE]\n\n", True),
        (b"data:[DONE]\n\n", True),
        (b"data: 1\r\n\r\ndata: [DONE]\r\n\r\n", True),
        (b"data: [DONE]", True),
        (b'data: "data: [DONE]\n\n', False),
        (b"data: 1\n\n", False),
        (b"", False),
    ],
)
def test_terminator_is_a_line_of_its_own(stream: bytes, is_done: bool) -> None:
    cutter = EventCutter()
    cutter.feed(stream)
    cutter.rest()
    assert cutter.is_done is is_done


def test_endless_event_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "EVENT_MAX_BYTES", 100)
    cutter = EventCutter()
    with pytest.raises(EventTooLong):
        for _ in range(11):
            cutter.feed(b"0123456789")
