"""Anthropic's Messages API, sans I/O: a request as an OpenAI chat; a field that a chat lacks is refused by name.

The reference is the `anthropic` SDK's own types. Cache hints (`cache_control`) are accepted and dropped: backends cache
prompts by themselves, and the answer is the same. Fields that the API does not define go to the backend unchanged.
Tools that Anthropic defines are left out, since other models do not know them, and so are redacted thoughts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Required

from pydantic import Field, with_config
from typing_extensions import TypedDict

from gateway.errors import ApiError, invalid_value, unsupported_parameter
from gateway.web.fields import CLOSED, OPEN, Array, closed, need_text
from gateway.web.schemas import Model

# Budgets of thinking, in tokens, below which a chat's `reasoning_effort` is low and medium.
LOW_BUDGET = 4_096
MEDIUM_BUDGET = 16_384

# Fields of the API (and of a chat) without a counterpart, each with advice what to do instead.
REFUSED = {
    "billing_policy": "leave it out: nothing is billed here",
    "compaction": "leave it out, and shorten the conversation yourself",
    "container": "leave it out: no code is executed here",
    "diagnostics": "leave it out: there is no cache to diagnose",
    "fallback_credit_token": "leave it out: nothing is billed here",
    "fallbacks": "leave it out, and send the request again yourself",
    "inference_geo": "leave it out: the model runs where the gateway's operator put it",
    "mcp_servers": "call the server's tools yourself, and give them in `tools`",
    "user_profile_id": "use `metadata.user_id`",
    "workspace_id": "leave it out: there are no workspaces here",
    "stream_options": "leave it out: a stream always tells its usage",
    **dict.fromkeys(("audio", "logprobs", "modalities", "n", "top_logprobs"), "use /v1/chat/completions"),
}
# Fields that Anthropic's threads do not support, by its SDK's ThreadUnsupportedFeatureName.
_NOT_IN_THREADS = ("cache_control", "context_management", "thinking")
# Fields of tools that a chat lacks and a model can do without.
_LEFT_OUT_OF_TOOLS = ("allowed_callers", "defer_loading", "input_examples")
# Tools of which Anthropic's models know the schema, or which its servers run: all but `mcp_toolset` have a date.
_ANTHROPICS_TOOL = re.compile(r"[a-z_]+_\d{8}|mcp_toolset|tool_search_tool_(?:bm25|regex)")
# Blocks of conversations that began at Anthropic.
_TRACE = re.compile(r"redacted_thinking|server_tool_use|mcp_tool_use|[a-z_]+_tool_result|container_upload|fallback")
_READ_AS_TEXT = ("document", "search_result")
_TOOL_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
_SERVICE_TIERS = {"auto": "auto", "standard_only": "default"}


class Block(TypedDict):
    """One block of content, such as `text`, `image`, `document` of text, `tool_use`, `tool_result` or `thinking`."""

    type: str


class InputMessage(TypedDict):
    role: Literal["user", "assistant", "system"]
    content: str | Array[Block]


class Tool(TypedDict, total=False):
    """A tool that the client runs. `type` is `custom` or absent; Anthropic's own tools are left out."""

    name: Required[Annotated[str, Field(min_length=1)]]
    type: str | None
    description: str | None
    input_schema: dict[str, Any] | None
    strict: bool | None


@with_config(CLOSED)
class ToolChoice(TypedDict, total=False):
    type: Required[Literal["auto", "any", "tool", "none"]]
    name: str
    disable_parallel_tool_use: bool


@with_config(CLOSED)
class Metadata(TypedDict, total=False):
    user_id: str | None


@with_config(CLOSED)
class Thinking(TypedDict, total=False):
    """`budget_tokens` below 4,096 asks the backend for low effort, below 16,384 for medium, else for high."""

    type: Required[Literal["enabled", "adaptive", "disabled"]]
    budget_tokens: Annotated[int, Field(ge=1_024)]
    display: Literal["summarized", "omitted"] | None


