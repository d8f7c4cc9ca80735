"""What `truncation: auto` leaves of a conversation that is too long."""

from __future__ import annotations

from typing import Any

import pytest
from gateway.dialects.responses.truncation import shortened
from gateway.errors import ApiError

SYSTEM = {"role": "system", "content": "s" * 100}
TURN = [
    {"role": "user", "content": "u" * 100},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "c"}]},
    {"role": "tool", "tool_call_id": "c", "content": "t" * 100},
    {"role": "assistant", "content": "a" * 100},
]


@pytest.mark.parametrize(
    ("numbers", "limits", "turns"),
    [
        ({"n_prompt_tokens": 1000, "n_ctx": 800}, {}, 6),
        ({"n_prompt_tokens": 1000, "n_ctx": 800}, {"max_tokens": 300}, 4),
        ({"n_prompt_tokens": 1000, "n_ctx": 10}, {}, 1),
        ({}, {}, 4),
    ],
)
def test_oldest_turns_go(numbers: dict[str, int], limits: dict[str, int], turns: int) -> None:
    chat: dict[str, Any] = {"model": "m", "messages": [SYSTEM, *TURN * 10], **limits}
    shorter = shortened(chat, ApiError(400, "too long", more=numbers))
    assert shorter == {**chat, "messages": [SYSTEM, *TURN * turns]}


def test_last_turn_is_not_shortened() -> None:
    assert shortened({"messages": [SYSTEM, *TURN]}, ApiError(400, "too long")) is None
