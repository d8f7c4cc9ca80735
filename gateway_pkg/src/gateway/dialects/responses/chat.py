"""OpenAI's Responses API, sans I/O: a conversation of items as a chat.

The text of a reasoning item becomes `reasoning_content` of the message that the reasoning led to.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any

from gateway.dialects.responses.items import CALLS, OUTPUTS, Item, rest
from gateway.dialects.responses.request import TRANSLATED
from gateway.dialects.responses.tools import Tools, chat_name, custom_arguments
from gateway.errors import invalid_value, unsupported_parameter
from gateway.web.fields import need_text
from gateway.wire.stepwise import STEP_ITEMS

SUMMARY = "This is your summary of the conversation until here:"
Unseal = Callable[[str], str | None]
_OUTPUT_KEYS = {"annotations", "logprobs"}  # of an answer's text; a model has no use for them


def to_chat(
    request: Mapping[str, Any], items: Iterable[Item], tools: Tools, unseal: Unseal
) -> Generator[None, None, dict[str, Any]]:
    """OpenAI's chat request for the whole conversation, in steps; raises ApiError 400 that names a field.

    `unseal` reads the encrypted content of a reasoning item; None where the gateway did not seal it for this caller.
    """
    chat = {name: value for name, value in request.items() if name not in TRANSLATED and value is not None}
    chat["messages"] = yield from _messages(request.get("instructions"), items, unseal)
    if not chat["messages"]:
        raise invalid_value("input", "must hold a message")
    if request.get("max_output_tokens") is not None:
        chat["max_tokens"] = request["max_output_tokens"]
    chat |= _tool_fields(request, tools)
    if effort := (request.get("reasoning") or {}).get("effort"):
        chat["reasoning_effort"] = effort
    text = request.get("text") or {}
    if text.get("verbosity") is not None:
        chat["verbosity"] = text["verbosity"]
    if (response_format := _response_format(text.get("format"))) is not None:
        chat["response_format"] = response_format
    if request.get("top_logprobs"):
        chat["top_logprobs"] = request["top_logprobs"]
    if request.get("top_logprobs") or "message.output_text.logprobs" in (request.get("include") or ()):
        chat["logprobs"] = True
    return chat


def _messages(
    instructions: str | None, items: Iterable[Item], unseal: Unseal
) -> Generator[None, None, list[dict[str, Any]]]:
    chat = _Chat(instructions)
    thoughts: list[str] = []
    shown: list[Item] = []  # images of tool results that wait for a user message
    for index, item in enumerate(items):
        if index % STEP_ITEMS == STEP_ITEMS - 1:
            yield
        kind = item["type"]
        if kind == "compaction":
            if (summary := unseal(item["encrypted_content"])) is not None:
                chat.add({"role": "user", "content": f"{SUMMARY}\n\n{summary}"})
            continue
        if kind == "reasoning":
            sealed = item.get("encrypted_content")
            own = unseal(sealed) if sealed else None
            thoughts += (part["text"] for part in item.get("content") or item["summary"]) if own is None else (own,)
            continue
        if shown and kind not in OUTPUTS:
            chat.add({"role": "user", "content": shown})
            shown = []
        if kind in CALLS or (kind == "message" and item["role"] == "assistant"):
            chat.add_of_assistant(item, thoughts)
        elif kind in OUTPUTS:
            chat.add(_tool_message(item, shown))
        else:
            chat.add(_chat_message(item))
        thoughts = []  # a thought that led to no message of the model is dropped: a chat has no place for it
    if shown:
        chat.add({"role": "user", "content": shown})
    return chat.end()


class _Chat:
    """A chat's messages. Texts that become one are joined once, at the end: there may be thousands."""

    def __init__(self, instructions: str | None) -> None:
        self._opening = [instructions] if instructions else []
        self._messages: list[dict[str, Any]] = []
        self._said: list[str] = []  # texts to join to the last message
        self._thoughts: list[str] = []  # thoughts to join to the last message

    def add(self, message: dict[str, Any]) -> None:
        """Adds a message; system messages at the beginning become one, since many models' templates take only one."""
        if not self._messages and message["role"] == "system" and message.keys() == {"role", "content"}:
            content = message["content"]
            parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
            if all(part.keys() == {"type", "text"} for part in parts):
                self._opening += (part["text"] for part in parts)
                return
        self._close()
        self._messages.append(message)

    def add_of_assistant(self, item: Item, thoughts: Iterable[str]) -> None:
        """Adds what the model said or called; a call joins the message before it, as in a chat."""
        last = self._messages[-1] if self._messages and self._messages[-1]["role"] == "assistant" else None
        if item["type"] in CALLS:
            if last is None:
                last = {"role": "assistant", "content": None}
                self.add(last)
            last.setdefault("tool_calls", []).append(_call(item))
        elif last is not None and "tool_calls" in last and isinstance(last["content"], str | None):
            # The model spoke after the calls of the same turn.
            self._said += (part.get("text") or part.get("refusal") or "" for part in item["content"])
        else:
            self.add(_chat_message(item))
        self._thoughts += thoughts

    def end(self) -> list[dict[str, Any]]:
        self._close()
        if not self._opening:
            return self._messages
        return [{"role": "system", "content": "\n\n".join(self._opening)}, *self._messages]

    def _close(self) -> None:
        """Completes the last message."""
        if self._said:
            self._messages[-1]["content"] = "".join((self._messages[-1]["content"] or "", *self._said))
        if self._thoughts and (text := "".join(self._thoughts)):
            before = self._messages[-1].get("reasoning_content")
            self._messages[-1]["reasoning_content"] = (before if isinstance(before, str) else "") + text
        self._said, self._thoughts = [], []