@with_config(CLOSED)
class OutputFormat(TypedDict):
    type: Literal["json_schema"]
    schema: dict[str, Any]


@with_config(CLOSED)
class OutputConfig(TypedDict, total=False):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None
    format: Annotated[OutputFormat, closed(OutputFormat)] | None


@with_config(OPEN)
class _Translated(TypedDict, total=False):
    """The fields that a chat has in another form or not at all, but for `model`."""

    model: Required[Model]
    messages: Required[Annotated[Array[InputMessage], Field(min_length=1, max_length=100_000)]]
    system: str | Array[Block] | None
    tools: Array[Tool] | None
    tool_choice: Annotated[ToolChoice, closed(ToolChoice)] | None
    thinking: Annotated[Thinking, closed(Thinking)] | None
    output_config: Annotated[OutputConfig, closed(OutputConfig)] | None
    output_format: Annotated[OutputFormat, closed(OutputFormat)] | None
    cache_control: dict[str, Any] | None
    context_management: dict[str, Any] | None
    speed: Literal["standard"] | None
    stop_sequences: Array[Annotated[str, Field(min_length=1)]] | None
    metadata: Annotated[Metadata, closed(Metadata)] | None
    service_tier: Literal["auto", "standard_only"] | None


_TRANSLATED_NAMES = _Translated.__annotations__.keys() - {"model"}


class MessagesRequest(_Translated, total=False):
    """Anthropic's `POST /v1/messages`."""

    max_tokens: Required[Annotated[int, Field(ge=1)]]
    stream: bool | None
    thread: Annotated[Any, Field(description="Refused, so that an SDK goes on without a thread.")]
    temperature: float | None
    top_p: float | None
    top_k: int | None


class CountRequest(_Translated, total=False):
    """Anthropic's `POST /v1/messages/count_tokens`; further fields of a message are accepted, and change no count."""

    max_tokens: Annotated[int, Field(ge=1)]


def to_chat(request: Mapping[str, Any], ignored: set[str], is_interleaved: bool = False) -> dict[str, Any]:
    """The chat of a checked MessagesRequest or CountRequest; raises ApiError 400 for a field without a counterpart.

    What is left out is named in `ignored`. With `is_interleaved` a budget of thinking may exceed `max_tokens`.
    """
    if request.get("thread") is not None:
        raise _no_threads(request)
    for field, advice in REFUSED.items():
        if request.get(field) is not None:
            raise unsupported_parameter(field, advice)
    _check_context_management(request.get("context_management"))
    chat = {key: value for key, value in request.items() if key not in _TRANSLATED_NAMES and value is not None}
    chat["messages"] = [*_system(request.get("system"), ignored), *_messages(request["messages"], ignored)]
    tools = [tool for tool in request.get("tools") or () if not _is_anthropics(tool, ignored)]
    if tools:
        chat["tools"] = [_tool(tool, f"tools.{number}", ignored) for number, tool in enumerate(tools)]
    if choice := request.get("tool_choice"):
        chat |= _tool_choice(choice, [tool["name"] for tool in tools])
    if stop := request.get("stop_sequences"):
        chat["stop"] = stop
    if user := (request.get("metadata") or {}).get("user_id"):
        chat["user"] = user
    if tier := request.get("service_tier"):
        chat["service_tier"] = _SERVICE_TIERS[tier]
    if effort := _reasoning_effort(request, is_interleaved):
        chat["reasoning_effort"] = effort
    if output_format := (request.get("output_config") or {}).get("format") or request.get("output_format"):
        schema = {"name": "answer", "schema": output_format["schema"], "strict": True}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    return chat


def shows_thinking(request: Mapping[str, Any]) -> bool:
    """Whether the answer has thinking blocks: only a client that asked for them can read them."""
    thinking = request.get("thinking") or {"type": "disabled"}
    return thinking["type"] != "disabled" and thinking.get("display") != "omitted"


def prefill(chat: Mapping[str, Any]) -> str:
    """The assistant's own text that the answer continues: the last message, if its role is assistant."""
    last = chat["messages"][-1]
    content = last.get("content") if last["role"] == "assistant" else None
    return content if isinstance(content, str) else ""


