"""Anthropic's Messages API, sans I/O: a chat's answer as a message, whole or as a stream of events.

Usage is the backend's. A message must tell it before the backend does, so `message_start` has zeros: nothing is counted
yet. The counts are in `message_delta`, null where the backend never tells them; so they are in a whole message.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson
from pydantic_core import from_json

from gateway.upstream.adapters.base import AnswerError

# What may wait for its turn in a stream, in characters; a call counts for some, so that calls are bounded too.
HELD_MAX = 8 * 1024 * 1024
CALL_COST = 256
COUNT_MAX = 2**53  # what every client's JSON can hold
PING = b'event: ping\ndata: {"type":"ping"}\n\n'
# Names that servers have for a model's thoughts: llama.cpp and LiteLLM, vLLM, the earlier gateway.
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_STOP_REASONS = {"length": "max_tokens", "content_filter": "refusal"}  # others tell of calls, or of nothing special


class Facts(NamedTuple):
    """What an answer takes from its request; `prefill` is the beginning that the client gave the answer."""

    message_id: str
    model: str
    stop_sequences: Sequence[str] = ()
    shows_thinking: bool = False
    prefill: str = ""


def message(completion: Mapping[str, Any], facts: Facts) -> bytes:
    """The whole message for a chat.completion; a tool's input is the model's own JSON, byte for byte.

    Raises:
        AnswerError: the completion has no choice, or a tool call that is not a JSON object.
    """
    choice = _choice(completion)
    if choice is None or not isinstance(choice.get("message"), dict):
        raise AnswerError("a completion without a message")
    answer = choice["message"]
    content: list[dict[str, Any]] = []
    thoughts = _thoughts(answer)
    if thoughts and facts.shows_thinking:
        content.append({"type": "thinking", "thinking": thoughts, "signature": ""})
    # llama.cpp repeats the client's own words in a whole answer, not in a stream; a message never does.
    if text := _string(answer, "content").removeprefix(facts.prefill) + _string(answer, "refusal"):
        content.append({"type": "text", "text": text})
    is_cut = choice.get("finish_reason") == "length"
    calls = _calls(answer)
    content += [_tool_use(call, number, is_cut, facts) for number, call in enumerate(calls)]
    reason, sequence = _stop(choice, bool(calls), facts)
    if answer.get("refusal"):
        reason = "refusal"
    return orjson.dumps(
        {
            **_head(completion, facts),
            "content": content,
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": _usage(completion.get("usage")),
        }
    )


class _Part:
    """A block of a stream. `pieces` of a tool's input are kept to see where it ends; `told` are already out."""

    __slots__ = ("call_id", "kind", "name", "pieces", "told")

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.call_id = self.name = ""
        self.pieces: list[str] = []
        self.told = 0

    def is_complete(self) -> bool:
        """Whether nothing more can follow: always for text, which goes on in another block."""
        if self.kind != "tool_use":
            return True
        return bool(self.pieces) and self.pieces[-1].rstrip().endswith("}") and _is_object("".join(self.pieces))


