"""Anthropic's Messages API, sans I/O: a chat's answer as a message, whole or as a stream of events.

Usage is the backend's, or null when the backend reports no usage. A stream has zeros in `message_start`, before the
backend has counted, and the counts in `message_delta`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson
from pydantic_core import from_json

from gateway.backends.protocols.base import AnswerError
from gateway.backends.usage import count_of
from gateway.dialects.turns import (
    Step,
    Turn,
    Turns,
    event,
    first_choice,
    is_object,
    read_object,
    read_objects,
    read_text,
    read_thoughts,
)

HELD_MAX = 8 * 1024 * 1024  # characters that may wait for their turn in a stream
PING = event("ping")
_STOP_REASONS = {"length": "max_tokens", "content_filter": "refusal"}  # others: `tool_use` after calls, else `end_turn`


class Facts(NamedTuple):
    """Facts of the request that shape the answer; `prefill` is the client's own beginning of the answer."""

    message_id: str
    model: str
    stop_sequences: Sequence[str] = ()
    shows_thinking: bool = False
    prefill: str = ""


def message(completion: Mapping[str, Any], facts: Facts) -> bytes:
    """The whole message for a chat.completion; a tool's input is the model's own JSON, byte for byte.

    Raises:
        AnswerError: the completion has no choice, or a malformed tool call.
    """
    choice = first_choice(completion)
    if choice is None or not isinstance(choice.get("message"), dict):
        raise AnswerError("a completion without a message")
    answer = choice["message"]
    content: list[dict[str, Any]] = []
    thoughts = read_thoughts(answer)
    if thoughts and facts.shows_thinking:
        content.append({"type": "thinking", "thinking": thoughts, "signature": ""})
    # llama.cpp repeats the prefill in a whole answer; a stream and Anthropic's message do not.
    if text := read_text(answer, "content").removeprefix(facts.prefill) + read_text(answer, "refusal"):
        content.append({"type": "text", "text": text})
    is_cut = choice.get("finish_reason") == "length"
    calls = read_objects(answer, "tool_calls")
    content += [_tool_use(call, number, is_cut, facts) for number, call in enumerate(calls)]
    reason, sequence = _stop(choice, bool(calls), bool(answer.get("refusal")), facts)
    return orjson.dumps(
        {
            **_head(completion, facts),
            "content": content,
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": _usage(completion.get("usage")),
        }
    )


