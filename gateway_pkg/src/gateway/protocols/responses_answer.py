"""OpenAI's Responses API, sans I/O: a chat's answer as a response, whole or as the stream of its events.

Whole answers and streams take the same way, so that both give the same response. Usage is the backend's, or null.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic_core import from_json

from gateway.http.errors import ApiError
from gateway.protocols.responses import Item, NewId
from gateway.routing.body import dump
from gateway.upstream.adapters.base import AnswerError

DONE = b"data: [DONE]\n\n"
OBFUSCATION_BLOCK = 16  # characters: deltas are padded to a multiple
ENTRY_SIZE = 100  # about the characters of an empty call, or of a token's logprob
# Names that servers have for a model's thoughts: llama.cpp and LiteLLM, vLLM, the earlier gateway.
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}
_ECHOED = (
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "previous_response_id",
    "prompt_cache_key",
    "safety_identifier",
    "temperature",
    "top_logprobs",
    "top_p",
    "user",
)


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of text that a model makes: in which field of what item its parts are, and what its events are called."""

    type: str
    item_type: str
    text_name: str
    events: str
    parts: str = "content"
    index_name: str = "content_index"
    part_events: str = "response.content_part"


_TEXT = _Kind("output_text", "message", "text", "response.output_text")
_REFUSAL = _Kind("refusal", "message", "refusal", "response.refusal")
_REASONING = _Kind("reasoning_text", "reasoning", "text", "response.reasoning_text")
_SUMMARY = _Kind(
    "summary_text",
    "reasoning",
    "text",
    "response.reasoning_summary_text",
    parts="summary",
    index_name="summary_index",
    part_events="response.reasoning_summary_part",
)


@dataclass(slots=True)
class _Saying:
    """A message or a train of thought; what waits is not told yet. It has an item once the first event tells of it."""

    item_type: str
    waiting: list[tuple[_Kind, str, list[Item]]] = field(default_factory=list)
    item: Item | None = None
    kind: _Kind | None = None  # of the part that is being told
    pieces: list[str] = field(default_factory=list)
    logprobs: list[Item] = field(default_factory=list)

    def is_complete(self) -> bool:
        return True


@dataclass(slots=True)
class _Calling:
    """A function call; of the pieces of its arguments the first `told` are told."""

    call_id: str
    name: str = ""
    item: Item | None = None
    pieces: list[str] = field(default_factory=list)
    told: int = 0
    is_closed: bool = False

    def is_complete(self) -> bool:
        return bool(self.name) and is_object("".join(self.pieces))


def make_ids(response_id: str) -> NewId:
    """Names items of a response, so that the response is found by an item's name."""
    count = 0

    def new_id(prefix: str) -> str:
        nonlocal count
        count += 1
        return f"{prefix}_{response_id.removeprefix('resp_')}{count:x}"

    return new_id


def new_response_id() -> str:
    return f"resp_{secrets.token_hex(16)}"


def response_of_item(item_id: str) -> str:
    """The name of the response that an item would be of, if the gateway has named it."""
    return f"resp_{item_id.partition('_')[2][:32]}"


def begin(request: Mapping[str, Any], response_id: str) -> dict[str, Any]:
    """The response object before there is anything in it."""
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
        "tools": [_told(tool) for tool in request.get("tools") or ()],
        "truncation": "disabled",
        "usage": None,
        **{name: request.get(name) for name in _ECHOED},
    }