def _reasoning_effort(request: Mapping[str, Any], is_interleaved: bool) -> str | None:
    """The named effort, else the effort for the budget of thinking."""
    thinking = request.get("thinking") or {}
    effort: str | None = (request.get("output_config") or {}).get("effort")
    if thinking.get("type") == "disabled":
        return effort or "none"
    if thinking.get("type") != "enabled":
        return effort
    budget = thinking.get("budget_tokens")
    if budget is None:
        raise invalid_value("thinking.budget_tokens", "is missing: `type: enabled` needs it")
    if budget >= request.get("max_tokens", budget + 1) and not (is_interleaved and request.get("tools")):
        raise invalid_value("thinking.budget_tokens", "must be less than `max_tokens`, of which it is a part")
    return effort or ("low" if budget < LOW_BUDGET else "medium" if budget < MEDIUM_BUDGET else "high")


def _check_context_management(value: Mapping[str, Any] | None) -> None:
    """Accepts the edit that keeps everything, which agents send; refuses other edits."""
    edits = (value or {}).get("edits") or ()
    if not isinstance(edits, list | tuple):
        raise invalid_value("context_management.edits", "must be a list")
    for edit in edits:
        if edit != {"type": "clear_thinking_20251015", "keep": "all"}:
            raise unsupported_parameter("context_management", "shorten the conversation yourself")


def _no_threads(request: Mapping[str, Any]) -> ApiError:
    """By this code Anthropic's SDKs know to go on without a thread."""
    words = "Threads are not supported here; leave `thread` out, and send the whole conversation in `messages`"
    unsupported = [name for name in _NOT_IN_THREADS if request.get(name) is not None]
    more = {"unsupported": unsupported}
    return ApiError(400, words, param="thread", code="thread_unsupported_request", more=more)


def _system(system: str | list[dict[str, Any]] | None, ignored: set[str]) -> Iterable[dict[str, Any]]:
    if system:
        yield {"role": "system", "content": system if isinstance(system, str) else _texts(system, "system", ignored)}


def _messages(messages: list[dict[str, Any]], ignored: set[str]) -> Iterable[dict[str, Any]]:
    for number, message in enumerate(messages):
        role, content, where = message["role"], message["content"], f"messages.{number}.content"
        if isinstance(content, str):
            yield {"role": role, "content": content}
            continue
        if role == "user" and not content:
            raise invalid_value(where, "must not be empty")
        blocks = [block for block in content if not _is_trace(block, ignored)]
        if role == "user":
            yield from _user(blocks, where, ignored)
        elif role == "assistant":
            yield _assistant(blocks, where, ignored)
        elif blocks:
            yield {"role": role, "content": _texts(blocks, where, ignored)}


def _is_trace(block: Mapping[str, Any], ignored: set[str]) -> bool:
    """Whether only Anthropic's models can read the block, or its servers made it with tools of theirs."""
    if _TRACE.fullmatch(block["type"]) is None:
        return False
    ignored.add(f"messages.{block['type']}")
    return True


def _user(blocks: list[dict[str, Any]], where: str, ignored: set[str]) -> Iterable[dict[str, Any]]:
    """A message for each tool result, then one for the rest, which begins with the images of the results."""
    parts: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    for number, block in enumerate(blocks):
        place = f"{where}.{number}"
        if block["type"] != "tool_result":
            parts += _parts(block, place, ("text", "image", *_READ_AS_TEXT, "tool_result"), ignored)
        elif parts:
            raise invalid_value(place, "tool_result blocks come first, before text and images")
        else:
            yield _tool_result(block, place, images, ignored)
    if images or parts:
        yield {"role": "user", "content": _content(images + parts)}


