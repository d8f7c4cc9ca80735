"""Ollama's native protocol: /api/chat, /api/generate and /api/embed in OpenAI's words, whole and streamed."""

from __future__ import annotations

import secrets
import time
from collections.abc import Generator, Mapping
from typing import Any

from gateway.backends.protocols.base import (
    THOUGHTS,
    Adapter,
    AnswerError,
    Outgoing,
    event,
    json_object,
    json_object_in_steps,
)
from gateway.backends.protocols.ollama import request as outgoing
from gateway.backends.usage import count_of
from gateway.wire import rawjson
from gateway.wire.errors import UpstreamClosed
from gateway.wire.ndjson import LineCutter, LineTooLong
from gateway.wire.stepwise import LongTexts, is_heavy

Json = dict[str, Any]

REQUESTS = {
    "chat": (b"/api/chat", outgoing.chat),
    "completions": (b"/api/generate", outgoing.completion),
    "embeddings": (b"/api/embed", outgoing.embedding),
}
DONE = b"data: [DONE]\n\n"
# Of a line, or an answer, with tool calls: each is looked at several times, to take its arguments out as they stand.
CALLS_MAX = 1_000
CALL_VALUES_MAX = 200_000


class OllamaAdapter(Adapter):
    def request(self, capability: str, request: Mapping[str, Any], model: str) -> Outgoing:
        path, translate = REQUESTS[capability]
        return Outgoing(path, outgoing.dump(translate(request, model), request))

    def answer(self, capability: str, request: Mapping[str, Any], model: str, body: bytes) -> Json:
        line = json_object(body)
        if line.get("done") is not True:
            raise AnswerError("the answer is not complete")
        reader = _reader(capability, request)
        choice = {"index": 0, **reader.whole(body, line), "finish_reason": reader.finish_reason(line)}
        answer = {**_head(reader.object, model), "choices": [choice]}
        usage = _usage(line)
        return answer if usage is None else answer | {"usage": usage}

    def embeddings(
        self, request: Mapping[str, Any], model: str, body: bytes
    ) -> Generator[None, None, tuple[Json, LongTexts]]:
        line, lists = yield from json_object_in_steps(body)
        return _embeddings(request, model, line), lists

    def stream(self, capability: str, request: Mapping[str, Any], model: str) -> OllamaStream:
        reader = _reader(capability, request)
        include_usage = bool((request.get("stream_options") or {}).get("include_usage"))
        return OllamaStream(reader, _head(reader.event_object, model), include_usage=include_usage)


class OllamaStream:
    """Implements `base.StreamTranslator`: a line of NDJSON is one event.

    The last line's event has the `finish_reason`; one with the usage, where asked for, and `[DONE]` follow it. An error
    is raised only when the events before it have been given out: by the next call, then.
    """

    def __init__(self, reader: _Chat | _Text, head: Json, *, include_usage: bool) -> None:
        self.is_done = False
        self.usage: Json | None = None
        self._reader = reader
        self._head = head
        self._include_usage = include_usage
        self._cutter = LineCutter()
        self._error: AnswerError | None = None

    def feed(self, data: bytes) -> list[bytes]:
        if self._error is not None:
            raise self._error
        events: list[bytes] = []
        if self.is_done:  # what comes after the last line is of no interest
            return events
        try:
            for line in self._cutter.feed(data):
                self._translate(line, events)
        except LineTooLong:
            self._error = AnswerError("a line without end")
        except AnswerError as error:
            self._error = error
        if self._error is not None and not events:
            raise self._error
        return events

    def end(self) -> list[bytes]:
        events = self.feed(b"\n")
        if not self.is_done:
            raise self._error or UpstreamClosed("the stream ended before its last line", sent_first_byte=True)
        return events

    def _translate(self, data: bytes, events: list[bytes]) -> None:
        if self.is_done:
            return
        line = json_object(data)
        done = line.get("done") is True
        choice = {"index": 0, **self._reader.event(data, line), "finish_reason": None}
        if done:
            choice["finish_reason"] = self._reader.finish_reason(line)
        events.append(event({**self._head, "choices": [choice]}))
        if done:
            self.usage = _usage(line)
            if self._include_usage and self.usage is not None:
                events.append(event({**self._head, "choices": [], "usage": self.usage}))
            events.append(DONE)
            self.is_done = True


