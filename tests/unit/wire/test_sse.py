"""Events are passed on whole and byte for byte, however the stream was cut on its way; nothing in them raises."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any

import orjson
import pytest
from gateway.backends.usage import COUNT_MAX, Usage, usage_in, usage_of
from gateway.wire import sse
from gateway.wire.sse import (
    EventCutter,
    EventTooLong,
    EventWatch,
    UnsoundEvent,
    is_sound,
    parse_event,
    read_events,
    split_events,
)
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.pieces import cut

Json = dict[str, Any]
line_ends = st.sampled_from([b"\n", b"\r\n", b"\r"])
WORDS = st.sampled_from(["usage", "error", "prompt_tokens", "completion_tokens", "choices", '"usage":{', "a\\"])
# With the words that the gateway looks for, as keys and as values, and integers that orjson writes.
json_value = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS | st.text(max_size=5), inner, max_size=4),
)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=20).map(str.encode)
fields = st.sampled_from([b"data: ", b"data:", b": ", b"event: ", b"id: ", b"retry: ", b""])


usages = st.fixed_dictionaries(
    {"prompt_tokens": st.integers(0, 10**6)},
    optional={
        "completion_tokens": st.integers(0, 10**6),
        "total_tokens": st.integers(0, 10**9),
        "prompt_tokens_details": st.dictionaries(st.text(max_size=3), st.integers(0, 9), max_size=2),
        "x": json_value,
    },
)


@st.composite
def answers(draw: st.DrawFn) -> Json:
    """What a server may answer, its usage in any place."""
    members: list[tuple[str, Any]] = list(draw(st.dictionaries(st.text(max_size=5), json_value, max_size=5)).items())
    members.append(("choices", draw(json_value)))
    if draw(st.booleans()):
        members.append(("usage", draw(usages | json_value)))
    return dict(draw(st.permutations(members)))


events = st.fixed_dictionaries(
    {},
    optional={
        "id": st.text(max_size=5),
        "choices": st.lists(
            st.fixed_dictionaries(
                {"delta": st.dictionaries(st.sampled_from(["role", "content", "usage", "error"]), st.text(max_size=5))},
                optional={"finish_reason": st.none() | st.just("stop"), "text": st.text(max_size=2)},
            ),
            max_size=2,
        )
        | json_value,
        "usage": usages | json_value,
        "error": st.none() | st.text(max_size=3),
    },
)


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    end = draw(line_ends)
    found = []
    for _ in range(draw(st.integers(0, 6))):
        lines = draw(
            st.lists(st.builds(bytes.__add__, fields, texts), min_size=1, max_size=3)
            | events.map(lambda content: [b"data: " + orjson.dumps(content)])
            | events.map(
                lambda content: [b"data: " + line.encode() for line in json.dumps(content, indent=1).split("\n")]
            )
            | st.just([b"data: [DONE]"])
        )
        found.append(b"".join(line + end for line in lines) + end)
    return b"".join(found) + draw(st.just(b"") | st.just(b'data: {"half') | st.binary(max_size=9))


def parsed(pieces: list[bytes]) -> list[Json]:
    """What the events say, one by one."""
    return [content for piece in pieces for event in split_events(piece) if (content := parse_event(event)) is not None]


def passed(pieces: list[bytes], *, takes_out: bool) -> tuple[bytes, Any, Any, bool]:
    """What comes out of a stream up to an error, and what was found on the way."""
    cutter, watch = EventCutter(), EventWatch(takes_out=takes_out)
    out = b""
    for piece in pieces:
        out += watch.look(cutter.feed(piece))
        if watch.failure is not None:
            return out, watch.usage, watch.failure, cutter.is_done
    return out + watch.look(cutter.rest()), watch.usage, watch.failure, cutter.is_done


def _tight(stream: bytes) -> bytes:
    """Without line breaks but one after each line."""
    return re.sub(rb"[\r\n]+", b"\n", stream)


@given(st.data())
def test_any_cut_gives_the_same_bytes_in_whole_events(data: st.DataObject) -> None:
    stream = data.draw(streams())
    cutter = EventCutter()
    out = [cutter.feed(piece) for piece in data.draw(cut(stream))]
    assert all(not piece or piece.endswith((b"\n\n", b"\r\n\r\n", b"\r\r")) for piece in out)
    rest = cutter.rest()
    assert b"".join(out) + rest == stream
    whole = EventCutter()
    once = [whole.feed(stream), whole.rest()]
    # A line break too many after an event's end is no event, with it or behind it.
    assert once[1].strip(b"\r\n") == rest.strip(b"\r\n")
    assert parsed([*out, rest]) == parsed(once)
    assert cutter.is_done == whole.is_done


@given(st.data(), st.booleans())
def test_any_cut_finds_the_same_usage_and_error(data: st.DataObject, takes_out: bool) -> None:
    stream = data.draw(streams())
    pieces = data.draw(cut(stream))
    out, usage, failure, is_done = passed(pieces, takes_out=takes_out)
    once = passed([stream], takes_out=takes_out)
    assert (usage, failure) == once[1:3]
    if takes_out:  # a line break too many before the event that goes may stay
        out, once = _tight(out), (_tight(once[0]), *once[1:])
    assert out == once[0]
    assert is_done == once[3] or failure is not None  # what came with the error in one piece


@given(streams(), st.booleans())
def test_only_the_usage_event_vanishes(stream: bytes, takes_out: bool) -> None:
    out, usage, failure, _ = passed([stream], takes_out=takes_out)
    before, after = parsed([stream]), parsed([out])
    if failure is not None:
        before = before[: next(place for place, content in enumerate(before) if content.get("error"))]
    left_out = [content for content in before if content not in after]
    assert after == [content for content in before if content not in left_out]
    for content in left_out:
        assert takes_out
        assert isinstance(content["usage"], dict)
        assert not content.get("choices") or not any(
            choice.get("finish_reason") or (choice.get("delta") or {}).get("content") for choice in content["choices"]
        )
    if not left_out and failure is None:
        assert out == stream
    if usage is not None:
        assert usage in [content.get("usage") for content in parsed([stream])]


noise = st.lists(
    st.binary(max_size=20)
    | st.sampled_from(
        [b'data: {"usage":{', b'"error":', b"[DONE]", b"\n\n", b"\r\n\r\n", b"}", b"\xff", b'"choices":5']
    )
    | streams(),
    max_size=8,
).map(b"".join)


@given(noise, noise)
@example(b'data: {"usage":{},"choices":5}\n\n', b"")
@example(b'data: {"usage":{},"choices":[5]}\n\n', b'data: {"usage":{},"choices":[{"delta":5}]}\n\n')
@example(b'data: {"usage":{"prompt_tokens":' + b"[" * 10_000 + b"\n\n", b'"usage":' + b"{" * 10_000)
def test_no_bytes_raise(first: bytes, second: bytes) -> None:
    """Malformed, truncated, interleaved, no UTF-8."""
    passed([first, second], takes_out=True)
    for event in split_events(first + second):
        content = parse_event(event)
        assert content is None or is_sound(event)
        usage_of((content or {}).get("usage"))
    usage_in(first + second)


@pytest.mark.parametrize(
    ("stream", "is_done"),
    [
        (b"data: 1\n\ndata: [DONE]\n\n", True),
        (b"data: [DONE]\n\n", True),
        (b"data:[DONE]\n\n", True),
        (b"data: 1\r\n\r\ndata: [DONE]\r\n\r\n", True),
        (b"data: 1\r\rdata: [DONE]\r\r", True),
        (b"data: [DONE]", True),
        (b"data: [DONE]\n\n: and a comment after it\n\n", True),
        (b'data: "data: [DONE]\n\n', False),
        (b"data: [DONE] not yet\n\n", False),
        (b"data: 1\n\n", False),
        (b"", False),
    ],
)
def test_terminator_is_a_line_of_its_own(stream: bytes, is_done: bool) -> None:
    for size in (1, 3, len(stream) or 1):
        cutter = EventCutter()
        for start in range(0, len(stream), size):
            cutter.feed(stream[start : start + size])
        cutter.rest()
        assert cutter.is_done is is_done


@pytest.mark.parametrize(
    ("event", "sound"),
    [
        (b"data: {}\n\n", True),
        (b"data: [DONE]\n\n", True),
        (b": alive\n\n", True),
        (b"event: ping\nid: 1\nretry: 5\n\n", True),
        (b"\r\n", True),
        (b'data: {"half', False),
        (b"data: null\n\n", False),
        (b"<html>\n\n", False),
    ],
)
def test_sound_events(event: bytes, sound: bool) -> None:
    assert is_sound(event) is sound


def test_usage_of_the_first_event_does_not_take_it_out() -> None:
    """Servers that tell the usage all along begin with a choice that says no more than who speaks."""
    first = b'data: {"choices":[{"delta":{"role":"assistant"}}],"usage":{"prompt_tokens":1}}\n\n'
    last = b'data: {"choices":[{"delta":{}}],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n'
    assert passed([first, last], takes_out=True)[:2] == (first, {"prompt_tokens": 1, "completion_tokens": 2})


def test_endless_event_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "EVENT_MAX_BYTES", 100)
    cutter = EventCutter()
    with pytest.raises(EventTooLong):
        for _ in range(11):
            cutter.feed(b"0123456789")


def test_long_event_in_small_pieces_is_looked_at_once() -> None:
    """What is held is not gone through again with each piece: that would be 4 TB here."""
    cutter = EventCutter()
    for _ in range(1_000_000):
        cutter.feed(b"01234567")
    assert len(cutter.feed(b"\n\n")) == 8_000_002


# --- the usage of whole answers


def told(content: Any) -> Usage | None:
    """By a parse."""
    usage = content.get("usage")
    if not isinstance(usage, dict):
        return None
    given = usage.get("prompt_tokens", usage.get("input_tokens"))
    made = usage.get("completion_tokens", usage.get("output_tokens")) or 0
    if all(type(number) is int and 0 <= number < COUNT_MAX for number in (given, made)):
        return Usage(int(given or 0), int(made))
    return None


@given(answers(), st.sampled_from([None, 1]), st.booleans())
@example({"usage": {"prompt_tokens": 5}, "choices": ["usage"]}, None, True)
@example({"choices": [{"usage": {"prompt_tokens": 5}}]}, None, True)
@example({"usage": {"prompt_tokens": 5}, "x": {"usage": {"prompt_tokens": 6}}}, None, True)
@example({"usage": {"completion_tokens": 5}, "timings": {"prompt_tokens": 6}}, None, True)
@example({"a": "\\", "usage": {"prompt_tokens": 5, "x": "}"}}, None, True)
@example({"usage": {"prompt_tokens": True}}, None, True)
@example({"usage": {"prompt_tokens": 5}, "data": "x" * 5000}, None, True)
@example({"usage": {"details": {}, "prompt_tokens": 5}, "data": "x" * 5000}, None, True)
@example({"data": {"usage": {"prompt_tokens": 5}, "x": 1}, "more": "x" * 5000}, None, True)
@example({"a": "usage", "data": {"x": 1}, "usage": {"prompt_tokens": 5}, "more": "x" * 5000}, None, True)
@example({"data": [{"usage": {"prompt_tokens": 5}}, {}], "more": "x" * 5000}, None, True)
@example({"usage": {"prompt_tokens": 5, "prompt_tokens_details": {"}": 0}, "completion_tokens": 6}}, None, True)
def test_usage_in_an_answer_is_that_of_a_parse(content: Json, indent: int | None, ascii_only: bool) -> None:
    body = json.dumps(content, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    try:
        read = orjson.loads(body)
    except orjson.JSONDecodeError:
        return  # half a surrogate pair
    assert usage_in(body) == told(read)


@pytest.mark.parametrize("order", [("object", "usage", "data"), ("object", "data", "usage")])
def test_usage_of_many_embeddings_is_found_without_a_parse(monkeypatch: pytest.MonkeyPatch, order: Any) -> None:
    """As llama.cpp and as OpenAI order them."""
    content = {"object": "list", "usage": {"prompt_tokens": 7, "total_tokens": 7}, "data": [[0.1, 0.2]] * 1000}
    body = orjson.dumps({name: content[name] for name in order})
    sizes = []

    def loads(data: bytes) -> Any:
        sizes.append(len(data))
        return json.loads(data)

    monkeypatch.setattr("gateway.backends.usage.orjson.loads", loads)
    assert usage_in(body) == Usage(7, 0)
    assert len(sizes) == 1
    assert sizes[0] < 100 < len(body)


@pytest.mark.parametrize("in_the_middle", [b'"usage":{"prompt_tokens":5}', b'"a":1'])
def test_a_large_answer_is_not_parsed_for_its_usage(monkeypatch: pytest.MonkeyPatch, in_the_middle: bytes) -> None:
    sizes: list[int] = []

    def loads(data: bytes) -> Any:
        sizes.append(len(data))
        return {"usage": None}

    monkeypatch.setattr("gateway.backends.usage.orjson.loads", loads)
    assert usage_in(b'{"a":"%b",%b,"b":"%b"}' % (b"x" * 2**20, in_the_middle, b"x" * 2**20)) is None
    assert usage_in(b"{%b%b}" % (b'"a":[],' * 100_000, in_the_middle)) is None
    assert all(size < 10_000 for size in sizes)


def test_an_event_of_many_lines_passes_unread() -> None:
    event = b"data:\n" * (sse.LINES_MAX + 1) + b'data:{"usage":{}}\n\n'
    assert passed([event], takes_out=True) == (event, None, None, False)
    assert not is_sound(event)
    with pytest.raises(UnsoundEvent):
        list(read_events(event))


@given(st.data())
def test_read_events_are_the_parsed_ones(data: st.DataObject) -> None:
    stream = data.draw(streams())
    cutter = EventCutter()
    whole = cutter.feed(stream)
    found: list[Json] | None = None
    with suppress(UnsoundEvent):
        found = list(read_events(whole))
    events = [event for event in split_events(whole) if event.strip(b"\r\n")]
    assert found == (parsed([whole]) if all(map(is_sound, events)) else None)
