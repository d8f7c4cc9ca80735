"""OpenAI's Responses API, sans I/O: a conversation compacted to the user's messages and a sealed summary."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gateway.backends.protocols.base import AnswerError
from gateway.dialects.responses.answer import response_usage
from gateway.dialects.responses.items import Item, NewId
from gateway.dialects.turns import first_choice, read_text
from gateway.web.schemas import TEXT, record

SUMMARISE = (
    "Write a summary of this conversation for yourself, so that you can go on without having seen it. Say what was "
    "asked for, what was decided and why, what was done and found, with names, paths and numbers, and what is left. "
    "Write the summary alone."
)
_ITEM = {"type": "object", "required": ["id", "type"]}
COMPACTED = record(
    id=TEXT,
    object={"const": "response.compaction"},
    created_at={"type": "integer"},
    output={"type": "array", "items": _ITEM},
    usage={"type": ["object", "null"], "description": "The backend's; null where it reports none."},
)
_WITHOUT = ("tools", "tool_choice", "parallel_tool_calls", "response_format", "stream", "max_tokens")


def to_summary(chat: Mapping[str, Any]) -> dict[str, Any]:
    """The chat that asks for the summary of a chat."""
    kept = {name: value for name, value in chat.items() if name not in _WITHOUT}
    return {**kept, "messages": [*chat["messages"], {"role": "user", "content": SUMMARISE}]}


def compacted_response(
    response_id: str,
    new_id: NewId,
    items: Iterable[Item],
    completion: Mapping[str, Any],
    seal: Callable[[str], str],
) -> dict[str, Any]:
    """OpenAI's `response.compaction`; raises AnswerError for a completion without a text."""
    message = (first_choice(completion) or {}).get("message")
    text = read_text(message, "content") if isinstance(message, dict) else ""
    if not text:
        raise AnswerError("a summary without a text")
    said = [item for item in items if item["type"] == "message" and item["role"] == "user"]
    compaction = {"id": new_id("cmp"), "type": "compaction", "encrypted_content": seal(text)}
    return {
        "id": response_id,
        "object": "response.compaction",
        "created_at": int(time.time()),
        "output": [*said, compaction],
        "usage": response_usage(completion.get("usage")),
    }