class _Chat:
    """Reads what /api/chat says, line by line."""

    object = "chat.completion"
    event_object = "chat.completion.chunk"

    def __init__(self, request: Mapping[str, Any]) -> None:
        self._forced = outgoing.forced_function(request)
        self._one_call = request.get("parallel_tool_calls") is False
        self._calls = 0
        self._began = False

    def event(self, data: bytes, line: Json) -> Json:
        delta: Json = {} if self._began else {"role": "assistant"}
        content, thinking, calls = self._message(data, line)
        if content or not self._began:
            delta["content"] = content
        if thinking:
            delta |= dict.fromkeys(THOUGHTS, thinking)
        if calls:
            delta["tool_calls"] = calls
        self._began = True
        return {"delta": delta, **_chat_logprobs(line)}

    def whole(self, data: bytes, line: Json) -> Json:
        content, thinking, calls = self._message(data, line)
        message: Json = {"role": "assistant", "content": content if content or not calls else None}
        if thinking:
            message |= dict.fromkeys(THOUGHTS, thinking)
        if calls:
            message["tool_calls"] = [{k: v for k, v in call.items() if k != "index"} for call in calls]
        return {"message": message, **_chat_logprobs(line)}

    def finish_reason(self, line: Json) -> str:
        if line.get("done_reason") == "length":
            return "length"
        return "tool_calls" if self._calls else "stop"

    def _message(self, data: bytes, line: Json) -> tuple[str, str, list[Json]]:
        """Content, thinking, and OpenAI's tool calls with their index."""
        message = line.get("message")
        if not isinstance(message, dict):
            raise AnswerError("a line without a message")
        content, thinking = _text(message, "content"), _text(message, "thinking")
        told = _calls(data, message.get("tool_calls"))
        if self._one_call:
            told = told[: 1 - self._calls]
        calls = [self._call(*call) for call in told]
        if calls:
            self._forced = None  # the model has made its call by itself
        elif self._forced is not None and content:
            # The content is held to the schema of the function's arguments: it is them.
            return "", thinking, [self._forced_part(self._forced["name"], content)]
        return content, thinking, calls

    def _call(self, name: str, call_id: Any, arguments: str) -> Json:
        # Ollama numbers the calls of a line, not always those of an answer.
        index, self._calls = self._calls, self._calls + 1
        call_id = call_id if isinstance(call_id, str) and call_id else f"call_{secrets.token_hex(8)}"
        function = {"name": name, "arguments": arguments}
        return {"index": index, "id": call_id, "type": "function", "function": function}

    def _forced_part(self, name: str, arguments: str) -> Json:
        if self._calls:
            return {"index": 0, "function": {"arguments": arguments}}
        return self._call(name, None, arguments)


class _Text:
    """Reads what /api/generate says, line by line."""

    object = event_object = "text_completion"

    def __init__(self) -> None:
        self._offset = 0

    def event(self, data: bytes, line: Json) -> Json:
        if "response" not in line:
            raise AnswerError("a line without a response")
        said: Json = {"text": _text(line, "response"), **self._logprobs(line)}
        if thinking := _text(line, "thinking"):
            said |= dict.fromkeys(THOUGHTS, thinking)
        return said

    whole = event

    def finish_reason(self, line: Json) -> str:
        return "length" if line.get("done_reason") == "length" else "stop"

    def _logprobs(self, line: Json) -> Json:
        entries = _entries(line)
        if not entries:
            return {}
        offsets = []
        for entry in entries:
            offsets.append(self._offset)
            self._offset += len(entry["token"])
        logprobs = {
            "tokens": [entry["token"] for entry in entries],
            "token_logprobs": [entry["logprob"] for entry in entries],
            "top_logprobs": [{top["token"]: top["logprob"] for top in entry["top_logprobs"]} for entry in entries],
            "text_offset": offsets,
        }
        return {"logprobs": logprobs}


