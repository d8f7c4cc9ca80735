"""The Responses API sans I/O: any deltas give the response of the whole answer."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from typing import Any

import pytest
from gateway.backends.protocols.base import AnswerError
from gateway.dialects.responses.answer import ResponseBuilder, begin, make_ids, response_of_item
from gateway.dialects.responses.items import with_own_ids
from gateway.dialects.responses.request import REFUSED, ResponsesRequest
from gateway.dialects.responses.tools import Tools
from gateway.errors import ApiError
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import ResponseStreamEvent, response_create_params
from pydantic import TypeAdapter

from tests.support.chat_script import Chunk, completion, delta, usage_chunk
from tests.support.pieces import cut

SDK_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
RESPONSE_ID = "resp_" + "0" * 32
TEXT = st.text(max_size=40)


def builder(limit: int = 1_000_000, **request: Any) -> ResponseBuilder:
    tools = Tools(request.get("tools") or (), set())
    return ResponseBuilder(request, begin(request, RESPONSE_ID, tools), tools, make_ids(RESPONSE_ID), limit)


def events_of(data: bytes) -> list[dict[str, Any]]:
    blocks = data.decode().removesuffix("data: [DONE]\n\n").split("\n\n")[:-1]
    return [json.loads(block.split("\ndata: ", 1)[1]) for block in blocks]


def run(chunks: Iterable[Chunk], **request: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The response and all events."""
    made = builder(**request)
    data = made.start() + b"".join(made.feed(chunk) for chunk in chunks) + made.end() + made.finish()
    return made.response, events_of(data)


def fold(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The output as a client puts it together from deltas alone, one item after the other."""
    output: list[dict[str, Any]] = []
    is_open = False
    for event in events:
        kind = event["type"].removeprefix("response.")
        if kind == "output_item.added":
            assert not is_open
            is_open = True
            assert event["output_index"] == len(output)
            output.append(copy.deepcopy(event["item"]))
        elif kind in ("content_part.added", "reasoning_summary_part.added"):
            item = output[event["output_index"]]
            assert item["id"] == event["item_id"]
            item["content" if kind == "content_part.added" else "summary"].append(dict(event["part"]))
        elif kind.endswith(".delta"):
            item = output[event["output_index"]]
            assert item["id"] == event["item_id"]
            if kind == "function_call_arguments.delta":
                item["arguments"] += event["delta"]
            elif kind == "reasoning_summary_text.delta":
                item["summary"][event["summary_index"]]["text"] += event["delta"]
            else:
                name = "refusal" if kind == "refusal.delta" else "text"
                item["content"][event["content_index"]][name] += event["delta"]
        elif kind == "output_item.done":
            assert is_open
            is_open = False
            assert {**output[event["output_index"]], "status": event["item"]["status"]} == event["item"]
            output[event["output_index"]] = event["item"]
    return output


@given(data=st.data(), thoughts=TEXT, text=TEXT, calls=st.lists(st.tuples(TEXT, TEXT), max_size=3))
def test_any_deltas_give_the_response_of_the_whole_answer(
    data: st.DataObject, thoughts: str, text: str, calls: list[tuple[str, str]]
) -> None:
    told: list[Chunk] = [
        {"id": f"call_{n}", "type": "function", "function": {"name": f"f{name}", "arguments": arguments}}
        for n, (name, arguments) in enumerate(calls)
    ]
    chunks = [delta({"reasoning_content": piece}) for piece in data.draw(cut(thoughts))]
    chunks += [delta({"content": piece}) for piece in data.draw(cut(text))]
    chunks += [delta({"tool_calls": [{"index": n, "id": call["id"], "function": {"name": call["function"]["name"]}}]})
               for n, call in enumerate(told)]  # fmt: skip
    waiting = [data.draw(cut(arguments)) for _, arguments in calls]
    # The calls' pieces mixed, each call's own in their order.
    order = data.draw(st.permutations([n for n, mine in enumerate(waiting) for _ in mine]))
    pieces = [delta({"tool_calls": [{"index": n, "function": {"arguments": waiting[n].pop(0)}}]}) for n in order]
    response, events = run([*chunks, *pieces, delta({}, "stop"), usage_chunk()])
    made = builder()
    made.feed_completion(completion({"reasoning_content": thoughts, "content": text, "tool_calls": told}))
    made.end()
    assert fold(events) == response["output"]
    assert response["output"] == made.response["output"]
    assert response["usage"] == made.response["usage"]
    assert [item["arguments"] for item in response["output"] if item["type"] == "function_call"] == [
        arguments or "{}" for _, arguments in calls
    ]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))


def call(index: int, arguments: str, name: str | None = None) -> Chunk:
    start = {"id": f"call_{index}"} if name else {}
    return delta({"tool_calls": [{"index": index, **start, "function": {"name": name, "arguments": arguments}}]})


def test_a_call_without_a_name_fails_and_the_text_stays() -> None:
    made = builder()
    made.feed(delta({"content": "a"}))
    made.feed(call(0, "{}"))
    with pytest.raises(AnswerError, match="name"):
        made.end()
    made.fail(ApiError(502, "x"))
    (message,) = made.response["output"]
    assert (message["status"], message["content"][0]["text"]) == ("completed", "a")


@pytest.mark.parametrize("wanted", [None, "auto"])
def test_events_of_a_failed_response_are_of_the_sdks_types(wanted: str | None) -> None:
    said = [delta({"reasoning_content": "t"}), delta({"content": "x"}), delta({"refusal": "r"}), call(0, "{}", "f")]
    made = builder(reasoning={"summary": wanted})
    for event in events_of(made.start() + b"".join(map(made.feed, said)) + made.fail(ApiError(502, "x"))):
        SDK_EVENT.validate_python(event, strict=True)


def test_reasoning_after_text_is_another_item() -> None:
    chunks = [delta({"thinking": "a"}), delta({"content": "b"}), delta({"thinking": "c"}), delta({"content": "d"})]
    response, events = run(chunks)
    assert [item["type"] for item in response["output"]] == ["reasoning", "message", "reasoning", "message"]
    assert fold(events) == response["output"]
    assert {response_of_item(item["id"]) for item in response["output"]} == {RESPONSE_ID}
    assert len({item["id"] for item in response["output"]}) == 4


def test_the_response_under_construction_is_bounded() -> None:
    made = builder(limit=600)
    made.feed(delta({"content": "x" * 60}))
    with pytest.raises(AnswerError, match="without end"):
        made.feed(delta({"reasoning": "x" * 41}))
    made = builder(limit=1_000)
    with pytest.raises(AnswerError, match="can hold"):
        for index in range(100):
            made.feed(delta({"tool_calls": [{"index": index, "id": f"c{index}"}]}))
    made = builder(limit=2_000)
    entry = {"token": "x", "logprob": 0.0}
    with pytest.raises(AnswerError, match="without end"):
        for _ in range(2):
            made.feed(delta({"content": "x"}, logprobs={"content": [entry] * 10}))


def test_each_field_of_the_sdk_is_decided_on() -> None:
    """A field that a new SDK brings is to be looked at, not forwarded unseen."""
    params = response_create_params.ResponseCreateParamsBase.__annotations__
    assert set(params) <= set(ResponsesRequest.__annotations__) | set(REFUSED)


def test_a_repeated_id_is_replaced() -> None:
    said = {"type": "message", "role": "user", "content": []}
    own = with_own_ids([{**said, "id": "x"}, {**said, "id": "y"}, {**said, "id": "x"}], make_ids(RESPONSE_ID))
    assert [item["id"] for item in own] == ["x", "y", f"msg_{'0' * 32}1"]
