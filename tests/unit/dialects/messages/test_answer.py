"""A chat's answers as Anthropic's messages and events, without I/O."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from anthropic.types import Message
from gateway.backends.protocols.base import AnswerError
from gateway.dialects.messages import answer as messages_answer
from gateway.dialects.messages.answer import Facts, MessageStream, message
from hypothesis import given
from hypothesis import strategies as st

from tests.support.pieces import cut

FACTS = Facts("msg_1", "asked-for", ("END",), shows_thinking=True)
USAGE = {"prompt_tokens": 31, "completion_tokens": 17, "total_tokens": 48}
ARGUMENTS = ('{"city": "Zürich", "note": "a \\"quoted\\" word"}', '{ "big":1180591620717411303424 }', "{}")


def completion(answer: dict[str, Any], finish_reason: str = "stop", **choice: Any) -> dict[str, Any]:
    choices = [{"index": 0, "message": {"role": "assistant", **answer}, "finish_reason": finish_reason, **choice}]
    return {"id": "c", "object": "chat.completion", "model": "used", "choices": choices, "usage": USAGE}


def call(index: int, arguments: str) -> dict[str, Any]:
    return {"id": f"call_{index}", "type": "function", "function": {"name": f"tool_{index}", "arguments": arguments}}


def answered(
    answer: dict[str, Any], finish_reason: str = "stop", facts: Facts = FACTS, **choice: Any
) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(message(completion(answer, finish_reason, **choice), facts))
    Message.model_validate(told)
    return told


def test_a_tools_input_is_the_models_own_json_byte_for_byte() -> None:
    calls = [call(index, arguments) for index, arguments in enumerate(ARGUMENTS)]
    body = message(completion({"content": None, "tool_calls": calls}, "tool_calls"), FACTS)
    for arguments in ARGUMENTS:
        assert b'"input":' + arguments.encode() + b"}" in body
    told = json.loads(body)
    assert told["stop_reason"] == "tool_use"
    assert [(block["id"], block["name"]) for block in told["content"]] == [
        ("call_0", "tool_0"),
        ("call_1", "tool_1"),
        ("call_2", "tool_2"),
    ]


def test_a_call_without_id_and_arguments_gets_both() -> None:
    bare = {"function": {"name": "look", "arguments": None}}
    (block,) = answered({"tool_calls": [bare]})["content"]
    assert block == {"type": "tool_use", "id": "toolu_1_0", "name": "look", "input": {}}


@pytest.mark.parametrize(
    ("arguments", "given_input"),
    [('{"city": "Zü', {"city": "Zü"}), ('{"city": ', {}), ("nonsense", {}), (f'{{"a": {2**70}', {})],
)
def test_a_call_cut_for_its_length_keeps_the_fields_that_are_whole(arguments: str, given_input: dict[str, Any]) -> None:
    told = answered({"tool_calls": [call(0, arguments)]}, "length")
    assert told["stop_reason"] == "max_tokens"
    assert told["content"][0]["input"] == given_input


def test_a_prefill_is_not_repeated() -> None:
    facts = Facts("msg_1", "m", prefill="Hi! How")
    assert answered({"content": "Hi! How are you?"}, facts=facts)["content"][0]["text"] == " are you?"
    assert answered({"content": " are you?"}, facts=facts)["content"][0]["text"] == " are you?"


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"choices": []},
        {"choices": {"x": 1}},
        {"choices": ["x"]},
        {"choices": [{"index": 0}]},
        completion({"content": 5}),
        completion({"tool_calls": {"x": 1}}),
        completion({"tool_calls": ["x"]}),
        completion({"tool_calls": [{"function": "x"}]}),
        completion({"tool_calls": [{"function": {"arguments": "{}"}}]}),
        completion({"tool_calls": [call(0, "[1]")]}),
        completion({"tool_calls": [call(0, '{"a": NaN}')]}),
        completion({"tool_calls": [call(0, '{"a"')]}),
    ],
)
def test_malformed_completions_are_refused(answer: dict[str, Any]) -> None:
    with pytest.raises(AnswerError):
        message(answer, FACTS)


def chunk_of(delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    return {"id": "c", "model": "used", "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


def piece_of(index: int, arguments: str | None = None, name: str | None = None) -> dict[str, Any]:
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    head = {"id": f"call_{index}", "type": "function"} if name else {}
    return chunk_of({"tool_calls": [{"index": index, **head, "function": function}]})


def raw(chunks: Iterable[dict[str, Any]], facts: Facts = FACTS) -> bytes:
    stream = MessageStream(facts)
    return b"".join(stream.feed(chunk) for chunk in chunks) + stream.end()


def read(data: bytes) -> list[dict[str, Any]]:
    """The events' data, each of the SDK's own types, and named by its `event` line."""
    found = []
    for event in data.decode().removesuffix("\n\n").split("\n\n"):
        first, second = event.split("\n")
        content = json.loads(second.removeprefix("data: "))
        assert first == f"event: {content['type']}"
        if content["type"] != "ping":
            found.append(content)
    return found


def events(chunks: Iterable[dict[str, Any]], facts: Facts = FACTS) -> list[dict[str, Any]]:
    return read(raw(chunks, facts))


def blocks(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The message's blocks, put together; asserts that the events come as the API documents it."""
    assert [event["type"] for event in (told[0], *told[-2:])] == ["message_start", "message_delta", "message_stop"]
    found: list[dict[str, Any]] = []
    is_open = False
    for event in told[1:-2]:
        kind = event["type"]
        assert is_open == (kind != "content_block_start")
        if kind == "content_block_start":
            found.append({**event["content_block"], "json": ""})
        elif kind == "content_block_delta":
            delta = event["delta"]
            name, value = next(field for field in delta.items() if field[0] != "type")
            found[-1]["json" if name == "partial_json" else name] += value
        assert event["index"] == len(found) - 1
        is_open = kind != "content_block_stop"
    assert not is_open
    return found