def _tool_result(
    block: Mapping[str, Any], where: str, images: list[dict[str, Any]], ignored: set[str]
) -> dict[str, Any]:
    """The tool message of a result. It holds only text: images go to `images`, each after a line that names its call.

    A chat has no field `is_error`, so the text begins with `Error: `.
    """
    call_id = need_text(block, "tool_use_id", where)
    _only(block, where, "tool_use_id", "content", "is_error")
    content = block.get("content") or []
    is_error = block.get("is_error")
    if not isinstance(is_error, bool | None):
        raise invalid_value(f"{where}.is_error", "must be a boolean")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise invalid_value(f"{where}.content", "must be a string or a list of blocks")
    texts = []
    for number, item in enumerate(content):
        for part in _parts(item, f"{where}.content.{number}", ("text", "image", *_READ_AS_TEXT), ignored):
            if part["type"] == "text":
                texts.append(part)
            else:
                images += [{"type": "text", "text": f"Image of the result of tool call {call_id}:"}, part]
    if is_error:
        texts = [{"type": "text", "text": "Error: " + (texts[0]["text"] if texts else "the tool failed")}, *texts[1:]]
    return {"role": "tool", "tool_call_id": call_id, "content": _content(texts)}


def _assistant(blocks: list[dict[str, Any]], where: str, ignored: set[str]) -> dict[str, Any]:
    """Thinking becomes `reasoning_content`, the field of llama.cpp, vLLM and LiteLLM."""
    parts: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] = []
    thoughts: list[str] = []
    for number, block in enumerate(blocks):
        place = f"{where}.{number}"
        if block["type"] == "tool_use":
            calls.append(_tool_call(block, place))
        elif block["type"] == "thinking":
            _only(block, place, "thinking", "signature")
            thoughts.append(need_text(block, "thinking", place))
        else:
            parts += _parts(block, place, ("text", "thinking", "tool_use"), ignored)
    message: dict[str, Any] = {"role": "assistant", "content": _content(parts) if parts or not calls else None}
    if reasoning := "\n".join(filter(None, thoughts)):
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = calls
    return message


