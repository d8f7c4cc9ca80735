"""OpenAI's Responses API, sans I/O: a request as a chat. What a chat has no place for is refused by name.

The reference is the `openai` SDK's own types. Items are kept in their full form, so that they can be stored and
listed; a chat is made of them. Reasoning items come back to the model as `reasoning_content` of the message that they
led to. Fields that the API does not know go on as they came.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from gateway.http.errors import ApiError

Item = dict[str, Any]
NewId = Callable[[str], str]

_OPEN = ConfigDict(extra="allow", strict=True)
_CLOSED = ConfigDict(extra="forbid", strict=True)

# Fields of the API without a counterpart, each with what to do instead.
REFUSED = {
    "access_programs": "leave it out: there are no such programs here",
    "background": "leave it out, and wait for the answer or stream it",
    "context_management": "leave it out, and shorten the conversation yourself",
    "conversation": "chain responses by `previous_response_id`",
    "image": "leave it out: images go to the model as they are",
    "moderation": "leave it out: nothing is moderated here",
    "n": "ask again: a response is one answer",
    "prompt": "send the text itself as `instructions` and `input`",
}
INCLUDABLE = ("message.input_image.image_url", "message.output_text.logprobs", "reasoning.encrypted_content")
_TRANSLATED = frozenset(
    {
        *REFUSED,
        "include",
        "input",
        "instructions",
        "max_output_tokens",
        "max_tool_calls",
        "messages",
        "metadata",
        "parallel_tool_calls",
        "previous_response_id",
        "reasoning",
        "store",
        "stream_options",
        "text",
        "tool_choice",
        "tools",
        "top_logprobs",
        "truncation",
    }
)
_ROLES = ("user", "assistant", "system", "developer")
_OUTPUT_KEYS = {"annotations", "logprobs"}  # what an answer's text has beside it, of no use to a model
# Of a function tool; they drive other tools and callers than a chat has.
_REFUSED_OF_TOOLS = ("allowed_callers", "async", "defer_loading", "output_schema")


@with_config(_OPEN)
class Reasoning(TypedDict):
    effort: NotRequired[Annotated[str | None, Field(description="Goes on as `reasoning_effort`.")]]
    summary: NotRequired[
        Annotated[
            Literal["auto", "concise", "detailed"] | None,
            Field(description="The model's reasoning comes as `summary`, whole; without it as `content`."),
        ]
    ]
    generate_summary: NotRequired[
        Annotated[Literal["auto", "concise", "detailed"] | None, Field(description="The former name of `summary`.")]
    ]


@with_config(_OPEN)
class Text(TypedDict):
    format: NotRequired[Annotated[dict[str, Any] | None, Field(description="`text`, `json_object`, `json_schema`.")]]
    verbosity: NotRequired[str | None]


@with_config(_CLOSED)
class ResponsesStreamOptions(TypedDict):
    include_obfuscation: NotRequired[
        Annotated[bool | None, Field(description="Pads deltas to lengths that tell less; off unless asked for.")]
    ]
    include_usage: NotRequired[Annotated[bool | None, Field(description="Usage always comes with the last event.")]]


@with_config(_OPEN)
class ResponsesRequest(TypedDict):
    """OpenAI's `POST /v1/responses`."""

    model: NotRequired[
        Annotated[
            str | None, Field(max_length=500, description="An alias, a served model, `<class>:<model>`, or `auto`.")
        ]
    ]
    input: NotRequired[
        Annotated[
            str | list[dict[str, Any]] | None,
            Field(
                description="A text, or items: messages, `function_call`, `function_call_output`, `reasoning`, "
                "`item_reference`. Required without `previous_response_id`.",
                examples=["Say hello."],
            ),
        ]
    ]
    messages: NotRequired[
        Annotated[list[dict[str, Any]] | None, Field(description="A chat's messages, instead of `input`.")]
    ]
    instructions: NotRequired[
        Annotated[str | None, Field(description="The system message of this response alone; not carried over.")]
    ]
    previous_response_id: NotRequired[
        Annotated[str | None, Field(description="A stored response whose conversation goes on.")]
    ]
    store: NotRequired[
        Annotated[bool | None, Field(description="Whether the response is kept; it is unless this is false.")]
    ]
    stream: NotRequired[bool | None]
    stream_options: NotRequired[ResponsesStreamOptions | None]
    tools: NotRequired[
        Annotated[list[dict[str, Any]] | None, Field(description="Function tools; others are refused by name.")]
    ]
    tool_choice: NotRequired[str | dict[str, Any] | None]
    parallel_tool_calls: NotRequired[bool | None]
    max_tool_calls: NotRequired[
        Annotated[int | None, Field(ge=1, description="Bounds calls of built-in tools, of which there are none.")]
    ]
    max_output_tokens: NotRequired[Annotated[int | None, Field(ge=1)]]
    max_tokens: NotRequired[
        Annotated[int | None, Field(ge=1, description="The same, where `max_output_tokens` is not given.")]
    ]
    temperature: NotRequired[float | None]
    top_p: NotRequired[float | None]
    top_logprobs: NotRequired[Annotated[int | None, Field(ge=0, le=20)]]
    include: NotRequired[
        Annotated[
            list[str] | None,
            Field(description=f"Any of {', '.join(INCLUDABLE)}. Reasoning is not encrypted: its text is in the item."),
        ]
    ]
    text: NotRequired[Text | None]
    reasoning: NotRequired[Reasoning | None]
    metadata: NotRequired[
        Annotated[
            dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]] | None,
            Field(max_length=16, description="Kept with the response."),
        ]
    ]
    truncation: NotRequired[
        Annotated[str | None, Field(description="`disabled`: a conversation that is too long is the backend's error.")]
    ]
    user: NotRequired[str | None]
    safety_identifier: NotRequired[str | None]
    prompt_cache_key: NotRequired[str | None]
    prompt_cache_options: NotRequired[dict[str, Any] | None]
    prompt_cache_retention: NotRequired[str | None]
    service_tier: NotRequired[str | None]


