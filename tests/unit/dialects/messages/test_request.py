"""Anthropic's requests as chats, without I/O."""

from __future__ import annotations

import json
from typing import Any

import pytest
from anthropic.types import message_create_params
from anthropic.types.beta import message_create_params as beta_params
from gateway.dialects.messages.request import REFUSED, MessagesRequest, prefill, shows_thinking, to_chat
from gateway.web.endpoint import parse
from pydantic import TypeAdapter

REQUEST = TypeAdapter(MessagesRequest)
HELLO = [{"role": "user", "content": "Hello"}]


def chat(**fields: Any) -> dict[str, Any]:
    body = json.dumps({"model": "m", "max_tokens": 10, "messages": HELLO, **fields})
    return to_chat(parse(body.encode(), REQUEST), set())


def test_prefill() -> None:
    assert prefill(chat(messages=[*HELLO, {"role": "assistant", "content": "Well,"}])) == "Well,"
    assert prefill(chat()) == ""


@pytest.mark.parametrize(
    ("thinking", "is_shown"),
    [
        (None, False),
        ({"type": "disabled"}, False),
        ({"type": "adaptive"}, True),
        ({"type": "enabled", "budget_tokens": 1024, "display": "omitted"}, False),
        ({"type": "enabled", "budget_tokens": 1024, "display": "summarized"}, True),
    ],
)
def test_thinking_is_shown_to_who_asked_for_it(thinking: Any, is_shown: bool) -> None:
    assert shows_thinking({"thinking": thinking}) is is_shown


def test_each_field_of_the_sdk_is_decided_on() -> None:
    """A field that a new SDK brings is to be looked at, not forwarded unseen."""
    known = set(MessagesRequest.__annotations__) | set(REFUSED)
    for params in (message_create_params.MessageCreateParamsBase, beta_params.MessageCreateParamsBase):
        assert set(params.__annotations__) - {"betas"} <= known  # `betas` is sent as a header
