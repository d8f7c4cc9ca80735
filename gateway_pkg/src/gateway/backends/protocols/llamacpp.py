"""llama.cpp's server: OpenAI's API, but for a named `tool_choice`; and it counts tokens.

`/chat/completions/input_tokens` applies the model's template and tells the number; a completion's prompt has no
template, and of its tokens there is only the list, at `/tokenize` below the server's root.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gateway.backends.protocols import openai
from gateway.backends.protocols.base import THOUGHTS, AnswerError, Outgoing, json_object
from gateway.backends.protocols.wire_protocol import TokenCount, WireProtocol
from gateway.backends.usage import count_of
from gateway.errors import ApiError
from gateway.routing.body import dump, load

_TOKENS = re.compile(rb'\s*\{\s*"tokens"\s*:\s*\[[\d,\s]*\]\s*\}\s*')


def chat(request: Mapping[str, Any], body: bytes) -> bytes:
    """The body in the server's words; raises ApiError 400 where `tool_choice` names no function of `tools`.

    An object `tool_choice`, which the server would take for `auto`, becomes `required` and no tool but the named one.
    Thoughts that come by another name become `reasoning_content`.
    """
    if b'"reasoning"' in body or b'"thinking"' in body:
        content = load(body)
        body = dump({**content, "messages": [*map(_message, content["messages"])]})
    if not isinstance(request.get("tool_choice"), dict):
        return body
    content = load(body)
    choice = content["tool_choice"]
    for tool in content.get("tools") or ():
        function = tool.get("function")
        if isinstance(function, dict) and choice == {"type": "function", "function": {"name": function.get("name")}}:
            return dump({**content, "tools": [tool], "tool_choice": "required"})
    problem = "'tool_choice': an object must name one function of 'tools' on this backend"
    raise ApiError(400, problem, param="tool_choice", code="invalid_value")


def _message(message: dict[str, Any]) -> dict[str, Any]:
    thoughts = [message[name] for name in THOUGHTS if isinstance(message.get(name), str)]
    if message["role"] != "assistant" or not thoughts:
        return message
    return {**{name: value for name, value in message.items() if name not in THOUGHTS}, THOUGHTS[0]: thoughts[0]}


def count_request(model: str, request: Mapping[str, Any], prefix: bytes) -> Outgoing:
    """Of a chat's `messages`, else of a completion's `prompt`."""
    if request.get("messages"):
        asked = {"model": model, "messages": request["messages"]}
        return Outgoing(PROTOCOL.target("chat", prefix) + openai.CHAT_TOKENS_PATH.encode(), dump(asked))
    asked = {"model": model, "content": request.get("prompt"), "add_special": True}
    return Outgoing(prefix.removesuffix(b"/v1") + b"/tokenize", dump(asked))


def counted(request: Mapping[str, Any], answer: bytes) -> int:
    """Raises AnswerError."""
    if request.get("messages"):
        tokens = count_of(json_object(answer).get("input_tokens"))
        if tokens is None:
            raise AnswerError("a count of tokens without input_tokens")
        return tokens
    # Without parsing: a list of half a million numbers would hold the event loop for 60 ms.
    if not _TOKENS.fullmatch(answer):
        raise AnswerError("no list of tokens")
    return answer.count(b",") + 1


PROTOCOL = WireProtocol(
    name="llamacpp",
    about="llama.cpp's server: OpenAI's API; puts a named `tool_choice` in its words, counts tokens with its tokenizer",
    capabilities=frozenset({*openai.CHATTING, "rerank"}),
    models=openai.MODELS,
    bodies={"chat": chat},
    chat_tokens_path=openai.CHAT_TOKENS_PATH,
    tokens=TokenCount(count_request, counted),
)
