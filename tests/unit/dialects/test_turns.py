"""A chat's deltas as turns, sans I/O: which call a delta belongs to, and what waits for what."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import Any

import pytest
from gateway.backends.protocols.base import AnswerError
from gateway.dialects.turns import CALLS_MAX, TURN_COST, ObjectEnd, Step, Turns
from hypothesis import given
from hypothesis import strategies as st

from tests.support.pieces import cut

Delta = dict[str, Any]


def piece(arguments: str, name: str | None = None, **fields: Any) -> Delta:
    """A delta of one call."""
    function = {"arguments": arguments} if name is None else {"name": name, "arguments": arguments}
    return {"tool_calls": [{**fields, "function": function}]}


def told(deltas: Iterable[Delta], limit: int = 100_000) -> list[Step]:
    turns = Turns(limit)
    return [step for delta in deltas for step in turns.feed(delta)] + list(turns.end())


def calls(deltas: Iterable[Delta]) -> list[tuple[str, str, str]]:
    """Id, name and arguments of each call, as they are told."""
    found: list[tuple[str, str, str]] = []
    for step in told(deltas):
        if step.kind == "begin":
            found.append((step.turn.call_id, step.turn.name, ""))
        elif step.kind == "tell":
            found[-1] = (*found[-1][:2], found[-1][2] + step.piece.text)
    return found


@pytest.mark.parametrize(
    "deltas",
    [
        [piece("1", "f", index=0, id="a"), piece("x", index=0), piece("2", "g", index=1, id="b"), piece("y", index=1)],
        [piece("1", "f", index=1, id="a"), piece("2", "g", index=7, id="b"), piece("x", index=1), piece("y", index=7)],
        [piece("1", "f", index=0, id="a"), piece("x", index=0), piece("2", "g", index=0, id="b"), piece("y", index=0)],
        [piece("1", "f", id="a"), piece("x"), piece("2", "g", id="b"), piece("y")],
        [piece("1", "f", index=None, id="a"), piece("x"), piece("2", "g", id="b"), piece("y", id="b")],
        [piece("1", "f", id="a"), piece("x", "f", id="a"), piece("2", "g", id="b"), piece("y", "g", id="b")],
        [piece("1", "f", index=0, id="a"), piece("2", "g", index=1, id="b"), piece("x", "f", index=0, id="a"),
         piece("y", "g", index=1, id="b")],
        [piece("1", index=0), piece("x", "f", index=0, id="a"), piece("2y", "g", index=1, id="b")],
    ],
    ids=[
        "as OpenAI's", "any indexes", "one index for all", "no index", "null", "name and id each time",
        "name and id each time, mixed", "name and id late",
    ],
)  # fmt: skip
def test_each_delta_finds_its_call(deltas: list[Delta]) -> None:
    assert calls(deltas) == [("a", "f", "1x"), ("b", "g", "2y")]


def test_calls_of_a_whole_message_need_neither_index_nor_id() -> None:
    whole = [piece("{}", name)["tool_calls"][0] for name in ("f", "f")]
    assert calls([{"tool_calls": whole}]) == [("", "f", "{}"), ("", "f", "{}")]


def test_what_is_behind_a_call_waits_until_its_arguments_are_whole() -> None:
    turns = Turns(100_000)
    steps = [
        [(step.kind, step.turn.kind, step.piece.text) for step in turns.feed(delta)]
        for delta in (
            piece('{"a":', "f", index=0), {"content": "Hm"}, {"content": "m."}, piece('"}"', index=0),
            piece("}", index=0), piece("\n", index=0),
        )
    ]  # fmt: skip
    assert steps == [
        [("begin", "call", ""), ("tell", "call", '{"a":')],
        [],
        [],
        [("tell", "call", '"}"')],
        [("tell", "call", "}"), ("end", "call", ""), ("begin", "message", ""), ("tell", "message", "Hmm.")],
        [],
    ]


def test_a_line_after_a_call_does_not_keep_the_next_waiting() -> None:
    turns = Turns(100_000)
    for delta in (piece("{}", "f", index=0), piece("\n", index=0)):
        list(turns.feed(delta))
    assert [step.kind for step in turns.feed(piece("{", "g", index=1))] == ["end", "begin", "tell"]


def test_room_is_given_back_with_what_has_been_told() -> None:
    words = [{"content" if n % 2 else "thinking": "x" * 100} for n in range(500)]
    assert sum(step.kind == "begin" for step in told(words, 2 * TURN_COST + 200)) == 500
    call = [piece('{"a":"', "f", index=0), *[piece("x" * 1_000, index=0)] * 10, piece('"}', index=0)]
    after = [{"content": "x"}, {"content": "x" * 10_000}]
    assert told([*call, *after], 11_000)
    with pytest.raises(AnswerError, match="can hold"):
        told([*call[:-1], *after], 11_000)


def test_a_call_that_goes_on_after_its_end_is_an_error() -> None:
    ended = [piece("{}", "f", index=0), {"content": "x"}]
    assert told([*ended, piece("\n", index=0)])
    with pytest.raises(AnswerError, match="after its end"):
        told([*ended, piece("{}", index=0)])


@given(st.dictionaries(st.text(max_size=4), st.text(max_size=4) | st.dictionaries(st.text(), st.none())), st.data())
def test_the_end_of_an_object_is_seen_however_it_is_cut(content: Any, data: st.DataObject) -> None:
    text = json.dumps(content, ensure_ascii=data.draw(st.booleans()))
    end, pieces = ObjectEnd(), data.draw(cut(text))
    assert [end.is_reached(piece) for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert end.is_reached("\n")
    assert not end.is_reached("}")


def test_arguments_beside_a_waiting_call_are_looked_at_once() -> None:
    """Not again with each piece that could be the last: four times the pieces cost four times as much."""

    def cost(pieces: int) -> float:
        opening = [piece('{"a":[', "f", index=0), piece("", "g", index=1)]
        deltas = [*opening, *([piece("{},{}", index=0)] * pieces)]
        began = time.thread_time()
        assert "".join(arguments for *_, arguments in calls(deltas[:9])).endswith("{}")
        told(deltas, 10**9)
        return time.thread_time() - began

    assert min(cost(8_000) for _ in range(3)) < 8 * min(cost(2_000) for _ in range(3))


@pytest.mark.parametrize("at_once", [True, False])
def test_calls_without_end_are_refused(at_once: bool) -> None:
    some = [piece("{}", "f", index=index)["tool_calls"][0] for index in range(CALLS_MAX + 1)]
    deltas = [{"tool_calls": some}] if at_once else [{"tool_calls": [call]} for call in some]
    assert len(told(deltas[:-1] if not at_once else [{"tool_calls": some[:-1]}], 10**9)) == 3 * CALLS_MAX
    with pytest.raises(AnswerError, match="tool calls"):
        told(deltas, 10**9)


def test_small_pieces_that_wait_are_bounded_by_what_they_take() -> None:
    deltas = [piece("{", "f", index=0), piece("{", "g", index=1), *([piece(" ", index=1)] * 1_000)]
    with pytest.raises(AnswerError, match="more at once"):
        told(deltas, 50_000)
