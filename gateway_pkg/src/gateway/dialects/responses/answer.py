"""OpenAI's Responses API, sans I/O: a chat's answer as a response, whole or as the stream of its events.

Whole answers and streams use the same code, so both give the same response. Usage is the backend's, or null.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import StringIO
from itertools import count
from typing import Any

from gateway.backends.protocols.base import AnswerError
from gateway.backends.usage import count_of
from gateway.dialects.responses.items import Item, NewId
from gateway.dialects.responses.tools import Origin, Tools, custom_input
from gateway.dialects.turns import (
    TURN_COST,
    Piece,
    Step,
    Turn,
    Turns,
    event,
    first_choice,
    read_object,
    read_objects,
    read_text,
)
from gateway.errors import ApiError

DONE = b"data: [DONE]\n\n"
OBFUSCATION_BLOCK = 16  # characters: deltas are padded to a multiple
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
# A response's name, a chat's name, and what OpenAI's models require where the backend tells no details.
_USAGE_DETAILS = (
    ("input_tokens_details", "prompt_tokens_details", {"cached_tokens": 0, "cache_write_tokens": 0}),
    ("output_tokens_details", "completion_tokens_details", {"reasoning_tokens": 0}),
)
_ECHOED = (
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "previous_response_id",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "safety_identifier",
    "temperature",
    "top_logprobs",
    "top_p",
    "user",
)


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of text: the field of its item that holds the parts, and the names of its events."""

    type: str
    events: str
    text_name: str = "text"
    parts: str = "content"
    part_events: str = "response.content_part"


_TEXT = _Kind("output_text", "response.output_text")
_REFUSAL = _Kind("refusal", "response.refusal", "refusal")
_REASONING = _Kind("reasoning_text", "response.reasoning_text")
_SUMMARY = _Kind(
    "summary_text", "response.reasoning_summary_text", "text", "summary", "response.reasoning_summary_part"
)


def make_ids(response_id: str) -> NewId:
    """Makes ids for a response's items; each contains the response's id."""
    numbers = count(1)
    return lambda prefix: f"{prefix}_{response_id.removeprefix('resp_')}{next(numbers):x}"


def response_of_item(item_id: str) -> str:
    """The id of the response that an item belongs to, if the gateway made the item's id."""
    return f"resp_{item_id.partition('_')[2][:32]}"


def begin(request: Mapping[str, Any], response_id: str, tools: Tools) -> dict[str, Any]:
    """The empty response object of a request."""
    reasoning, text = request.get("reasoning") or {}, request.get("text") or {}
    return {
        "id": response_id,
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "metadata": request.get("metadata") or {},
        "model": request.get("model") or "auto",
        "output": [],
        "parallel_tool_calls": request.get("parallel_tool_calls") is not False,
        "reasoning": {"effort": None, "summary": None, **reasoning},
        "service_tier": None,
        "store": request.get("store") is not False,
        "text": {**text, "format": text.get("format") or {"type": "text"}},
        "tool_choice": request.get("tool_choice") or "auto",
        "tools": tools.told,
        "truncation": request.get("truncation") or "disabled",
        "usage": None,
        **{name: request.get(name) for name in _ECHOED},
    }