def _tool_call(block: Mapping[str, Any], where: str) -> dict[str, Any]:
    _only(block, where, "id", "name", "input", "caller")
    if block.get("caller") not in (None, {"type": "direct"}):
        raise unsupported_parameter(f"{where}.caller", "the model itself is the only caller here")
    arguments = block.get("input")
    if not isinstance(arguments, dict):
        raise invalid_value(f"{where}.input", "must be an object")
    try:
        text = json.dumps(arguments, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except ValueError:
        raise invalid_value(f"{where}.input", "must not hold NaN or Infinity") from None
    function = {"name": need_text(block, "name", where), "arguments": text}
    return {"id": need_text(block, "id", where), "type": "function", "function": function}


def _parts(block: Mapping[str, Any], where: str, allowed: tuple[str, ...], ignored: set[str]) -> list[dict[str, Any]]:
    """Texts and images as a chat's content parts; a document of text and a search result become texts."""
    kind = block.get("type")
    if block.get("citations"):
        ignored.add("messages.citations")
    if kind == "text":
        _only(block, where, "text", "citations")
        return [_text(need_text(block, "text", where))]
    if kind == "image" and kind in allowed:
        _only(block, where, "source")
        return [{"type": "image_url", "image_url": {"url": _image_url(block.get("source"), f"{where}.source")}}]
    if kind in _READ_AS_TEXT and kind in allowed:
        is_document = kind == "document"
        heads = ("title", "context") if is_document else ("title", "source")
        _only(block, where, *heads, "source" if is_document else "content", "citations")
        heading = "\n".join(need_text(block, name, where) for name in heads if block.get(name) is not None)
        content = _document(block.get("source"), f"{where}.source") if is_document else block.get("content")
        if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
            raise invalid_value(f"{where}.content", "must be a list of blocks")
        read = (_parts(item, f"{where}.content.{at}", ("text", "image"), ignored) for at, item in enumerate(content))
        parts = [part for found in read for part in found]
        if heading and parts and parts[0]["type"] == "text":
            return [_text(f"{heading}\n\n{parts[0]['text']}"), *parts[1:]]
        return [_text(heading), *parts] if heading else parts
    raise unsupported_parameter(where, f"the block must be one of {', '.join(allowed)}, not {str(kind)[:100]!r}")


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _document(source: Any, where: str) -> Any:
    """The blocks of a document's source; a file of another kind than text is refused."""
    if not isinstance(source, dict):
        raise invalid_value(where, "must be an object")
    if source.get("type") == "text":
        return [_text(need_text(source, "data", where))]
    if source.get("type") == "content":
        content = source.get("content")
        return [_text(content)] if isinstance(content, str) else content
    raise unsupported_parameter(f"{where}.type", "give the document's text: `type` must be text or content")


def _image_url(source: Any, where: str) -> str:
    if not isinstance(source, dict):
        raise invalid_value(where, "must be an object")
    if source.get("type") == "base64":
        return f"data:{need_text(source, 'media_type', where)};base64,{need_text(source, 'data', where)}"
    if source.get("type") == "url":
        return need_text(source, "url", where)
    raise unsupported_parameter(f"{where}.type", "give the image as `base64` or `url`")


def _texts(blocks: list[dict[str, Any]], where: str, ignored: set[str]) -> str | list[dict[str, Any]]:
    read = (_parts(block, f"{where}.{number}", ("text",), ignored) for number, block in enumerate(blocks))
    return _content([part for parts in read for part in parts])


def _content(parts: list[dict[str, Any]]) -> str | list[dict[str, Any]]:
    """A single text as a string, which every backend understands; several blocks stay a list."""
    if not parts:
        return ""
    if len(parts) == 1 and parts[0]["type"] == "text":
        return str(parts[0]["text"])
    return parts


def _is_anthropics(tool: Mapping[str, Any], ignored: set[str]) -> bool:
    """Whether Anthropic defines the tool, so that only its models know it."""
    kind = tool.get("type")
    if kind is None or _ANTHROPICS_TOOL.fullmatch(kind) is None:
        return False
    ignored.add(f"tools.{kind}")
    return True


def _tool(tool: Mapping[str, Any], where: str, ignored: set[str]) -> dict[str, Any]:
    if tool.get("type") not in (None, "custom"):
        advice = "only tools of type 'custom' are supported: give the tool a description and an input_schema"
        raise unsupported_parameter(f"{where}.type", advice)
    _only(tool, where, "name", "description", "input_schema", "strict", "eager_input_streaming", *_LEFT_OUT_OF_TOOLS)
    for field in _LEFT_OUT_OF_TOOLS:
        if tool.get(field) and tool[field] != ["direct"]:
            ignored.add(f"tools.{field}")
    if tool.get("input_schema") is None:
        raise invalid_value(f"{where}.input_schema", "is missing: the JSON schema of the tool's input")
    function = {"name": tool["name"], "parameters": tool["input_schema"]}
    function |= {key: tool[key] for key in ("description", "strict") if tool.get(key) is not None}
    return {"type": "function", "function": function}


def _tool_choice(choice: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The chat's fields for a choice of tools, which a chat accepts only together with tools."""
    fields: dict[str, Any] = {}
    if choice["type"] == "tool":
        if choice.get("name") not in names:
            raise invalid_value("tool_choice.name", "must name one of `tools`")
        fields["tool_choice"] = {"type": "function", "function": {"name": choice["name"]}}
    elif names:
        fields["tool_choice"] = _TOOL_CHOICES[choice["type"]]
    elif choice["type"] == "any":
        raise invalid_value("tool_choice", "requires a tool call, but `tools` is empty")
    if names and (is_single := choice.get("disable_parallel_tool_use")) is not None:
        fields["parallel_tool_calls"] = not is_single
    return fields


def _only(block: Mapping[str, Any], where: str, *names: str) -> None:
    """Refuses a field of a block that is not empty and has no counterpart in a chat."""
    for name, value in block.items():
        if value and name not in names and name not in ("type", "cache_control"):
            raise unsupported_parameter(f"{where}.{name[:100]}", "leave it out")