def test_pieces_go_out_as_they_come() -> None:
    stream = MessageStream(FACTS)
    stream.feed(chunk_of({"content": "a"}))
    assert len(read(stream.feed(chunk_of({"content": "b"})))) == 1
    stream.feed(piece_of(0, "", "look"))
    (delta,) = read(stream.feed(piece_of(0, '{"a')))
    assert delta["delta"] == {"type": "input_json_delta", "partial_json": '{"a'}


def test_hidden_thinking_keeps_the_stream_alive() -> None:
    stream = MessageStream(Facts("msg_1", "m"))
    stream.feed(chunk_of({"role": "assistant"}))
    assert stream.feed(chunk_of({"reasoning_content": "Hm"})) == b'event: ping\ndata: {"type":"ping"}\n\n'
    assert blocks(events([chunk_of({"reasoning_content": "Hm"}), chunk_of({"content": "x"})], Facts("msg_1", "m"))) == [
        {"type": "text", "text": "x", "json": ""}
    ]


@pytest.mark.parametrize(
    "chunks",
    [
        [],
        [{"choices": "x"}],
        [{"choices": [5]}],
        [{"choices": []}, {"usage": {"prompt_tokens": 1, "completion_tokens": 1}}],
        [chunk_of({"content": ["x"]})],
        [chunk_of({"tool_calls": [{"index": 0}]})],
        [chunk_of({"tool_calls": [{"index": 0, "function": []}, 1]})],
        [piece_of(0, "{}")],
        [piece_of(0, "{}", "one"), piece_of(1, "{}", "two"), piece_of(0, "x")],
    ],
)
def test_malformed_chunks_are_refused(chunks: list[dict[str, Any]]) -> None:
    with pytest.raises(AnswerError):
        raw(chunks)


def test_held_pieces_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages_answer, "HELD_MAX", 10_000)
    with pytest.raises(AnswerError, match="can hold"):
        raw([piece_of(0, "{", "one"), *(piece_of(1, "x" * 100, "two") for _ in range(100))])
    with pytest.raises(AnswerError, match="can hold"):
        raw(piece_of(index, "", "one") for index in range(100))
    assert blocks(events(chunk_of({"content": "x" * 100}) for _ in range(200)))[0]["text"] == "x" * 20_000


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[dict[str, Any]], str, str, list[str]]:
    """Chunks with the text, thinking and arguments that they hold, in any order and cut anywhere."""
    values = st.dictionaries(st.text(max_size=5), st.text(max_size=5) | st.integers(), max_size=3)
    arguments = [json.dumps(value, ensure_ascii=draw(st.booleans())) for value in draw(st.lists(values, max_size=3))]
    queues: list[list[dict[str, Any]]] = []
    for index, whole in enumerate(arguments):
        queues.append([piece_of(index, "", f"tool_{index}"), *(piece_of(index, part) for part in draw(cut(whole)))])
    texts, thoughts = draw(st.lists(st.text(max_size=5), max_size=4)), draw(st.lists(st.text(max_size=5), max_size=4))
    queues += [[chunk_of({"content": text}) for text in texts], [chunk_of({"reasoning_content": t}) for t in thoughts]]
    chunks = [chunk_of({"role": "assistant"})]
    while waiting := [queue for queue in queues if queue]:
        chunks.append(draw(st.sampled_from(waiting)).pop(0))
    return chunks, "".join(texts), "".join(thoughts), arguments


@given(streams())
def test_nothing_of_a_stream_is_lost_however_it_is_mixed(
    stream: tuple[list[dict[str, Any]], str, str, list[str]],
) -> None:
    chunks, text, thoughts, arguments = stream
    found = blocks(events(chunks))
    assert "".join(block["text"] for block in found if block["type"] == "text") == text
    assert "".join(block["thinking"] for block in found if block["type"] == "thinking") == thoughts
    calls = {block["id"]: block["json"] for block in found if block["type"] == "tool_use"}
    assert calls == {f"call_{index}": whole for index, whole in enumerate(arguments)}