class ResponseBuilder:
    """Builds a response and its events from a chat's chunks; each method returns whole events.

    `response` is the response object so far. `limit`, in characters, bounds its size. `seal` makes the encrypted
    content of reasoning where the client asks for it.
    """

    def __init__(
        self,
        request: Mapping[str, Any],
        response: dict[str, Any],
        tools: Tools,
        new_id: NewId,
        limit: int,
        seal: Callable[[str], str] | None = None,
    ) -> None:
        self.response = response
        reasoning = request.get("reasoning") or {}
        wants_summary = reasoning.get("summary") or reasoning.get("generate_summary")
        self._thoughts = _SUMMARY if wants_summary else _REASONING
        self._obfuscates = bool((request.get("stream_options") or {}).get("include_obfuscation"))
        self._origins = tools.origins
        self._seal = seal
        self._new_id = new_id
        self._turns = Turns(limit)
        self._room = limit
        self._sequence = self._given_out = 0
        self._item: Item = {}  # the open item, the last of the output
        self._kind: _Kind | None = None  # of the open part
        self._text = StringIO()  # of the open part, or a call's arguments
        self._logprobs: list[Item] = []
        self._finish_reason = ""
        self._has_choice = False

    def start(self) -> bytes:
        """The first events, before the model's own."""
        created = self._event("response.created", response=self.response)
        return self._all(created + self._event("response.in_progress", response=self.response))

    def feed(self, chunk: Mapping[str, Any]) -> bytes:
        """The events for a chat.completion.chunk; raises AnswerError for a malformed chunk."""
        self.response["usage"] = response_usage(chunk.get("usage")) or self.response["usage"]
        if isinstance(chunk.get("service_tier"), str):
            self.response["service_tier"] = chunk["service_tier"]
        choice = first_choice(chunk)
        if choice is None:
            return b""
        self._has_choice = True
        steps = self._turns.feed(read_object(choice, "delta"), _logprobs(choice.get("logprobs")))
        events = b"".join(map(self._tell, steps))
        self._finish_reason = read_text(choice, "finish_reason") or self._finish_reason
        return self._all(events)

    def feed_completion(self, completion: Mapping[str, Any]) -> None:
        """Takes a whole chat.completion instead of chunks; raises AnswerError for a malformed completion."""
        choices = [{**choice, "delta": choice.get("message")} for choice in read_objects(completion, "choices")]
        self.feed({**completion, "choices": choices})

    def end(self) -> bytes:
        """Closes the open item, sets the status; raises AnswerError without a choice, or for a call without a name."""
        if not self._has_choice:
            raise AnswerError("a completion without a choice")
        reason = _INCOMPLETE.get(self._finish_reason)
        status = "incomplete" if reason else "completed"
        steps = list(self._turns.end())
        events = b"".join(map(self._tell, steps[:-1]))
        if steps:  # only the last item can be incomplete
            events += self._end_item(status)
        self.response["status"] = status
        if reason:
            self.response["incomplete_details"] = {"reason": reason}
        else:
            self.response["completed_at"] = int(time.time())
        return self._all(events)

    def finish(self) -> bytes:
        """The last events, after `end`."""
        return self._event(f"response.{self.response['status']}", response=self.response) + DONE

    def fail(self, error: ApiError) -> bytes:
        """The last events of a failed response; the open item stays in the response as incomplete."""
        if self._item:
            self._end_item("incomplete")
        # The client has not seen the events of the failed call, and does not get those of closing the item.
        self._sequence = self._given_out
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        self.response["status"] = "failed"
        self.response["error"] = {"code": code, "message": error.message}
        return self._event("error", code=error.code, message=error.message, param=error.param) + self._event(
            "response.failed", response=self.response
        )

    def _tell(self, step: Step) -> bytes:
        if step.kind == "begin":
            return self._begin_item(step.turn)
        if step.kind == "end":
            return self._end_item("completed")
        self._take_room(step.piece.size)
        if step.turn.kind == "call":
            return self._tell_arguments(step.piece.text)
        if step.turn.kind == "reasoning":
            return self._tell_text(self._thoughts, step.piece)
        return self._tell_text(_REFUSAL if step.piece.is_refusal else _TEXT, step.piece)

    def _begin_item(self, turn: Turn) -> bytes:
        self._take_room(TURN_COST)
        self._kind, self._text = None, StringIO()
        if turn.kind == "call":
            self._item = self._new_call(turn)
        elif turn.kind == "reasoning":
            self._item = {"id": self._new_id("rs"), "type": "reasoning", "status": "in_progress", "summary": []}
            self._item[self._thoughts.parts] = []
        else:
            self._item = {"id": self._new_id("msg"), "type": "message", "role": "assistant", "status": "in_progress"}
            self._item["content"] = []
        self.response["output"].append(self._item)
        return self._event("response.output_item.added", output_index=self._output_index, item=self._item)

    def _new_call(self, turn: Turn) -> Item:
        origin = self._origins.get(turn.name) or Origin(turn.name)
        prefix, kind, text = (
            ("ctc", "custom_tool_call", "input") if origin.is_custom else ("fc", "function_call", "arguments")
        )
        item = {"id": self._new_id(prefix), "type": kind, "status": "in_progress"}
        item["call_id"] = turn.call_id or f"call_{secrets.token_hex(12)}"
        if origin.namespace is not None:
            item["namespace"] = origin.namespace
        return {**item, "name": origin.name, text: ""}

    def _end_item(self, status: str) -> bytes:
        item = self._item
        if item["type"] == "function_call":
            events = self._tell_arguments("{}") if not self._text.tell() else b""
            item["arguments"] = self._text.getvalue()
            fields = {name: item[name] for name in ("name", "arguments")}
            events += self._event("response.function_call_arguments.done", **self._place(), **fields)
        elif item["type"] == "custom_tool_call":
            item["input"] = custom_input(self._text.getvalue())
            place, name = self._place(), "response.custom_tool_call_input"
            events = self._event(f"{name}.delta", **place, delta=item["input"])
            events += self._event(f"{name}.done", **place, input=item["input"])
        else:
            thoughts = self._text.getvalue() if self._kind is self._thoughts else ""
            events = self._end_part()
            if item["type"] == "reasoning" and self._seal is not None:
                item["encrypted_content"] = self._seal(thoughts)
        item["status"] = status
        self._item = {}
        return events + self._event("response.output_item.done", output_index=self._output_index, item=item)

    def _tell_arguments(self, text: str) -> bytes:
        self._text.write(text)
        if self._item["type"] == "custom_tool_call":  # its input is told when the arguments are whole
            return b""
        kind = "response.function_call_arguments.delta"
        return self._event(kind, **self._place(), delta=text, **self._padding(text))

    def _tell_text(self, kind: _Kind, piece: Piece) -> bytes:
        events = b""
        if self._kind is not kind:
            events = self._end_part() + self._begin_part(kind)
        self._text.write(piece.text)
        fields: Item = {"delta": piece.text}
        if kind is _TEXT:
            fields["logprobs"] = piece.logprobs
            self._logprobs += piece.logprobs
        return events + self._event(f"{kind.events}.delta", **self._place(kind), **fields, **self._padding(piece.text))

    def _begin_part(self, kind: _Kind) -> bytes:
        self._kind, self._text, self._logprobs = kind, StringIO(), []
        part: Item = {"type": kind.type, kind.text_name: ""}
        if kind is _TEXT:
            part |= {"annotations": [], "logprobs": []}
        self._item[kind.parts].append(part)
        return self._event(f"{kind.part_events}.added", **self._place(kind), part=part)

    def _end_part(self) -> bytes:
        kind = self._kind
        if kind is None:
            return b""
        place, part, text = self._place(kind), self._item[kind.parts][-1], self._text.getvalue()
        part[kind.text_name] = text
        fields: Item = {kind.text_name: text}
        if kind is _TEXT:
            part["logprobs"] = fields["logprobs"] = self._logprobs
        return self._event(f"{kind.events}.done", **place, **fields) + self._event(
            f"{kind.part_events}.done", **place, part=part
        )

    @property
    def _output_index(self) -> int:
        """Index of the open item."""
        return len(self.response["output"]) - 1

    def _place(self, kind: _Kind | None = None) -> Item:
        """The place of the open item, or of its last part."""
        place = {"item_id": self._item["id"], "output_index": self._output_index}
        return place if kind is None else {**place, f"{kind.parts}_index": len(self._item[kind.parts]) - 1}

    def _take_room(self, size: int) -> None:
        self._room -= size
        if self._room < 0:
            raise AnswerError("an answer without end")

    def _padding(self, text: str) -> Item:
        if not self._obfuscates:
            return {}
        length = -len(text) % OBFUSCATION_BLOCK
        return {"obfuscation": secrets.token_hex(OBFUSCATION_BLOCK)[:length]}

    def _all(self, events: bytes) -> bytes:
        self._given_out = self._sequence
        return events

    def _event(self, kind: str, **fields: Any) -> bytes:
        self._sequence += 1
        return event(kind, sequence_number=self._sequence - 1, **fields)


