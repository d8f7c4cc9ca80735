"""OpenAI's Responses API, sans I/O: reads a request's items into the full form that is stored and listed."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Mapping
from functools import partial
from typing import Any

from gateway.errors import invalid_value, unsupported_parameter
from gateway.web.fields import need_text
from gateway.wire.stepwise import STEP_ITEMS

Item = dict[str, Any]
NewId = Callable[[str], str]

CALLS = ("function_call", "custom_tool_call")
OUTPUTS = ("function_call_output", "custom_tool_call_output")
# Traces of hosted tools, from a conversation that began elsewhere; from the SDK's `ResponseInputItem`.
_OF_HOSTED = re.compile(
    r"(?:apply_patch|code_interpreter|computer|file_search|image_generation|local_shell|mcp|shell|tool_search"
    r"|web_search)_(?:call|call_output|output|list_tools|approval_request|approval_response)|program(?:_output)?|compaction_trigger"
)
_ROLES = ("user", "assistant", "system", "developer")


def read_items(request: Mapping[str, Any], new_id: NewId, ignored: set[str]) -> Generator[None, None, list[Item]]:
    """The request's own items, full and with ids, references unresolved; raises ApiError 400 with an item's place.

    Items of hosted tools are left out, and named in `ignored`.
    """
    name = "messages" if request.get("input") is None else "input"
    given = request.get(name)
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    items: list[Item] = []
    for index, item in enumerate(given or ()):
        if index % STEP_ITEMS == STEP_ITEMS - 1:
            yield
        kind = item.get("type")
        if isinstance(kind, str) and _OF_HOSTED.fullmatch(kind):
            ignored.add(f"input.{kind}")
            continue
        items += (_item(part, f"{name}.{index}", new_id) for part in _of_chat(item, f"{name}.{index}"))
    if not items and not request.get("previous_response_id"):
        raise invalid_value("input", "is missing; send a text or a list of items")
    return items


def with_own_ids(items: Iterable[Item], new_id: NewId) -> list[Item]:
    """The items with unique ids, which lists of items need as cursors: a repeated id is replaced."""
    known: set[str] = set()
    own = []
    for item in items:
        if item["id"] in known:
            item = {**item, "id": new_id(_ID_PREFIXES[item["type"]])}
        known.add(item["id"])
        own.append(item)
    return own


def _item(item: Item, param: str, new_id: NewId) -> Item:
    kind = item.get("type") or ("message" if "role" in item else "item_reference")
    reader = _READERS.get(kind) if isinstance(kind, str) else None
    if reader is None:
        raise unsupported_parameter(f"{param}.type", f"it must be one of {', '.join(_READERS)}, not '{kind}'")
    item = reader(item, param)
    if not isinstance(item.get("id"), str):
        item["id"] = new_id(_ID_PREFIXES[kind])
    return item


def _message(item: Item, param: str) -> Item:
    role, content = item.get("role"), item.get("content")
    if role not in _ROLES:
        raise invalid_value(f"{param}.role", f"must be one of {', '.join(_ROLES)}")
    if isinstance(content, str):
        content = [{"type": "input_text", "text": content}]
    if not isinstance(content, list):
        raise invalid_value(f"{param}.content", "must be a string or a list of parts")
    parts = [_part(part, f"{param}.content.{index}", role) for index, part in enumerate(content)]
    return {**item, "type": "message", "status": item.get("status") or "completed", "content": parts}


def _part(part: Any, param: str, role: str) -> Item:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("input_text", "text", "output_text"):
        need_text(part, "text", param)
        if role != "assistant":
            return {**part, "type": "input_text"}
        return {**part, "type": "output_text", "annotations": part.get("annotations") or []}
    if kind == "refusal" and role == "assistant":
        need_text(part, "refusal", param)
        return dict(part)
    if kind == "image_url":
        image = part.get("image_url")
        image = {"url": image} if isinstance(image, str) else image if isinstance(image, dict) else {}
        part = {"type": "input_image", "image_url": image.get("url"), "detail": image.get("detail")}
    if kind in ("input_image", "image_url"):
        if part.get("file_id"):
            raise unsupported_parameter(f"{param}.file_id", "send the image as a data URL")
        need_text(part, "image_url", param)
        return {**part, "detail": part.get("detail") or "auto"}
    if kind == "input_audio" and isinstance(part.get("input_audio"), dict):
        return dict(part)
    is_file = kind in ("input_file", "file")
    advice = "send its text as `input_text`" if is_file else f"a message cannot have a part of type '{kind}'"
    raise unsupported_parameter(f"{param}.type", advice)


def _call(text: str, item: Item, param: str) -> Item:
    """A call, of which the field `text` holds what the tool is given."""
    for name in ("call_id", "name", text):
        need_text(item, name, param)
    if item.get("namespace") is not None:
        need_text(item, "namespace", param)
    return {**item, "status": item.get("status") or "completed"}


def _output(item: Item, param: str) -> Item:
    need_text(item, "call_id", param)
    output = item.get("output")
    if isinstance(output, list):
        output = [_part(part, f"{param}.output.{index}", "tool") for index, part in enumerate(output)]
    elif not isinstance(output, str):
        raise invalid_value(f"{param}.output", "must be a string or a list of parts")
    return {**item, "status": item.get("status") or "completed", "output": output}


def _reasoning(item: Item, param: str) -> Item:
    for name in ("content", "summary"):
        parts = item.get(name)
        if parts is not None and not isinstance(parts, list):
            raise invalid_value(f"{param}.{name}", "must be a list of parts")
        for index, part in enumerate(parts or ()):
            if not isinstance(part, dict):
                raise invalid_value(f"{param}.{name}.{index}", "must be an object")
            need_text(part, "text", f"{param}.{name}.{index}")
    if item.get("encrypted_content") is not None:
        need_text(item, "encrypted_content", param)
    return {**item, "summary": item.get("summary") or []}


def _compaction(item: Item, param: str) -> Item:
    need_text(item, "encrypted_content", param)
    return dict(item)


def _item_reference(item: Item, param: str) -> Item:
    need_text(item, "id", param)
    return {"type": "item_reference", "id": item["id"]}


_READERS: dict[str, Callable[[Item, str], Item]] = {
    "message": _message,
    "function_call": partial(_call, "arguments"),
    "function_call_output": _output,
    "custom_tool_call": partial(_call, "input"),
    "custom_tool_call_output": _output,
    "reasoning": _reasoning,
    "compaction": _compaction,
    "item_reference": _item_reference,
}
_ID_PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "custom_tool_call": "ctc",
    "custom_tool_call_output": "ctco",
    "reasoning": "rs",
    "compaction": "cmp",
}


def _of_chat(message: Item, param: str) -> list[Item]:
    """A chat's message with tool calls or a tool result as items; any other item unchanged."""
    is_item = message.get("type") not in (None, "message")
    if is_item or not ("tool_calls" in message or message.get("role") == "tool"):
        return [message]
    if message.get("role") == "tool":
        result = {"call_id": message.get("tool_call_id"), "output": message.get("content")}
        return [{**rest(message, "role", "tool_call_id", "content"), "type": "function_call_output", **result}]
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise invalid_value(f"{param}.tool_calls", "must be a list of tool calls")
    said = {name: value for name, value in message.items() if name != "tool_calls" and value is not None}
    items = [said] if not calls else [{"content": "", **said}] if said.keys() - {"role", "type"} else []
    for call in calls:
        function = call.get("function")
        if not isinstance(function, dict):
            raise invalid_value(f"{param}.tool_calls", "must hold an object `function` in each call")
        items.append({**rest(call, "function"), **function, "type": "function_call", "call_id": call.get("id")})
    return items


def rest(item: Item, *known: str) -> Item:
    """The item's fields other than `known`; they go on unchanged."""
    return {
        name: value
        for name, value in item.items()
        if name not in known and name not in ("id", "type", "status") and value is not None
    }