def _call(item: Item) -> dict[str, Any]:
    arguments = item["arguments"] if item["type"] == "function_call" else custom_arguments(item["input"])
    function = {"name": chat_name(item["name"], item.get("namespace")), "arguments": arguments}
    own = rest(item, "call_id", "name", "namespace", "arguments", "input")
    return {**own, "id": item["call_id"], "type": "function", "function": function}


def _tool_message(item: Item, shown: list[Item]) -> dict[str, Any]:
    """The tool message of a result. It holds only text: other parts go to `shown`, after a line that names the call."""
    output, call_id = item["output"], item["call_id"]
    if isinstance(output, list):
        others = [_chat_part(part) for part in output if part["type"] != "input_text"]
        if others:
            shown += [{"type": "text", "text": f"From the result of tool call {call_id}:"}, *others]
        output = [part for part in output if part["type"] == "input_text"]
    return {**rest(item, "call_id", "output"), "role": "tool", "tool_call_id": call_id, "content": _content(output)}


def _chat_message(item: Item) -> dict[str, Any]:
    role = "system" if item["role"] == "developer" else item["role"]  # templates do not know the role developer
    return {**rest(item, "role", "content"), "role": role, "content": _content(item["content"])}


def _content(parts: str | list[Item]) -> Any:
    """A chat's content: a string where it is a single text, since every model takes a string."""
    if isinstance(parts, str):
        return parts
    content = [_chat_part(part) for part in parts]
    is_plain = all(part.keys() == {"type", "text"} for part in content)
    if is_plain and (len(content) < 2 or all(part["type"] in ("output_text", "refusal") for part in parts)):
        return "".join(part["text"] for part in content)
    return content


def _chat_part(part: Item) -> Item:
    if part["type"] == "input_image":
        image = {"url": part["image_url"], "detail": part["detail"]}
        return {**rest(part, "image_url", "detail", "file_id"), "type": "image_url", "image_url": image}
    if part["type"] == "input_audio":
        return part
    name = "refusal" if part["type"] == "refusal" else "text"
    return {**rest(part, name, *_OUTPUT_KEYS), "type": "text", "text": part[name]}


def _tool_fields(request: Mapping[str, Any], tools: Tools) -> dict[str, Any]:
    """`tools`, and the fields that a chat accepts only together with tools."""
    choice, functions = request.get("tool_choice"), tools.functions
    if isinstance(choice, dict):
        choice, functions = tools.chosen(choice)
    elif choice not in (None, "none", "auto", "required"):
        raise invalid_value("tool_choice", "must be none, auto, required, or an object")
    if not functions:
        if choice not in (None, "none", "auto"):
            raise invalid_value("tool_choice", "requires a tool call, but `tools` is empty")
        return {}
    fields: dict[str, Any] = {"tools": functions}
    if choice is not None:
        fields["tool_choice"] = choice
    if request.get("parallel_tool_calls") is not None:
        fields["parallel_tool_calls"] = request["parallel_tool_calls"]
    return fields


def _response_format(wanted: Mapping[str, Any] | None) -> dict[str, Any] | None:
    kind = (wanted or {}).get("type", "text")
    if wanted is None or kind == "text":
        return None
    if kind == "json_object":
        return dict(wanted)
    if kind != "json_schema":
        raise unsupported_parameter("text.format.type", "it must be text, json_object or json_schema")
    need_text(wanted, "name", "text.format")
    if not isinstance(wanted.get("schema"), dict):
        raise invalid_value("text.format.schema", "must be a JSON schema")
    schema = {name: value for name, value in wanted.items() if name != "type" and value is not None}
    return {"type": "json_schema", "json_schema": schema}
