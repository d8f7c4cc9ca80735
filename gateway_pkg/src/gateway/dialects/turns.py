"""A chat's answer as turns, sans I/O: thoughts, messages and tool calls, each told to its end before the next begins.

Clients of the messages and responses APIs rely on this order; servers do not keep it. Servers interleave the pieces of
parallel calls, omit a call's index, or give one index to several calls.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from itertools import groupby
from typing import Any, Literal, NamedTuple

from pydantic_core import from_json

from gateway.backends.protocols.base import THOUGHTS, AnswerError
from gateway.routing.body import dump
from gateway.wire.stepwise import is_heavy

Entry = dict[str, Any]

# Costs, in characters, that bound turns, logprobs and waiting pieces as text is bounded.
TURN_COST = 256
LOGPROB_COST = 100
PIECE_COST = 100  # of a piece that waits
CALLS_MAX = 1_000  # in an answer; OpenAI's API takes 128 tools
ARGUMENTS_MAX_VALUES = 400_000


class Piece(NamedTuple):
    """A piece of a turn's text. `logprobs` has an entry per token, each with its `top_logprobs`."""

    text: str
    is_refusal: bool = False
    logprobs: Sequence[Entry] = ()

    @property
    def size(self) -> int:
        """The piece's cost, in characters."""
        return len(self.text) + sum(LOGPROB_COST * (1 + len(entry["top_logprobs"])) for entry in self.logprobs)


class ObjectEnd:
    """Finds the end of a JSON object that comes in pieces; reads each character once, and at most MARKS_MAX marks.

    Beyond MARKS_MAX it does not see the end of the object: then later turns wait for the end of the answer.
    """

    MARKS_MAX = 100_000  # quotes, braces and escapes; 40 ms in one piece

    _MARK = re.compile(r'["{}]')
    _MARK_IN_TEXT = re.compile(r'["\\]')

    def __init__(self) -> None:
        self._depth = 0
        self._is_in_text = self._is_escaped = False
        self._is_over = self._is_beyond = False
        self._marks_left = self.MARKS_MAX

    def is_reached(self, piece: str) -> bool:
        """Whether the object has ended, in this piece or before, and only blanks have followed."""
        at = 0
        if self._is_escaped and piece:
            at, self._is_escaped = 1, False
        while not self._is_over:
            if not self._marks_left:
                return False
            mark = (self._MARK_IN_TEXT if self._is_in_text else self._MARK).search(piece, at)
            if mark is None:
                return False
            self._marks_left -= 1
            at = mark.end()
            match mark[0]:
                case '"':
                    self._is_in_text = not self._is_in_text
                case "\\":
                    self._is_escaped = at == len(piece)
                    at += 1
                case "{":
                    self._depth += 1
                case _:
                    self._depth -= 1
                    self._is_over = self._depth <= 0
        self._is_beyond |= bool(piece[at:].strip())
        return not self._is_beyond


class Turn:
    """A thought, a message, or a tool call, which has a `name` and, if the server sends one, a `call_id`."""

    def __init__(self, kind: Literal["reasoning", "message", "call"]) -> None:
        self.kind = kind
        self.call_id = self.name = ""
        self.arguments: StringIO | None = StringIO()  # of a call, to find their end; None after it
        self._end = ObjectEnd()
        self._is_at_end = False
        self.waiting: list[Piece] = []  # pieces to tell
        self.size = 0  # cost of what the turn holds, in characters
        self.is_begun = self.is_ended = False

    def add_arguments(self, text: str) -> None:
        if self.arguments is not None:
            self.arguments.write(text)
            self._is_at_end = self._end.is_reached(text)

    def is_complete(self) -> bool:
        """Whether another turn may begin. Words are always complete: they may go on in a later turn."""
        if self.kind != "call":
            return True
        if not self.name or not self._is_at_end or self.arguments is None:
            return False
        if is_object(self.arguments.getvalue()):
            return True
        self.arguments = None  # no continuation can make the arguments an object
        return False


class Step(NamedTuple):
    """A turn begins, tells a `piece`, or ends."""

    kind: Literal["begin", "tell", "end"]
    turn: Turn
    piece: Piece = Piece("")