def models(body: bytes) -> tuple[str, ...]:
    """The names in an answer of /api/tags (what is there) or of /api/ps (what is loaded); raises AnswerError."""
    listed = json_object(body).get("models")
    if not isinstance(listed, list):
        raise AnswerError("no list of models")
    names = tuple(model["name"] for model in listed if isinstance(model, dict) and isinstance(model.get("name"), str))
    if len(names) != len(listed):
        raise AnswerError("a model without a name")
    return names


def _reader(capability: str, request: Mapping[str, Any]) -> _Chat | _Text:
    return _Chat(request) if capability == "chat" else _Text()


def _head(kind: str, model: str) -> Json:
    prefix = "cmpl" if kind == "text_completion" else "chatcmpl"
    return {
        "id": f"{prefix}-{secrets.token_hex(12)}",
        "object": kind,
        "created": int(time.time()),
        "model": f"ollama:{model}",
    }


def _calls(data: bytes, said: Any) -> list[tuple[str, Any, str]]:
    """Name, id and arguments of each call; the arguments as they stand in `data`."""
    if not said:
        return []
    if not isinstance(said, list):
        raise AnswerError("tool calls other than a list")
    if len(said) > CALLS_MAX or is_heavy(data, CALL_VALUES_MAX):
        raise AnswerError("more tool calls, or larger ones, than an answer may have")
    try:
        message = rawjson.members(rawjson.members(data.decode())["message"])
        raw = [rawjson.members(rawjson.members(call)["function"]) for call in rawjson.items(message["tool_calls"])]
    except (ValueError, KeyError):
        raise AnswerError("a malformed tool call") from None
    calls = []
    for call, members in zip(said, raw, strict=True):
        function = call["function"]
        arguments = function.get("arguments")
        if not isinstance(function.get("name"), str) or not isinstance(arguments, dict | str | None):
            raise AnswerError("a tool call without name or arguments")
        text = members["arguments"] if isinstance(arguments, dict) else arguments or "{}"
        calls.append((function["name"], call.get("id"), text))
    return calls


def _chat_logprobs(line: Json) -> Json:
    entries = _entries(line)
    return {"logprobs": {"content": entries, "refusal": None}} if entries else {}


def _entries(line: Json) -> list[Json]:
    """OpenAI's entries, with all keys."""
    entries = line.get("logprobs") or []
    try:
        return [_entry(entry) | {"top_logprobs": [*map(_entry, entry.get("top_logprobs") or ())]} for entry in entries]
    except TypeError:
        raise AnswerError("malformed log probabilities") from None


def _entry(entry: Any) -> Json:
    match entry:
        case {"token": str(token), "logprob": float() | int() as logprob}:
            return {"token": token, "logprob": logprob, "bytes": entry.get("bytes")}
    raise AnswerError("malformed log probabilities")


def _embeddings(request: Mapping[str, Any], model: str, line: Json) -> Json:
    vectors = line.get("embeddings")
    asked = 1 if isinstance(request["input"], str) else len(request["input"])
    if not isinstance(vectors, list) or len(vectors) != asked:
        raise AnswerError("not one embedding for each text")
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    answer: Json = {"object": "list", "data": data, "model": f"ollama:{model}"}
    if (count := count_of(line.get("prompt_eval_count"))) is not None:
        answer["usage"] = {"prompt_tokens": count, "total_tokens": count}
    return answer


def _usage(line: Json) -> Json | None:
    """OpenAI's usage. Ollama leaves out what is 0, and older ones left out a prompt that was in the cache."""
    prompt, answer = count_of(line.get("prompt_eval_count")), count_of(line.get("eval_count") or 0)
    if prompt is None or answer is None:
        return None
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def _text(said: Json, name: str) -> str:
    text = said.get(name)
    if text is not None and not isinstance(text, str):
        raise AnswerError(f"'{name}' other than a text")
    return text or ""
