"""OpenAI's Responses API, sans I/O: the tools of a request as a chat's functions, and their calls on the way back.

A chat knows functions alone: tools of a namespace and custom tools are offered as functions of a name of their own.
Hosted tools are left out: no model needs them to go on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any, NamedTuple

import orjson

from gateway.dialects.responses.items import Item, rest
from gateway.errors import invalid_value, unsupported_parameter
from gateway.web.fields import need_text

# Tools that OpenAI runs, or that its models alone know; some have a date behind the name. From the SDK's `ToolParam`.
HOSTED = (
    "apply_patch",
    "code_interpreter",
    "computer",
    "file_search",
    "image_generation",
    "local_shell",
    "mcp",
    "programmatic_tool_calling",
    "shell",
    "tool_search",
    "web_search",
)
_HOSTED = re.compile(rf"(?:{'|'.join(HOSTED)})(?:_\w+)?")
NAME_MAX_CHARS = 64  # of a chat's function, as in OpenAI's API
_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_-]")
# Fields of a tool that a chat lacks and a model can do without.
_LEFT_OUT = ("allowed_callers", "async", "defer_loading", "output_schema")
_INPUT = {"type": "string", "description": "The tool's whole input, as plain text."}
_CUSTOM_PARAMETERS = {
    "type": "object",
    "properties": {"input": _INPUT},
    "required": ["input"],
    "additionalProperties": False,
}


class Origin(NamedTuple):
    """The tool behind a chat's function."""

    name: str
    namespace: str | None = None
    is_custom: bool = False


class Tools:
    """The tools of one request.

    `functions` are a chat's; `origins` holds the tool behind each function's name; `told` is the list that a response
    repeats. What is left out is named in `ignored`.
    """

    def __init__(self, tools: Iterable[Item], ignored: set[str]) -> None:
        """Raises ApiError 400 that names the field."""
        self.functions: list[Item] = []
        self.origins: dict[str, Origin] = {}
        self.told: list[Item] = []
        self._ignored = ignored
        for index, tool in enumerate(tools):
            self._add(tool, f"tools.{index}")

    def chosen(self, choice: Item) -> tuple[Any, list[Item]]:
        """A chat's `tool_choice` and the functions it may call; raises ApiError 400."""
        kind = choice.get("type")
        if kind in ("function", "custom"):
            name = self._chosen_name(choice)
            if name is None:
                raise invalid_value("tool_choice.name", f"must name a tool of `tools`, not '{_shown(choice)}'")
            return {"type": "function", "function": {"name": name}}, self.functions
        if kind != "allowed_tools":
            raise unsupported_parameter("tool_choice.type", "it must be function, custom or allowed_tools")
        if choice.get("mode") not in ("auto", "required"):
            raise invalid_value("tool_choice.mode", "must be auto or required")
        allowed = choice.get("tools")
        if not isinstance(allowed, list) or not all(isinstance(tool, dict) for tool in allowed):
            raise invalid_value("tool_choice.tools", "must be a list of tools of `tools`")
        names = set()
        for tool in allowed:
            if (name := self._chosen_name(tool)) is not None:
                names.add(name)
            elif not _is_hosted(tool):
                raise invalid_value("tool_choice.tools", f"must be tools of `tools`, not '{_shown(tool)}'")
        return choice["mode"], [function for function in self.functions if function["function"]["name"] in names]

    def _add(self, tool: Item, param: str) -> None:
        if isinstance(tool.get("function"), dict):  # as chats have it
            tool = {"type": tool.get("type"), **tool["function"]}
        kind = tool.get("type")
        if kind == "namespace":
            self._add_namespace(tool, param)
        elif kind in ("function", "custom"):
            self._add_function(tool, param, None)
        elif _is_hosted(tool):
            self._ignored.add(f"tools.{kind}")
            return
        else:
            raise unsupported_parameter(
                f"{param}.type", f"it must be function, custom or namespace, not '{str(kind)[:100]}'"
            )
        self.told.append(tool if kind != "function" else _TOLD | tool)

    def _add_namespace(self, tool: Item, param: str) -> None:
        need_text(tool, "name", param)
        inner = tool.get("tools")
        if not isinstance(inner, list) or not all(isinstance(one, dict) for one in inner):
            raise invalid_value(f"{param}.tools", "must be a list of tools")
        for index, one in enumerate(inner):
            if one.get("type") not in ("function", "custom"):
                raise unsupported_parameter(f"{param}.tools.{index}.type", "it must be function or custom")
            self._add_function(one, f"{param}.tools.{index}", tool["name"])

    def _add_function(self, tool: Item, param: str, namespace: str | None) -> None:
        need_text(tool, "name", param)
        for field in _LEFT_OUT:
            if tool.get(field) and tool[field] != ["direct"]:
                self._ignored.add(f"tools.{field}")
        origin = Origin(tool["name"], namespace, tool["type"] == "custom")
        name = chat_name(*origin[:2])
        if self.origins.setdefault(name, origin) != origin:
            raise invalid_value(f"{param}.name", f"is the name of another tool too: '{name[:100]}'; rename one")
        function = {"name": name, **(_custom if origin.is_custom else _function)(tool)}
        known = ("name", "description", "parameters", "strict", "format", *_LEFT_OUT)
        self.functions.append({**rest(tool, *known), "type": "function", "function": function})

    def _chosen_name(self, choice: Item) -> str | None:
        """The chat's name of the tool that a choice names."""
        of_chat = choice.get("function")
        name = of_chat.get("name") if isinstance(of_chat, dict) else choice.get("name")
        namespace = choice.get("namespace")
        if not isinstance(name, str) or not isinstance(namespace, str | None):
            return None
        found = chat_name(name, namespace)
        return found if self.origins.get(found) == Origin(name, namespace, choice.get("type") == "custom") else None


