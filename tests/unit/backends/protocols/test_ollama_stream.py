"""Ollama's streams in OpenAI's words, byte by byte."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from gateway.backends.protocols.base import AnswerError, StreamTranslator
from gateway.backends.protocols.ollama.answer import OllamaStream
from gateway.wire.errors import UpstreamClosed
from gateway.wire.ndjson import LINE_MAX_BYTES
from hypothesis import given
from hypothesis import strategies as st

from tests.support.faces.ollama import go_json
from tests.support.ollama_lines import ADAPTER, ANY_JSON, LAST, TOOL, Json, delta_line, ndjson
from tests.support.pieces import cut as cuts


def streamed(pieces: Iterable[bytes], capability: str = "chat", **fields: Any) -> tuple[list[Any], str | None]:
    """The events that come out, `[DONE]` as a text, and the error that ended them."""
    stream: StreamTranslator = ADAPTER.stream(capability, {"stream": True, **fields}, "m")
    out: list[bytes] = []
    error = None
    try:
        for piece in pieces:
            out += stream.feed(piece)
        out += stream.end()
    except (AnswerError, UpstreamClosed) as ended_badly:
        error = str(ended_badly)
    assert stream.is_done is (error is None)
    return [event_of(data) for data in out], error


def event_of(data: bytes) -> Any:
    assert data.startswith(b"data: ")
    assert data.endswith(b"\n\n")
    assert data.count(b"\n") == 2
    content = data[6:-2]
    if content == b"[DONE]":
        return "[DONE]"
    event = json.loads(content)
    # What is new in every stream.
    for key in ("id", "created"):
        del event[key]
    for choice in event["choices"]:
        for call in choice.get("delta", {}).get("tool_calls", ()):
            if "id" in call:
                assert call["id"].startswith("call_")
                call["id"] = "call_"
    return event


@pytest.mark.proves("/v1/chat/completions", "stream_options.include_usage", backend="ollama")
def test_usage_is_told_only_when_asked_for_but_always_known() -> None:
    stream = ADAPTER.stream("chat", {"stream": True}, "m")
    events = stream.feed(ndjson(delta_line(content="Hi"), LAST))
    assert len(events) == 3
    assert not any(b"usage" in event for event in events)
    assert stream.usage == {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
    assert stream.end() == []


def test_the_last_line_may_say_something() -> None:
    events, _ = streamed([ndjson(LAST | {"message": {"content": "Hi"}, "done_reason": "length"})])
    assert events[0]["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": "Hi"}, "finish_reason": "length"}
    ]
    assert events[1:] == ["[DONE]"]


def test_a_forced_call_that_the_model_makes_itself_is_the_only_one() -> None:
    calls = [{"function": {"name": "f", "arguments": {"a": 1}}}]
    lines = ndjson(delta_line(tool_calls=calls), delta_line(content="Done."), LAST)
    events, _ = streamed([lines], tools=[TOOL], tool_choice="required")
    assert events[0]["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"] == '{"a":1}'
    assert events[1]["choices"][0]["delta"] == {"content": "Done."}


def test_an_error_line_ends_the_stream_after_what_came_before() -> None:
    lines = ndjson(delta_line(content="Hel"), {"error": "CUDA error"}, delta_line(content="lo"))
    events, error = streamed([lines])
    assert error == "CUDA error"
    assert [event["choices"][0]["delta"]["content"] for event in events] == ["Hel"]
    stream = ADAPTER.stream("chat", {}, "m")
    assert len(stream.feed(lines)) == 1
    for _ in range(2):
        with pytest.raises(AnswerError, match="CUDA error"):
            stream.feed(b"")


@pytest.mark.parametrize("rest", [b"", b'{"message":{"content":"lo', b'{"message":{"content":"lo"},"done":false}'])
def test_a_truncated_stream_is_an_error(rest: bytes) -> None:
    events, error = streamed([ndjson(delta_line(content="Hel")) + rest])
    assert error
    assert len(events) == 1


def test_the_last_line_needs_no_end() -> None:
    assert streamed([ndjson(LAST).rstrip()]) == streamed([ndjson(LAST)])


def test_data_after_the_last_line_is_ignored() -> None:
    assert streamed([ndjson(LAST) + b"\xff\n{", b"x\n"]) == streamed([ndjson(LAST)])


def test_a_line_without_end_is_an_error() -> None:
    stream = ADAPTER.stream("chat", {}, "m")
    with pytest.raises(AnswerError):
        for _ in range(LINE_MAX_BYTES // 2**20 + 2):
            stream.feed(b"x" * 2**20)


arguments = st.dictionaries(st.text(), ANY_JSON, max_size=4)
tool_calls = st.lists(st.fixed_dictionaries({"name": st.text(min_size=1), "arguments": arguments}), min_size=1)
messages = st.fixed_dictionaries(
    {"content": st.text(max_size=10)},
    optional={"thinking": st.text(max_size=10), "tool_calls": tool_calls.map(lambda c: [{"function": f} for f in c])},
)


@given(st.lists(messages, max_size=6), st.data())
def test_any_split_of_a_stream_gives_the_same_events(some: list[Json], data: st.DataObject) -> None:
    lines = ndjson(*(delta_line(**message) for message in some), LAST)
    whole = streamed([lines])
    assert streamed(data.draw(cuts(lines))) == whole
    assert len(whole[0]) == len(some) + 2  # the last line is the finish; [DONE] follows
    said = [call["function"] for message in some for call in message.get("tool_calls", ())]
    heard = [call for event in whole[0][:-1] for call in event["choices"][0]["delta"].get("tool_calls", ())]
    assert [call["index"] for call in heard] == list(range(len(said)))
    for call, function in zip(heard, said, strict=True):
        assert call["function"]["name"] == function["name"]
        assert call["function"]["arguments"].encode() == go_json(function["arguments"])


def test_a_stream_of_the_adapter_is_its_own() -> None:
    first, second = (ADAPTER.stream("chat", {}, "m") for _ in range(2))
    assert isinstance(first, OllamaStream)
    ids = [json.loads(stream.feed(ndjson(LAST))[0][6:])["id"] for stream in (first, second)]
    assert ids[0] != ids[1]