class ResponseBuilder:
    """Makes a response of a chat's chunks, and the events that tell of it; each method gives whole events.

    `response` is the response object as it is by now. What is built is bounded by `limit` characters.
    """

    def __init__(self, request: Mapping[str, Any], response: dict[str, Any], new_id: NewId, limit: int) -> None:
        self.response = response
        reasoning = request.get("reasoning") or {}
        wants_summary = reasoning.get("summary") or reasoning.get("generate_summary")
        self._thoughts = _SUMMARY if wants_summary else _REASONING
        self._obfuscates = bool((request.get("stream_options") or {}).get("include_obfuscation"))
        self._new_id = new_id
        self._room = limit
        self._sequence = self._given_out = 0
        self._turns: list[_Saying | _Calling] = []
        self._live = 0  # the turn that is being told; those before are closed, those after wait
        self._calls: dict[int, _Calling] = {}
        self._finish_reason = ""
        self._has_choice = False

    def start(self) -> bytes:
        """The events before the first of the model's."""
        created = self._event("response.created", response=self.response)
        return self._all(created + self._event("response.in_progress", response=self.response))

    def feed(self, chunk: Mapping[str, Any]) -> bytes:
        """The events for a chat.completion.chunk, b"" when it tells nothing; raises AnswerError when it is none."""
        self._look_at_usage(chunk.get("usage"))
        if isinstance(chunk.get("service_tier"), str):
            self.response["service_tier"] = chunk["service_tier"]
        events = b""
        for choice in _objects(chunk, "choices"):
            if choice.get("index") in (0, None):
                self._has_choice = True
                events += self._feed_choice(choice, _object(choice, "delta"))
        return self._all(events)

    def feed_completion(self, completion: Mapping[str, Any]) -> None:
        """Takes a whole chat.completion instead of chunks; raises AnswerError when it is none."""
        choices = [{**choice, "delta": choice.get("message")} for choice in _objects(completion, "choices")]
        self.feed({**completion, "choices": choices})

    def end(self) -> bytes:
        """The events that close what is open, and the response with them: `finish` tells of that.

        Raises:
            AnswerError: the model answered nothing at all, or called a function without a name.
        """
        if not self._has_choice:
            raise AnswerError("a completion without a choice")
        if any(isinstance(turn, _Calling) and not turn.name for turn in self._turns):
            raise AnswerError("a tool call without the function's name")
        reason = _INCOMPLETE.get(self._finish_reason)
        status = "incomplete" if reason else "completed"
        events = b""
        for turn in self._turns[self._live :]:
            # Cut short was what came last.
            events += self._tell(turn) + self._close(turn, status if turn is self._turns[-1] else "completed")
        self._live = len(self._turns)
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
        """The last events when there is no answer; what had been made of it stays in the response as incomplete."""
        for turn in self._turns[self._live : self._live + 1]:
            self._tell(turn)
            self._close(turn, "incomplete")
        # Events of what went wrong half-way have not been given out, and those of closing it need not be.
        self._sequence = self._given_out
        code = "rate_limit_exceeded" if error.status == 429 else "server_error"
        self.response["status"] = "failed"
        self.response["error"] = {"code": code, "message": error.message}
        return self._event("error", code=error.code, message=error.message, param=error.param) + self._event(
            "response.failed", response=self.response
        )

    def _feed_choice(self, choice: Item, delta: Item) -> bytes:
        events = b""
        if thoughts := next((text for name in _THOUGHTS if (text := _text(delta, name))), ""):
            events += self._say(self._thoughts, thoughts, [])
        if text := _text(delta, "content"):
            events += self._say(_TEXT, text, _logprobs(choice.get("logprobs")))
        if refusal := _text(delta, "refusal"):
            events += self._say(_REFUSAL, refusal, [])
        for call in _objects(delta, "tool_calls"):
            events += self._call(call)
        self._finish_reason = _text(choice, "finish_reason") or self._finish_reason
        return events

    def _say(self, kind: _Kind, text: str, logprobs: list[Item]) -> bytes:
        self._take_room(len(text) + sum(ENTRY_SIZE * (1 + len(entry["top_logprobs"])) for entry in logprobs))
        turn = self._turns[-1] if self._turns else None
        is_new = not isinstance(turn, _Saying) or turn.item_type != kind.item_type
        if not isinstance(turn, _Saying) or is_new:
            turn = _Saying(kind.item_type)
            self._turns.append(turn)
        turn.waiting.append((kind, text, logprobs))
        return self._advance(is_new=is_new)

    def _call(self, delta: Item) -> bytes:
        function = _object(delta, "function")
        name, arguments = _text(function, "name"), _text(function, "arguments")
        count = len(self._turns)
        call = self._calling(delta, name)
        self._take_room(len(name) + len(arguments))
        if call.is_closed:
            if arguments.strip():
                raise AnswerError("a tool call that goes on after its end")
            return b""
        if call.item is None:
            call.name += name
        if arguments:
            call.pieces.append(arguments)
        return self._advance(is_new=len(self._turns) > count)

    def _calling(self, delta: Item, name: str) -> _Calling:
        """The call that a delta belongs to. Servers leave out the index, or give one index to several calls."""
        index, call_id = delta.get("index"), _text(delta, "id")
        if not isinstance(index, int):
            last = max(self._calls, default=-1)
            index = last + 1 if name or last < 0 else last
        call = self._calls.get(index)
        if call is None or (name and call_id and call_id != call.call_id):
            self._take_room(ENTRY_SIZE)
            call = self._calls[index] = _Calling(call_id or f"call_{secrets.token_hex(12)}")
            self._turns.append(call)
        return call

    def _advance(self, *, is_new: bool) -> bytes:
        """Tells what there is to tell. One item is told to its end before the next begins, as OpenAI does it.

        Clients rely on that. Of calls whose arguments come mixed, those behind the first wait for the end.
        """
        events = self._tell(self._turns[self._live])
        while is_new and self._live + 1 < len(self._turns) and self._turns[self._live].is_complete():
            events += self._close(self._turns[self._live], "completed")
            self._live += 1
            events += self._tell(self._turns[self._live])
        return events

    def _tell(self, turn: _Saying | _Calling) -> bytes:
        return self._tell_saying(turn) if isinstance(turn, _Saying) else self._tell_call(turn)

    def _tell_saying(self, turn: _Saying) -> bytes:
        events = b""
        for kind, text, logprobs in turn.waiting:
            if turn.item is None:
                turn.item = _new_item(kind, self._new_id)
                events += self._add(turn.item)
            if turn.kind is not kind:
                events += self._close_part(turn) + self._open_part(turn, kind)
            turn.pieces.append(text)
            fields: Item = {"delta": text}
            if kind is _TEXT:
                fields["logprobs"] = logprobs
                turn.logprobs += logprobs
            place = self._place(turn, kind)
            events += self._event(f"{kind.events}.delta", **place, **fields, **self._padding(text))
        turn.waiting.clear()
        return events

    def _tell_call(self, turn: _Calling) -> bytes:
        if not turn.name:
            return b""
        events = b""
        if turn.item is None:
            turn.item = {"id": self._new_id("fc"), "type": "function_call", "status": "in_progress"}
            turn.item |= {"call_id": turn.call_id, "name": turn.name, "arguments": ""}
            events = self._add(turn.item)
        if new := "".join(turn.pieces[turn.told :]):
            name = "response.function_call_arguments.delta"
            events += self._event(name, **self._place(turn), delta=new, **self._padding(new))
        turn.told = len(turn.pieces)
        return events

    def _close(self, turn: _Saying | _Calling, status: str) -> bytes:
        if turn.item is None:
            return b""
        if isinstance(turn, _Saying):
            events = self._close_part(turn)
        else:
            turn.is_closed = True
            turn.item["arguments"] = arguments = "".join(turn.pieces)
            name = "response.function_call_arguments.done"
            events = self._event(name, **self._place(turn), name=turn.name, arguments=arguments)
        turn.item["status"] = status
        return events + self._event("response.output_item.done", output_index=self._output_index, item=turn.item)

    def _add(self, item: Item) -> bytes:
        self.response["output"].append(item)
        return self._event("response.output_item.added", output_index=self._output_index, item=item)

    def _open_part(self, turn: _Saying, kind: _Kind) -> bytes:
        turn.kind, turn.pieces, turn.logprobs = kind, [], []
        part: Item = {"type": kind.type, kind.text_name: ""}
        if kind is _TEXT:
            part |= {"annotations": [], "logprobs": []}
        assert turn.item is not None  # noqa: S101  # a part is one of an item
        turn.item[kind.parts].append(part)
        return self._event(f"{kind.part_events}.added", **self._place(turn, kind), part=part)

    def _close_part(self, turn: _Saying) -> bytes:
        kind = turn.kind
        if kind is None or turn.item is None:
            return b""
        place, part, text = self._place(turn, kind), turn.item[kind.parts][-1], "".join(turn.pieces)
        part[kind.text_name] = text
        fields: Item = {kind.text_name: text}
        if kind is _TEXT:
            part["logprobs"] = fields["logprobs"] = turn.logprobs
        return self._event(f"{kind.events}.done", **place, **fields) + self._event(
            f"{kind.part_events}.done", **place, part=part
        )

    @property
    def _output_index(self) -> int:
        """Of the item that is being told."""
        output: list[Item] = self.response["output"]
        return len(output) - 1

    def _place(self, turn: _Saying | _Calling, kind: _Kind | None = None) -> Item:
        assert turn.item is not None  # noqa: S101  # only what has one is told
        place = {"item_id": turn.item["id"], "output_index": self._output_index}
        if kind is not None:
            place[kind.index_name] = len(turn.item[kind.parts]) - 1
        return place

    def _look_at_usage(self, usage: Any) -> None:
        if not isinstance(usage, dict):
            return
        given, made = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if not isinstance(given, int) or not isinstance(made, int):
            return
        told: Item = {"input_tokens": given, "output_tokens": made, "total_tokens": given + made}
        for name, details in (("input_tokens_details", "prompt"), ("output_tokens_details", "completion")):
            if isinstance(content := usage.get(f"{details}_tokens_details"), dict):
                told[name] = {key: count for key, count in content.items() if isinstance(count, int)}
        self.response["usage"] = told

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
        content = {"type": kind, "sequence_number": self._sequence, **fields}
        self._sequence += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), dump(content))