_TOLD: Item = {"description": None, "parameters": None, "strict": None}


def chat_name(name: str, namespace: str | None) -> str:
    """A tool's name among a chat's functions: the same for the same tool in every request of a conversation."""
    if namespace is None:
        return name
    joined = f"{namespace}__{name}"
    plain = _NOT_IN_NAMES.sub("_", joined)
    if plain == joined and len(joined) <= NAME_MAX_CHARS:
        return joined
    digest = sha256(joined.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{plain[: NAME_MAX_CHARS - len(digest) - 1]}_{digest}"


def custom_arguments(text: str) -> str:
    """A custom tool's input as the arguments of its function."""
    return orjson.dumps({"input": text}).decode()


def custom_input(arguments: str) -> str:
    """A custom tool's input in the arguments of its function, of which some models leave out the object."""
    try:
        given: Any = orjson.loads(arguments)
    except orjson.JSONDecodeError:
        return arguments
    if isinstance(given, dict) and isinstance(given.get("input"), str):
        return str(given["input"])
    return given if isinstance(given, str) else arguments


def _function(tool: Item) -> Item:
    names = ("description", "parameters", "strict")
    return {name: tool[name] for name in names if tool.get(name) is not None}


def _custom(tool: Item) -> Item:
    """A function with one text; a grammar that OpenAI would enforce is told to the model."""
    words = tool.get("description") or ""
    wanted = tool.get("format")
    if isinstance(wanted, dict) and isinstance(wanted.get("definition"), str):
        words += f"\n\nThe input follows this grammar ({wanted.get('syntax')}):\n{wanted['definition']}"
    told = {"description": words.strip()} if words else {}
    return {**told, "parameters": _CUSTOM_PARAMETERS}


def _is_hosted(tool: Mapping[str, Any]) -> bool:
    kind = tool.get("type")
    return isinstance(kind, str) and _HOSTED.fullmatch(kind) is not None


def _shown(choice: Item) -> str:
    return str(choice.get("name"))[:100]