def response_usage(usage: Any) -> Item | None:
    """A chat's usage as a response's; None where the backend tells no counts."""
    if not isinstance(usage, dict):
        return None
    given, made = count_of(usage.get("prompt_tokens")), count_of(usage.get("completion_tokens"))
    if given is None or made is None:
        return None
    told: Item = {"input_tokens": given, "output_tokens": made, "total_tokens": given + made}
    for name, of_chat, required in _USAGE_DETAILS:
        content = usage.get(of_chat)
        counts = content.items() if isinstance(content, dict) else ()
        told[name] = required | {key: count for key, count in counts if count_of(count) is not None}
    return told


def _logprobs(content: Any) -> list[Item]:
    """A chat's logprobs as the logprobs of a response's text; malformed entries are dropped."""
    entries = content.get("content") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        return []
    return [
        {**_logprob(entry), "top_logprobs": [_logprob(top) for top in _list(entry, "top_logprobs") if _is_one(top)]}
        for entry in entries
        if _is_one(entry)
    ]


def _logprob(entry: Item) -> Item:
    return {
        "token": entry["token"],
        "bytes": [byte for byte in _list(entry, "bytes") if isinstance(byte, int)],
        "logprob": entry["logprob"],
    }


def _is_one(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("token"), str)
        and isinstance(entry.get("logprob"), int | float)
    )


def _list(entry: Item, name: str) -> list[Any]:
    value = entry.get(name)
    return value if isinstance(value, list) else []