def _new_item(kind: _Kind, new_id: NewId) -> Item:
    if kind.item_type == "message":
        item: Item = {"id": new_id("msg"), "type": "message", "role": "assistant", "status": "in_progress"}
        return {**item, "content": []}
    item = {"id": new_id("rs"), "type": "reasoning", "status": "in_progress", "summary": []}
    return {**item, kind.parts: []}


def is_object(text: str) -> bool:
    """Whether it is a JSON object from its beginning to its end."""
    if not text.rstrip().endswith("}"):
        return False
    try:
        return isinstance(from_json(text), dict)
    except ValueError:
        return False


def _told(tool: Item) -> Item:
    """A tool as the response tells it: with all of its fields."""
    if isinstance(tool.get("function"), dict):
        tool = {"type": "function", **tool["function"]}
    return {"description": None, "parameters": None, "strict": None, **tool}


def _logprobs(content: Any) -> list[Item]:
    """A chat's logprobs as those of a response's text; entries that are none are left out."""
    entries = content.get("content") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        return []
    return [
        {**_logprob(entry), "top_logprobs": [_logprob(top) for top in _list(entry, "top_logprobs") if _is_one(top)]}
        for entry in entries
        if _is_one(entry)
    ]


def _logprob(entry: Item) -> Item:
    return {"token": entry["token"], "bytes": _list(entry, "bytes"), "logprob": entry["logprob"]}


def _is_one(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("token"), str)
        and isinstance(entry.get("logprob"), int | float)
    )


def _list(entry: Item, name: str) -> list[Any]:
    value = entry.get(name)
    return value if isinstance(value, list) else []


def _objects(content: Mapping[str, Any], name: str) -> list[Item]:
    value = content.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise AnswerError(f"a completion whose {name} is no list of objects")
    return value


def _object(content: Mapping[str, Any], name: str) -> Item:
    value = content.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise AnswerError(f"a completion whose {name} is no object")
    return value


def _text(content: Mapping[str, Any], name: str) -> str:
    value = content.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise AnswerError(f"a completion whose {name} is no text")
    return value