def check(request: Mapping[str, Any]) -> None:
    """Raises ApiError 400 for a field that cannot be honoured."""
    for name, advice in REFUSED.items():
        if request.get(name) and not (name == "n" and request[name] == 1):
            raise _unsupported(name, advice)
    if request.get("truncation") not in (None, "disabled"):
        raise _unsupported("truncation", "leave it out: the gateway does not shorten conversations")
    for index, name in enumerate(request.get("include") or ()):
        if name not in INCLUDABLE:
            raise _unsupported(f"include.{index}", f"there is no '{name}' here; it may be {', '.join(INCLUDABLE)}")
    for name in ("context", "mode"):
        if (request.get("reasoning") or {}).get(name) not in (None, "auto", "standard"):
            raise _unsupported(f"reasoning.{name}", "leave it out: the model decides")
    if request.get("stream_options") and not request.get("stream"):
        raise _invalid("stream_options", "is for streams; set `stream` to true, or leave it out")
    if request.get("input") is not None and request.get("messages") is not None:
        raise _invalid("messages", "stands instead of `input`; send one of them")


def read_items(request: Mapping[str, Any], new_id: NewId) -> list[Item]:
    """The request's own items in full form, each with an id; `item_reference` stays one.

    Raises:
        ApiError: 400 that names the place of what is not an item of the API, or of a kind that is not supported.
    """
    given = request.get("input")
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    items: list[Item] = []
    given, name = (given, "input") if given is not None else (request.get("messages"), "messages")
    for index, item in enumerate(given or ()):
        items += (_item(part, f"{name}.{index}", new_id) for part in _of_chat(item, f"{name}.{index}"))
    if not items and not request.get("previous_response_id"):
        raise _invalid("input", "is missing; send a text or a list of items")
    return items


def with_own_ids(items: Iterable[Item], new_id: NewId) -> list[Item]:
    """The items, with another id where one comes again: whoever lists them goes on from an id."""
    known: set[str] = set()
    own = []
    for item in items:
        if item["id"] in known:
            item = {**item, "id": new_id(_ID_PREFIXES[item["type"]])}
        known.add(item["id"])
        own.append(item)
    return own


def to_chat(request: Mapping[str, Any], items: Iterable[Item]) -> dict[str, Any]:
    """OpenAI's chat request for the whole conversation; raises ApiError 400 that names a field."""
    chat = {name: value for name, value in request.items() if name not in _TRANSLATED and value is not None}
    chat["messages"] = _messages(request.get("instructions"), items)
    if not chat["messages"]:
        raise _invalid("input", "holds no message")
    if request.get("max_output_tokens") is not None:
        chat["max_tokens"] = request["max_output_tokens"]
    tools = [_tool(tool, f"tools.{index}") for index, tool in enumerate(request.get("tools") or ())]
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