class Turns:
    """Deltas in, steps out. `limit`, in characters, bounds the waiting pieces, the current call's arguments, and calls.

    Words and the current call go out as they come. What follows a call waits until the call's arguments are a whole
    JSON object, or until the answer ends.
    """

    def __init__(self, limit: int) -> None:
        self._turns: deque[Turn] = deque()  # the first is the current turn
        self._calls: dict[int, Turn] = {}
        self._last_index = 0  # of the calls
        self._calls_left = CALLS_MAX
        self._room = limit

    def feed(self, delta: Mapping[str, Any], logprobs: Sequence[Entry] = ()) -> Iterator[Step]:
        """The steps for a delta or a whole message; raises AnswerError for a malformed one, or when too much waits."""
        if thoughts := read_thoughts(delta):
            yield from self._say("reasoning", Piece(thoughts))
        if text := read_text(delta, "content"):
            yield from self._say("message", Piece(text, logprobs=logprobs))
        if refusal := read_text(delta, "refusal"):
            yield from self._say("message", Piece(refusal, is_refusal=True))
        calls = read_objects(delta, "tool_calls")
        if len(calls) > CALLS_MAX:
            raise AnswerError(f"more than {CALLS_MAX} tool calls")
        for call in calls:
            yield from self._call(call)

    def end(self) -> Iterator[Step]:
        """The steps that end the open turns; raises AnswerError for a call without a name."""
        if any(turn.kind == "call" and not turn.name for turn in self._turns):
            raise AnswerError("a tool call without a name")
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
                call.add_arguments(arguments)
        return self._advance()

    def _call_of(self, delta: Entry, name: str) -> Turn:
        """The call that a delta belongs to."""
        index, call_id = delta.get("index"), read_text(delta, "id")
        if not isinstance(index, int):
            index = self._last_index
            last = self._calls.get(index)
            if last is not None and (call_id != last.call_id if call_id else name):
                index += 1
        call = self._calls.get(index)
        if call is None or (name and call.name and call_id and call_id != call.call_id):
            self._calls_left -= 1
            if self._calls_left < 0:
                raise AnswerError(f"more than {CALLS_MAX} tool calls")
            self._last_index = max(index, self._last_index) if self._calls else index
            call = self._calls[index] = self._new(Turn("call"))  # kept to the end, and so is its cost
        if not call.is_begun:
            call.call_id = call.call_id or call_id
        return call

    def _advance(self) -> Iterator[Step]:
        """Tells the pieces whose turn it is."""
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
        # A call's arguments are kept to its end.
        self._give_back(turn, turn.size if turn.kind != "call" else PIECE_COST * len(turn.waiting))
        turn.waiting.clear()

    def _end(self, turn: Turn) -> Step:
        self._turns.popleft()
        turn.is_ended = True
        turn.arguments = None
        self._give_back(turn, turn.size)
        return Step("end", turn)

    def _new(self, turn: Turn) -> Turn:
        self._take_room(TURN_COST)
        self._turns.append(turn)
        return turn

    def _add(self, turn: Turn, piece: Piece) -> None:
        size = PIECE_COST + piece.size
        self._take_room(size)
        turn.size += size
        turn.waiting.append(piece)

    def _give_back(self, turn: Turn, size: int) -> None:
        self._room += size
        turn.size -= size

    def _take_room(self, size: int) -> None:
        self._room -= size
        if self._room < 0:
            raise AnswerError("more at once than the gateway can hold")


def first_choice(answer: Mapping[str, Any]) -> Entry | None:
    """The first choice of a completion or chunk; None without one, as in the chunk that has the usage."""
    return next((choice for choice in read_objects(answer, "choices") if choice.get("index") in (0, None)), None)


def read_thoughts(message: Mapping[str, Any]) -> str:
    return next(filter(None, (read_text(message, name) for name in THOUGHTS)), "")


def read_text(content: Mapping[str, Any], name: str) -> str:
    """The field's string, "" where it is absent; raises AnswerError for another type. So do the two functions below."""
    value = content.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise AnswerError(f"a completion whose {name} is not a string")
    return value


def read_object(content: Mapping[str, Any], name: str) -> Entry:
    value = content.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise AnswerError(f"a completion whose {name} is not an object")
    return value


def read_objects(content: Mapping[str, Any], name: str) -> list[Entry]:
    value = content.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise AnswerError(f"a completion whose {name} is not a list of objects")
    return value


def is_object(text: str) -> bool:
    """Whether the whole text is a JSON object, of at most ARGUMENTS_MAX_VALUES values."""
    if is_heavy(text, ARGUMENTS_MAX_VALUES):
        return False
    try:
        return isinstance(from_json(text, allow_inf_nan=False), dict)
    except ValueError:
        return False


def event(kind: str, **fields: Any) -> bytes:
    """A server-sent event of the messages and responses APIs, whose data repeats the event's name as `type`."""
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), dump({"type": kind, **fields}))
