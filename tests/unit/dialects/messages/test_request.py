"""Anthropic's requests as chats, without I/O."""

from __future__ import annotations

import json
from typing import Any

import pytest
from anthropic.types import message_create_params
from anthropic.types.beta import message_create_params as beta_params
from gateway.dialects.messages.request import REFUSED, MessagesRequest, prefill, shows_thinking, to_chat
from gateway.errors import ApiError
from gateway.web.endpoint import parse
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from tests.support.pieces import json_values

REQUEST = TypeAdapter(MessagesRequest)
HELLO = [{"role": "user", "content": "Hello"}]


def chat(**fields: Any) -> dict[str, Any]:
    body = json.dumps({"model": "m", "max_tokens": 10, "messages": HELLO, **fields})
    return to_chat(parse(body.encode(), REQUEST))


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


JSON = json_values()
KINDS = st.sampled_from(["text", "image", "tool_use", "tool_result", "thinking", "redacted_thinking", "document", "x"])
NAMES = st.sampled_from(
    ["text", "source", "id", "name", "input", "content", "tool_use_id", "is_error", "thinking", "caller"]
)
BLOCKS = st.builds(lambda kind, fields: {**fields, "type": kind}, KINDS, st.dictionaries(NAMES, JSON, max_size=4))
MESSAGES = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system"]), "content": st.text() | st.lists(BLOCKS, max_size=4)}
)


@given(
    st.fixed_dictionaries(
        {
            "model": st.text(max_size=10),
            "max_tokens": st.just(10),
            "messages": st.lists(MESSAGES, min_size=1, max_size=3),
        },
        optional=dict.fromkeys(
            sorted(set(MessagesRequest.__annotations__) - {"model", "max_tokens", "messages"}), JSON
        ),
    )
)
def test_any_request_is_a_chat_or_a_named_400(request: dict[str, Any]) -> None:
    try:
        translated = to_chat(parse(json.dumps(request).encode(), REQUEST))
    except ApiError as error:
        assert error.status == 400
        assert error.param or error.code == "invalid_json"
    else:
        assert {message["role"] for message in translated["messages"]} <= {"system", "user", "assistant", "tool"}