def _item(item: Item, param: str, new_id: NewId) -> Item:
    kind = item.get("type") or ("message" if "role" in item else "item_reference")
    reader = _READERS.get(kind) if isinstance(kind, str) else None
    if reader is None:
        raise _unsupported(f"{param}.type", f"'{kind}' is none of {', '.join(_READERS)}")
    item = reader(item, param)
    if not isinstance(item.get("id"), str):
        item["id"] = new_id(_ID_PREFIXES[kind])
    return item


def _message(item: Item, param: str) -> Item:
    role, content = item.get("role"), item.get("content")
    if role not in _ROLES:
        raise _invalid(f"{param}.role", f"is none of {', '.join(_ROLES)}")
    if isinstance(content, str):
        content = [{"type": "input_text", "text": content}]
    if not isinstance(content, list):
        raise _invalid(f"{param}.content", "is neither a text nor a list of parts")
    parts = [_part(part, f"{param}.content.{index}", role) for index, part in enumerate(content)]
    return {**item, "type": "message", "status": item.get("status") or "completed", "content": parts}


def _part(part: Any, param: str, role: str) -> Item:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("input_text", "text", "output_text"):
        _need_text(part, "text", param)
        if role != "assistant":
            return {**part, "type": "input_text"}
        return {**part, "type": "output_text", "annotations": part.get("annotations") or []}
    if kind == "refusal" and role == "assistant":
        _need_text(part, "refusal", param)
        return dict(part)
    if kind == "image_url":
        image = part.get("image_url")
        image = {"url": image} if isinstance(image, str) else image if isinstance(image, dict) else {}
        part = {"type": "input_image", "image_url": image.get("url"), "detail": image.get("detail")}
    if kind in ("input_image", "image_url"):
        if part.get("file_id"):
            raise _unsupported(f"{param}.file_id", "no files are kept here; send the image as a data URL")
        _need_text(part, "image_url", param)
        return {**part, "detail": part.get("detail") or "auto"}
    if kind == "input_audio" and isinstance(part.get("input_audio"), dict):
        return dict(part)
    advice = "send its text as `input_text`" if kind in ("input_file", "file") else f"'{kind}' is no part of a message"
    raise _unsupported(f"{param}.type", advice)


def _function_call(item: Item, param: str) -> Item:
    for name in ("call_id", "name", "arguments"):
        _need_text(item, name, param)
    return {**item, "status": item.get("status") or "completed"}


def _function_call_output(item: Item, param: str) -> Item:
    _need_text(item, "call_id", param)
    output = item.get("output")
    if isinstance(output, list):
        output = [_part(part, f"{param}.output.{index}", "tool") for index, part in enumerate(output)]
    elif not isinstance(output, str):
        raise _invalid(f"{param}.output", "is neither a text nor a list of parts")
    return {**item, "status": item.get("status") or "completed", "output": output}


def _reasoning(item: Item, param: str) -> Item:
    for name in ("content", "summary"):
        parts = item.get(name)
        if parts is not None and not isinstance(parts, list):
            raise _invalid(f"{param}.{name}", "is no list of parts")
        for index, part in enumerate(parts or ()):
            if not isinstance(part, dict):
                raise _invalid(f"{param}.{name}.{index}", "is no part")
            _need_text(part, "text", f"{param}.{name}.{index}")
    if item.get("encrypted_content"):
        raise _unsupported(f"{param}.encrypted_content", "only its maker can read it; send the reasoning's text")
    return {**item, "summary": item.get("summary") or []}


def _item_reference(item: Item, param: str) -> Item:
    _need_text(item, "id", param)
    return {"type": "item_reference", "id": item["id"]}


_READERS: dict[str, Callable[[Item, str], Item]] = {
    "message": _message,
    "function_call": _function_call,
    "function_call_output": _function_call_output,
    "reasoning": _reasoning,
    "item_reference": _item_reference,
}
_ID_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}


