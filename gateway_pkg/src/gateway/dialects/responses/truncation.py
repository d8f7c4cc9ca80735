"""OpenAI's Responses API, sans I/O: `truncation: auto` shortens a conversation that a backend found too long."""

from __future__ import annotations

from typing import Any

from gateway.errors import ApiError
from gateway.routing.body import dump

ANSWER_SHARE = 8  # a part of the context that stays free for the answer where the request bounds none


def shortened(chat: dict[str, Any], error: ApiError) -> dict[str, Any] | None:
    """The chat without its oldest turns, so that it fits as `error` tells; None where only the last turn is left.

    A turn begins with a user's message: no call of a tool loses its result. Where the backend tells no numbers, half of
    the conversation goes.
    """
    messages = chat["messages"]
    opening = next((index for index, message in enumerate(messages) if message["role"] != "system"), len(messages))
    starts = [index for index, message in enumerate(messages) if message["role"] == "user" and index > opening]
    if not starts:
        return None
    sizes = [len(dump(message)) for message in messages]
    asked, limit = error.more.get("n_prompt_tokens"), error.more.get("n_ctx")
    share = (
        (limit - min(chat.get("max_tokens") or limit // ANSWER_SHARE, limit // 2)) / asked if asked and limit else 0.5
    )
    room = sum(sizes) * min(share, 1) - sum(sizes[:opening])
    start = next((index for index in starts if sum(sizes[index:]) <= room), starts[-1])
    return {**chat, "messages": messages[:opening] + messages[start:]}
