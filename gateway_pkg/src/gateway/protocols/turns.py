"""A chat's answer as turns, sans I/O: what a model thinks, says and calls, one told to its end before the next begins.

Clients of the APIs that a chat is translated to rely on that order; servers do not keep it. They mix the pieces of
parallel calls, leave out a call's index, or give one index to several calls.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Literal, NamedTuple

from pydantic_core import from_json

from gateway.upstream.adapters.base import AnswerError

Entry = dict[str, Any]

# What else than text counts for, in characters, so that it is bounded too.
TURN_COST = 256
LOGPROB_COST = 100
# Names that servers have for a model's thoughts: llama.cpp and LiteLLM, vLLM, the earlier gateway.
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")


class Piece(NamedTuple):
    """Some text of a turn. `logprobs` are those of its tokens, each with its `top_logprobs`."""

    text: str
    is_refusal: bool = False
    logprobs: Sequence[Entry] = ()

    @property
    def size(self) -> int:
        """What it takes, in about characters."""
        return len(self.text) + sum(LOGPROB_COST * (1 + len(entry["top_logprobs"])) for entry in self.logprobs)


class Turn:
    """A train of thought, a message, or a call, which has `name` and, where the server gives one, `call_id`."""

    __slots__ = ("arguments", "call_id", "is_begun", "is_ended", "kind", "name", "size", "waiting")

    def __init__(self, kind: Literal["reasoning", "message", "call"]) -> None:
        self.kind = kind
        self.call_id = self.name = ""
        self.arguments: list[str] = []  # of a call, but for blanks, to see where they end
        self.waiting: list[Piece] = []  # to be told
        self.size = 0  # what it holds, in characters
        self.is_begun = self.is_ended = False

    def is_complete(self) -> bool:
        """Whether another turn may begin: always for words, which go on in a later turn."""
        if self.kind != "call":
            return True
        is_near = bool(self.name and self.arguments) and self.arguments[-1].rstrip().endswith("}")
        return is_near and is_object("".join(self.arguments))


class Step(NamedTuple):
    """What happens to a turn; `piece` is what is told of it."""

    kind: Literal["begin", "tell", "end"]
    turn: Turn
    piece: Piece = Piece("")


class Turns:
    """Deltas in, steps out. What waits, the arguments of the call that is told, and the number of calls are bounded by
    `limit`, in characters.

    Words and the call that is told go out as they come; what is behind a call waits until its arguments are a whole
    JSON object, or for the end.
    """

    def __init__(self, limit: int) -> None:
        self._turns: deque[Turn] = deque()  # the first is the one that is told
        self._calls: dict[int, Turn] = {}
        self._room = limit

    def feed(self, delta: Mapping[str, Any], logprobs: Sequence[Entry] = ()) -> Iterator[Step]:
        """The steps for a delta, or for a whole message; raises AnswerError when it is none, or too much waits."""
        if thoughts := read_thoughts(delta):
            yield from self._say("reasoning", Piece(thoughts))
        if text := read_text(delta, "content"):
            yield from self._say("message", Piece(text, logprobs=logprobs))
        if refusal := read_text(delta, "refusal"):
            yield from self._say("message", Piece(refusal, is_refusal=True))
        for call in read_objects(delta, "tool_calls"):
            yield from self._call(call)

    def end(self) -> Iterator[Step]:
        """The steps that end what is under way; raises AnswerError where a call has no name."""
        if any(turn.kind == "call" and not turn.name for turn in self._turns):
            raise AnswerError("a tool call without the function's name")
        while self._turns:
            yield from self._tell(self._turns[0])
            yield self._end(self._turns[0])

    def _say(self, kind: Literal["reasoning", "message"], piece: Piece) -> Iterator[Step]:
        turn = self._turns[-1] if self._turns else None
        if turn is None or turn.kind != kind:
            turn = self._new(Turn(kind))
            turn.size = TURN_COST
        self._add(turn, piece)
        return self._advance()

    def _call(self, delta: Entry) -> Iterator[Step]:
        function = read_object(delta, "function")
        name, arguments = read_text(function, "name"), read_text(function, "arguments")
        call = self._call_of(delta, name)
        call.name = call.name or name
        if call.is_ended:
            if arguments.strip():
                raise AnswerError("a tool call that goes on after its end")
        elif arguments:
            self._add(call, Piece(arguments))
            if not arguments.isspace():
                call.arguments.append(arguments)
        return self._advance()

    def _call_of(self, delta: Entry, name: str) -> Turn:
        """The call that a delta belongs to."""
        index, call_id = delta.get("index"), read_text(delta, "id")
        if not isinstance(index, int):
            index = max(self._calls, default=0)
            last = self._calls.get(index)
            if last is not None and (call_id != last.call_id if call_id else name):
                index += 1
        call = self._calls.get(index)
        if call is None or (name and call.name and call_id and call_id != call.call_id):
            call = self._calls[index] = self._new(Turn("call"))  # and kept to the end, so its cost is, too
        if not call.is_begun:
            call.call_id = call.call_id or call_id
        return call

    def _advance(self) -> Iterator[Step]:
        """Tells what can be told."""
        while self._turns:
            turn = self._turns[0]
            yield from self._tell(turn)
            if len(self._turns) == 1 or not turn.is_complete():
                return
            yield self._end(turn)

    def _tell(self, turn: Turn) -> Iterator[Step]:
        if turn.kind == "call" and not turn.name:
            return
        if not turn.is_begun:
            turn.is_begun = True
            yield Step("begin", turn)
        for is_refusal, group in groupby(turn.waiting, lambda piece: piece.is_refusal):
            pieces = list(group)
            logprobs = [entry for piece in pieces for entry in piece.logprobs]
            yield Step("tell", turn, Piece("".join(piece.text for piece in pieces), is_refusal, logprobs))
        turn.waiting.clear()
        if turn.kind != "call":
            self._give_back(turn)

    def _end(self, turn: Turn) -> Step:
        self._turns.popleft()
        turn.is_ended = True
        turn.arguments.clear()
        self._give_back(turn)
        return Step("end", turn)

    def _new(self, turn: Turn) -> Turn:
        self._take_room(TURN_COST)
        self._turns.append(turn)
        return turn

    def _add(self, turn: Turn, piece: Piece) -> None:
        self._take_room(piece.size)
        turn.size += piece.size
        turn.waiting.append(piece)

    def _give_back(self, turn: Turn) -> None:
        self._room += turn.size
        turn.size = 0

    def _take_room(self, size: int) -> None:
        self._room -= size
        if self._room < 0:
            raise AnswerError("more at once than can be held")


def first_choice(answer: Mapping[str, Any]) -> Entry | None:
    """Of a completion or a chunk; None where there is none, as in the chunk that tells the usage."""
    return next((choice for choice in read_objects(answer, "choices") if choice.get("index") in (0, None)), None)


def read_thoughts(message: Mapping[str, Any]) -> str:
    return next(filter(None, (read_text(message, name) for name in _THOUGHTS)), "")


def read_text(content: Mapping[str, Any], name: str) -> str:
    """A field's text, "" where it is absent; AnswerError for anything else. So do the two below."""
    value = content.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise AnswerError(f"a completion whose {name} is no text")
    return value


def read_object(content: Mapping[str, Any], name: str) -> Entry:
    value = content.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise AnswerError(f"a completion whose {name} is no object")
    return value


def read_objects(content: Mapping[str, Any], name: str) -> list[Entry]:
    value = content.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise AnswerError(f"a completion whose {name} is no list of objects")
    return value


def is_object(text: str) -> bool:
    """Whether it is a JSON object from its beginning to its end."""
    try:
        return isinstance(from_json(text, allow_inf_nan=False), dict)
    except ValueError:
        return False