def _of_chat(message: Item, param: str) -> list[Item]:
    """A message with what only a chat's has as items; an item as it is."""
    if "type" in message or not ("tool_calls" in message or message.get("role") == "tool"):
        return [message]
    if message.get("role") == "tool":
        rest = {name: value for name, value in message.items() if name not in ("role", "tool_call_id", "content")}
        call_id = message.get("tool_call_id")
        return [{**rest, "type": "function_call_output", "call_id": call_id, "output": message.get("content")}]
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise _invalid(f"{param}.tool_calls", "is no list of tool calls")
    said = {name: value for name, value in message.items() if name != "tool_calls" and value is not None}
    items = [said] if not calls else [{"content": "", **said}] if said.keys() - {"role"} else []
    for call in calls:
        function = call.get("function")
        if not isinstance(function, dict):
            raise _invalid(f"{param}.tool_calls", "holds a call without its function")
        items.append({**_rest(call, "function"), **function, "type": "function_call", "call_id": call.get("id")})
    return items


def _messages(instructions: str | None, items: Iterable[Item]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if instructions:
        messages.append({"role": "system", "content": instructions})
    thoughts = ""
    shown: list[Item] = []  # by tools, and not yet in a message
    for item in items:
        kind = item["type"]
        if kind == "reasoning":
            thoughts += "".join(part["text"] for part in item.get("content") or item["summary"])
            continue
        if shown and kind != "function_call_output":
            messages.append({"role": "user", "content": shown})
            shown = []
        if kind == "function_call" or (kind == "message" and item["role"] == "assistant"):
            _add_of_assistant(messages, item, thoughts)
        elif kind == "function_call_output":
            messages.append(_tool_message(item, shown))
        else:
            _add(messages, _chat_message(item))
        thoughts = ""  # those that led to nothing end here: no message of a chat could hold them
    if shown:
        messages.append({"role": "user", "content": shown})
    return messages


def _add(messages: list[dict[str, Any]], message: dict[str, Any]) -> None:
    """Adds a message; system messages at the beginning become one, since many models' templates take one alone."""
    last = messages[-1] if messages else {}
    if (
        len(messages) == 1
        and last.keys() | message.keys() == {"role", "content"}
        and last["role"] == message["role"] == "system"
        and isinstance(last["content"], str)
        and isinstance(message["content"], str)
    ):
        message = {"role": "system", "content": f"{last['content']}\n\n{message['content']}"}
        messages.pop()
    messages.append(message)


def _add_of_assistant(messages: list[dict[str, Any]], item: Item, thoughts: str) -> None:
    """Adds what the model said or called; calls go with what was said before them, as a chat has them."""
    last = messages[-1] if messages and messages[-1]["role"] == "assistant" else None
    if item["type"] == "function_call":
        if last is None:
            last = {"role": "assistant", "content": None}
            messages.append(last)
        call = {"id": item["call_id"], "type": "function"}
        call["function"] = {"name": item["name"], "arguments": item["arguments"]}
        last.setdefault("tool_calls", []).append({**_rest(item, "call_id", "name", "arguments"), **call})
    elif last is not None and "tool_calls" in last and isinstance(last["content"], str | None):
        # Said after calls of the same turn.
        last["content"] = (last["content"] or "") + _text_of(item)
    else:
        last = _chat_message(item)
        messages.append(last)
    if thoughts:
        last["reasoning_content"] = last.get("reasoning_content", "") + thoughts


def _tool_message(item: Item, shown: list[Item]) -> dict[str, Any]:
    """A chat's tool message holds text alone: other parts are put into `shown`, after a line that says whose."""
    output, call_id = item["output"], item["call_id"]
    if isinstance(output, list):
        others = [_chat_part(part) for part in output if part["type"] != "input_text"]
        if others:
            shown += [{"type": "text", "text": f"From the result of tool call {call_id}:"}, *others]
        output = [part for part in output if part["type"] == "input_text"]
    return {**_rest(item, "call_id", "output"), "role": "tool", "tool_call_id": call_id, "content": _content(output)}


def _chat_message(item: Item) -> dict[str, Any]:
    role = "system" if item["role"] == "developer" else item["role"]  # a name that templates do not know
    return {**_rest(item, "role", "content"), "role": role, "content": _content(item["content"])}


def _content(parts: str | list[Item]) -> Any:
    """A chat's content: a text where it is nothing but one, since that is what every model takes."""
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
        rest = _rest(part, "image_url", "detail", "file_id")
        return {**rest, "type": "image_url", "image_url": image}
    if part["type"] == "input_audio":
        return part
    name = "refusal" if part["type"] == "refusal" else "text"
    return {**_rest(part, name, *_OUTPUT_KEYS), "type": "text", "text": part[name]}


def _text_of(item: Item) -> str:
    return "".join(part.get("text") or part.get("refusal") or "" for part in item["content"])


def _rest(item: Item, *known: str) -> Item:
    """What else an item holds: it goes on as it came."""
    return {
        name: value
        for name, value in item.items()
        if name not in known and name not in ("id", "type", "status") and value is not None
    }


def _tool(tool: Item, param: str) -> dict[str, Any]:
    if isinstance(tool.get("function"), dict):  # as chats have it
        tool = {"type": tool.get("type"), **tool["function"]}
    if tool.get("type") != "function":
        raise _unsupported(f"{param}.type", f"'{tool.get('type')}' is no tool of the gateway; only functions are")
    _need_text(tool, "name", param)
    for name in _REFUSED_OF_TOOLS:
        if tool.get(name) and tool[name] != ["direct"]:
            raise _unsupported(f"{param}.{name}", "leave it out: the model calls functions directly")
    names = ("name", "description", "parameters", "strict")
    function = {name: tool[name] for name in names if tool.get(name) is not None}
    return {**_rest(tool, *names, *_REFUSED_OF_TOOLS), "type": "function", "function": function}


def _tool_fields(request: Mapping[str, Any], tools: list[dict[str, Any]]) -> dict[str, Any]:
    """`tools` and what may stand only beside them in a chat."""
    choice = request.get("tool_choice")
    if isinstance(choice, dict):
        choice, tools = _chosen(choice, tools)
    elif choice not in (None, "none", "auto", "required"):
        raise _invalid("tool_choice", "is none of none, auto, required, or an object")
    if not tools:
        if choice not in (None, "none", "auto"):
            raise _invalid("tool_choice", "wants a tool to be called, but `tools` has none")
        return {}
    fields: dict[str, Any] = {"tools": tools}
    if choice is not None:
        fields["tool_choice"] = choice
    if request.get("parallel_tool_calls") is not None:
        fields["parallel_tool_calls"] = request["parallel_tool_calls"]
    return fields


def _chosen(choice: Item, tools: list[dict[str, Any]]) -> tuple[Any, list[dict[str, Any]]]:
    """A chat's tool_choice, and the tools that it may be of: chats have no list of allowed ones."""
    known = [tool["function"]["name"] for tool in tools]
    if choice.get("type") == "function":
        of_chat = choice.get("function")
        name = of_chat.get("name") if isinstance(of_chat, dict) else choice.get("name")
        if name not in known:
            raise _invalid("tool_choice.name", f"'{name}' is no function of `tools`")
        return {"type": "function", "function": {"name": name}}, tools
    if choice.get("type") != "allowed_tools":
        raise _unsupported("tool_choice.type", f"'{choice.get('type')}' is neither function nor allowed_tools")
    if choice.get("mode") not in ("auto", "required"):
        raise _invalid("tool_choice.mode", "is neither auto nor required")
    allowed = choice.get("tools")
    if not isinstance(allowed, list) or not all(
        isinstance(tool, dict) and tool.get("type") == "function" and tool.get("name") in known for tool in allowed
    ):
        raise _invalid("tool_choice.tools", "is no list of functions of `tools`")
    names = [tool["name"] for tool in allowed]
    return choice["mode"], [tool for tool in tools if tool["function"]["name"] in names]


def _response_format(wanted: Mapping[str, Any] | None) -> dict[str, Any] | None:
    kind = (wanted or {}).get("type", "text")
    if wanted is None or kind == "text":
        return None
    if kind == "json_object":
        return dict(wanted)
    if kind != "json_schema":
        raise _unsupported("text.format.type", f"'{kind}' is none of text, json_object, json_schema")
    _need_text(wanted, "name", "text.format")
    if not isinstance(wanted.get("schema"), dict):
        raise _invalid("text.format.schema", "is no JSON schema")
    schema = {name: value for name, value in wanted.items() if name != "type" and value is not None}
    return {"type": "json_schema", "json_schema": schema}


def _need_text(item: Mapping[str, Any], name: str, param: str) -> None:
    if not isinstance(item.get(name), str):
        raise _invalid(f"{param}.{name}", "is missing" if item.get(name) is None else "is no text")


def _invalid(param: str, problem: str) -> ApiError:
    return ApiError(400, f"Invalid request: '{param}' {problem}", param=param, code="invalid_value")


def _unsupported(param: str, advice: str) -> ApiError:
    return ApiError(400, f"'{param}' is not supported as it is: {advice}", param=param, code="unsupported_parameter")