class MessageStream:
    """One stream: chunks of a chat in, server-sent events out, with one block open at a time."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._turns = Turns(HELD_MAX)
        self._index = -1  # of the open block
        self._calls = 0
        self._is_begun = self._has_choice = self._is_refused = False
        self._choice: dict[str, Any] = {}  # the one with the finish_reason
        self._usage: Any = None

    def feed(self, chunk: Mapping[str, Any]) -> bytes:
        """The events for a chunk, or b""; raises AnswerError when it is malformed, or when more than HELD_MAX waits."""
        events = b"" if self._is_begun else self._start(chunk)
        if isinstance(chunk.get("usage"), dict):
            self._usage = chunk["usage"]
        choice = first_choice(chunk)
        if choice is None:
            return events
        self._has_choice = True
        if choice.get("finish_reason"):
            self._choice = choice
        return events + b"".join(map(self._tell, self._turns.feed(read_object(choice, "delta"))))

    def end(self) -> bytes:
        """The last events; raises AnswerError for a stream without a choice, or a tool call without a name."""
        if not self._has_choice:
            raise AnswerError("a stream without a choice")
        events = b"".join(map(self._tell, self._turns.end()))
        reason, sequence = _stop(self._choice, self._calls > 0, self._is_refused, self._facts)
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        return events + event("message_delta", delta=delta, usage=_usage(self._usage)) + event("message_stop")

    def _start(self, chunk: Mapping[str, Any]) -> bytes:
        self._is_begun = True
        usage = {"input_tokens": 0, "output_tokens": 0}
        head = {**_head(chunk, self._facts), "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
        return event("message_start", message=head)

    def _tell(self, step: Step) -> bytes:
        turn, piece = step.turn, step.piece
        if turn.kind == "reasoning" and not self._facts.shows_thinking:
            return PING if step.kind == "tell" else b""
        if step.kind == "begin":
            self._index += 1
            return event("content_block_start", index=self._index, content_block=self._empty_block(turn))
        if step.kind == "end":
            # Clients wait for a thought's signature; the gateway has no key to sign with, so it is empty.
            sign = self._delta("signature_delta", "signature", "") if turn.kind == "reasoning" else b""
            return sign + event("content_block_stop", index=self._index)
        if turn.kind == "call":
            return self._delta("input_json_delta", "partial_json", piece.text)
        if turn.kind == "reasoning":
            return self._delta("thinking_delta", "thinking", piece.text)
        self._is_refused |= piece.is_refusal
        return self._delta("text_delta", "text", piece.text)

    def _empty_block(self, turn: Turn) -> dict[str, Any]:
        if turn.kind == "reasoning":
            return {"type": "thinking", "thinking": "", "signature": ""}
        if turn.kind == "message":
            return {"type": "text", "text": ""}
        call_id = turn.call_id or _call_id(self._facts, self._calls)
        self._calls += 1
        return {"type": "tool_use", "id": call_id, "name": turn.name, "input": {}}

    def _delta(self, kind: str, name: str, text: str) -> bytes:
        return event("content_block_delta", index=self._index, delta={"type": kind, name: text})


def _head(answer: Mapping[str, Any], facts: Facts) -> dict[str, Any]:
    model = read_text(answer, "model") or facts.model
    return {"id": facts.message_id, "type": "message", "role": "assistant", "model": model}


def _tool_use(call: Mapping[str, Any], number: int, is_cut: bool, facts: Facts) -> dict[str, Any]:
    """The block of a whole call. When the answer was cut for its length, the input is the part that came."""
    function = read_object(call, "function")
    name, arguments = read_text(function, "name"), read_text(function, "arguments") or "{}"
    if not name:
        raise AnswerError("a tool call without a name")
    given: Any = {}
    if is_object(arguments):
        given = orjson.Fragment(arguments)
    elif is_cut:
        given = _beginning(arguments)
    else:
        raise AnswerError(f"the arguments of tool call '{name[:100]}' are not a JSON object")
    return {"type": "tool_use", "id": read_text(call, "id") or _call_id(facts, number), "name": name, "input": given}


def _beginning(text: str) -> dict[str, Any]:
    """The complete fields of a cut JSON object."""
    try:
        given = from_json(text, allow_inf_nan=False, allow_partial="trailing-strings")
        orjson.dumps(given)
    except (ValueError, TypeError):  # not JSON; a number that is too long
        return {}
    return given if isinstance(given, dict) else {}


def _call_id(facts: Facts, number: int) -> str:
    return f"{facts.message_id.replace('msg_', 'toolu_', 1)}_{number}"


def _stop(choice: Mapping[str, Any], has_calls: bool, is_refused: bool, facts: Facts) -> tuple[str, str | None]:
    """`stop_reason` and `stop_sequence`. Only some backends, such as vLLM and SGLang, report the sequence."""
    reason = choice.get("finish_reason")
    if is_refused:
        return "refusal", None
    for name in ("stop_reason", "matched_stop"):
        if reason == "stop" and choice.get(name) in facts.stop_sequences:
            return "stop_sequence", choice[name]
    if isinstance(reason, str) and reason in _STOP_REASONS:
        return _STOP_REASONS[reason], None
    return "tool_use" if has_calls else "end_turn", None


def _usage(usage: Any) -> dict[str, Any]:
    """A chat's input tokens include cached tokens; Anthropic counts cached tokens separately."""
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
    return count_of(counts.get(name)) if isinstance(counts, dict) else None