class MessageStream:
    """One stream: chunks of a chat in, server-sent events out.

    One block is open at a time, as clients expect. A backend may mix the pieces of parallel tool calls: those of the
    first call go out as they come, the others wait until its input is a whole JSON object, or for the end.
    """

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._parts: deque[_Part] = deque()  # the first is the open one
        self._calls: dict[int, _Part] = {}
        self._index = -1  # of the open block
        self._is_begun = self._is_open = self._is_refused = False
        self._held = 0
        self._choice: dict[str, Any] = {}  # the one that told why the answer ended
        self._usage: Any = None

    def feed(self, chunk: Mapping[str, Any]) -> bytes:
        """The events for a chunk, b"" when there is none.

        Raises:
            AnswerError: the chunk is none, or more has to wait than is held.
        """
        events = [] if self._is_begun else [self._start(chunk)]
        if isinstance(chunk.get("usage"), dict):
            self._usage = chunk["usage"]
        choice = _choice(chunk)
        if choice is not None:
            if choice.get("finish_reason"):
                self._choice = choice
            delta = choice.get("delta")
            if isinstance(delta, dict):
                self._take(delta, events)
        return b"".join(events)

    def end(self) -> bytes:
        """The last events; raises AnswerError when nothing came, or a tool call without a name."""
        if not self._is_begun:
            raise AnswerError("a stream without anything in it")
        events: list[bytes] = []
        while self._parts:
            if not self._is_open:
                self._open(events)
            if not self._is_open:
                raise AnswerError("a tool call without a name")
            self._close(events)
        reason, sequence = _stop(self._choice, bool(self._calls), self._facts)
        if self._is_refused:
            reason = "refusal"
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        events.append(_event("message_delta", delta=delta, usage=_usage(self._usage)))
        events.append(_event("message_stop"))
        return b"".join(events)

    def _start(self, chunk: Mapping[str, Any]) -> bytes:
        self._is_begun = True
        usage = {"input_tokens": 0, "output_tokens": 0}
        head = {**_head(chunk, self._facts), "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
        return _event("message_start", message=head)

    def _take(self, delta: dict[str, Any], events: list[bytes]) -> None:
        if thoughts := _thoughts(delta):
            if self._facts.shows_thinking:
                self._add(self._running("thinking"), thoughts, events)
            else:
                events.append(PING)
        if text := _string(delta, "content"):
            self._add(self._running("text"), text, events)
        if refusal := _string(delta, "refusal"):
            self._is_refused = True
            self._add(self._running("text"), refusal, events)
        for number, call in enumerate(_calls(delta)):
            self._take_call(call, number, events)

    def _take_call(self, call: dict[str, Any], number: int, events: list[bytes]) -> None:
        index = call.get("index", number)
        if not isinstance(index, int):
            raise AnswerError("a tool call's index is not a number")
        part = self._calls.get(index)
        if part is None:
            part = self._calls[index] = _Part("tool_use")
            part.call_id = _string(call, "id") or _call_id(self._facts, index)
            self._parts.append(part)
            self._hold(CALL_COST)
        function = _function(call)
        part.name = part.name or _string(function, "name")
        self._add(part, _string(function, "arguments"), events)

    def _running(self, kind: str) -> _Part:
        """The last block when it is of this kind, else a new one."""
        if not self._parts or self._parts[-1].kind != kind:
            self._parts.append(_Part(kind))
        return self._parts[-1]

    def _add(self, part: _Part, piece: str, events: list[bytes]) -> None:
        if piece:
            if part.kind == "tool_use" and part not in self._parts:
                if piece.strip():
                    raise AnswerError("a tool call goes on after its end")
                return
            part.pieces.append(piece)
            self._hold(len(piece))
        while True:
            if not self._is_open:
                self._open(events)
            elif part is self._parts[0]:
                self._tell(part, events)
            if not self._is_open or len(self._parts) == 1 or not self._parts[0].is_complete():
                return
            self._close(events)

    def _hold(self, size: int) -> None:
        self._held += size
        if self._held > HELD_MAX:
            raise AnswerError("more tool calls at once than can be held")

    def _open(self, events: list[bytes]) -> None:
        """Opens the first block, unless it is a call whose name has not come."""
        part = self._parts[0]
        if part.kind == "tool_use" and not part.name:
            return
        self._index += 1
        self._is_open = True
        events.append(_event("content_block_start", index=self._index, content_block=_empty_block(part)))
        self._tell(part, events)

    def _tell(self, part: _Part, events: list[bytes]) -> None:
        """What has come of the open block and is not yet out, as one delta."""
        piece = "".join(part.pieces[part.told :])
        if piece:
            events.append(_event("content_block_delta", index=self._index, delta=_delta(part.kind, piece)))
        if part.kind == "tool_use":
            part.told = len(part.pieces)
        else:
            part.pieces.clear()
            self._held -= len(piece)

    def _close(self, events: list[bytes]) -> None:
        part = self._parts.popleft()
        self._is_open = False
        self._held -= sum(map(len, part.pieces))
        part.pieces.clear()
        events.append(_event("content_block_stop", index=self._index))


def _head(answer: Mapping[str, Any], facts: Facts) -> dict[str, Any]:
    model = _string(answer, "model") or facts.model
    return {"id": facts.message_id, "type": "message", "role": "assistant", "model": model}


def _choice(answer: Mapping[str, Any]) -> dict[str, Any] | None:
    """The first choice; None where there is none, as in the chunk that tells the usage."""
    choices = answer.get("choices")
    if not choices:
        return None
    if not isinstance(choices, list) or not isinstance(choices[0], dict):
        raise AnswerError("choices are not a list of objects")
    choice: dict[str, Any] = choices[0]
    return choice


def _thoughts(answer: Mapping[str, Any]) -> str:
    return next(filter(None, (_string(answer, name) for name in _THOUGHTS)), "")


def _calls(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    calls = answer.get("tool_calls") or []
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise AnswerError("tool_calls are not a list of objects")
    return calls


def _function(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call.get("function") or {}
    if not isinstance(function, dict):
        raise AnswerError("a tool call's function is not an object")
    return function


def _tool_use(call: Mapping[str, Any], number: int, is_cut: bool, facts: Facts) -> dict[str, Any]:
    """The block of a whole call. Where the answer was cut for its length, its input is what there is of it."""
    function = _function(call)
    name, arguments = _string(function, "name"), _string(function, "arguments") or "{}"
    if not name:
        raise AnswerError("a tool call without a name")
    given: Any = {}
    if _is_object(arguments):
        given = orjson.Fragment(arguments)
    elif is_cut:
        given = _beginning(arguments)
    else:
        raise AnswerError(f"the arguments of tool call '{name[:100]}' are not a JSON object")
    return {"type": "tool_use", "id": _string(call, "id") or _call_id(facts, number), "name": name, "input": given}


def _is_object(text: str) -> bool:
    try:
        return isinstance(from_json(text, allow_inf_nan=False), dict)
    except ValueError:
        return False


def _beginning(text: str) -> dict[str, Any]:
    """What an object's beginning says already; empty where it says nothing."""
    try:
        given = from_json(text, allow_inf_nan=False, allow_partial="trailing-strings")
        orjson.dumps(given)
    except (ValueError, TypeError):  # not JSON; a number that is too long
        return {}
    return given if isinstance(given, dict) else {}


def _call_id(facts: Facts, number: int) -> str:
    return f"{facts.message_id.replace('msg_', 'toolu_', 1)}_{number}"


def _stop(choice: Mapping[str, Any], has_calls: bool, facts: Facts) -> tuple[str, str | None]:
    """`stop_reason` and `stop_sequence`. The sequence is known where the backend tells it, as vLLM and SGLang do."""
    reason = choice.get("finish_reason")
    for name in ("stop_reason", "matched_stop"):
        if reason == "stop" and choice.get(name) in facts.stop_sequences:
            return "stop_sequence", choice[name]
    if isinstance(reason, str) and reason in _STOP_REASONS:
        return _STOP_REASONS[reason], None
    return "tool_use" if has_calls else "end_turn", None


def _usage(usage: Any) -> dict[str, Any]:
    """Anthropic counts what was read from a cache apart from the input, a chat as a part of it."""
    if not isinstance(usage, dict):
        return {"input_tokens": None, "output_tokens": None}
    read, sent = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    cached = _count(usage.get("prompt_tokens_details"), "cached_tokens")
    thinking = _count(usage.get("completion_tokens_details"), "reasoning_tokens")
    told: dict[str, Any] = {"input_tokens": read, "output_tokens": sent}
    if read is not None and cached is not None and cached <= read:
        told |= {"input_tokens": read - cached, "cache_read_input_tokens": cached}
    if thinking is not None:
        told["output_tokens_details"] = {"thinking_tokens": thinking}
    return told


def _count(counts: Any, name: str) -> int | None:
    value = counts.get(name) if isinstance(counts, dict) else None
    return value if isinstance(value, int) and 0 <= value < COUNT_MAX else None


def _string(answer: Mapping[str, Any], name: str) -> str:
    value = answer.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise AnswerError(f"{name} is not a string")
    return value


def _empty_block(part: _Part) -> dict[str, Any]:
    if part.kind == "tool_use":
        return {"type": "tool_use", "id": part.call_id, "name": part.name, "input": {}}
    if part.kind == "thinking":
        return {"type": "thinking", "thinking": "", "signature": ""}
    return {"type": "text", "text": ""}


def _delta(kind: str, piece: str) -> dict[str, str]:
    if kind == "tool_use":
        return {"type": "input_json_delta", "partial_json": piece}
    return {"type": f"{kind}_delta", kind: piece}


def _event(kind: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), orjson.dumps({"type": kind, **fields}))
