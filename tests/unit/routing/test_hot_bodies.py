"""Bodies of the hot routes: what is checked, what is changed, and that the OpenAPI page says the same."""

import asyncio
import gc
import json
from contextlib import suppress
from typing import Any

import pytest
from gateway.backends.answers import as_chunk
from gateway.dialects.chat import CHAT_REQUEST as CHAT
from gateway.dialects.chat import COMPLETION_REQUEST as COMPLETIONS
from gateway.dialects.chat import EMBEDDING_REQUEST as EMBEDDINGS
from gateway.errors import ApiError
from gateway.routing.aliases import Alias
from gateway.routing.body import Rename, ask_for_usage
from gateway.routing.caps import within_limits
from gateway.web.endpoint import parse
from hypothesis import given
from hypothesis import strategies as st

from tests.support.pieces import json_values

keys = st.one_of(st.sampled_from(["model", "messages", "mod\u0065l"]), st.text(max_size=6))
values = json_values(keys, is_finite=True)


@given(st.dictionaries(keys, values, max_size=4), st.text(max_size=8), st.booleans())
def test_only_the_model_is_changed(fields: dict[str, Any], model: str, ascii_only: bool) -> None:
    body = json.dumps(fields, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    try:
        changed = json.loads(Rename(was if isinstance(was := fields.get("model"), str) else "", model).apply(body))
    except UnicodeDecodeError:
        return  # not UTF-8, which `parse` refuses before
    assert changed == {**fields, "model": model}


@pytest.mark.parametrize(
    ("body", "changed"),
    [
        (
            b'{ "model" : "a", "x": 1.0, "n": 1180591620717411303424 }',
            b'{"model":"b","x":1.0,"n":1180591620717411303424}',
        ),
        (b'{ "x": 1e5, "model": "a" ,"y":[ ]}', b'{ "x": 1e5, "model": "b" ,"y":[ ]}'),
        (b'{"model":"a\\"b","x":1e5}', b'{"model":"b","x":1e5}'),
        (b'{"x":{"model":"a"},"model":"a"}', b'{"x":{"model":"a"},"model":"b"}'),
        (b'{"\\u006dodel":"a","x":{"model":"a"}}', b'{"model":"b","x":{"model":"a"}}'),
        (b'{"n":1180591620717411303424}', b'{"n":1180591620717411303424,"model":"b"}'),
    ],
)
def test_other_bytes_stay_as_they_came(body: bytes, changed: bytes) -> None:
    assert Rename(json.loads(body).get("model", ""), "b").apply(body) == changed


@pytest.mark.parametrize(
    ("route", "body", "param"),
    [
        (CHAT, {}, "messages"),
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": [{"content": "x"}]}, "messages.0.role"),
        (CHAT, {"messages": "hello"}, "messages"),
        (CHAT, {"messages": [{"role": "user"}], "stream": "yes"}, "stream"),
        (CHAT, {"messages": [{"role": "user"}], "temperature": "hot"}, "temperature"),
        (CHAT, {"messages": [{"role": "user"}], "model": 5}, "model"),
        (COMPLETIONS, {"model": "x"}, "prompt"),
        (EMBEDDINGS, {"input": 5}, "input"),
        (EMBEDDINGS, {"input": "x", "encoding_format": "hex"}, "encoding_format"),
    ],
)
def test_wrong_field_is_named(route: Any, body: Any, param: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse(json.dumps(body).encode(), route)
    assert caught.value.status == 400
    assert caught.value.param == param
    assert param in caught.value.message


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"messages": NaN}', b"\xff", b"[" * 5000, b'"\\ud800"'])
def test_anything_but_an_object_is_a_400(body: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        parse(body, CHAT)
    assert caught.value.status == 400


def test_unknown_fields_and_null_are_taken() -> None:
    body = {"messages": [{"role": "user", "content": None, "x": 1}], "stream": None, "new_field": {"a": [1]}}
    assert parse(json.dumps(body).encode(), CHAT) == body


@given(st.dictionaries(keys, values, max_size=4))
def test_usage_is_asked_for_and_nothing_else_is_changed(fields: dict[str, Any]) -> None:
    fields = {**fields, "messages": []}
    fields.pop("stream_options", None)
    body = json.dumps(fields, ensure_ascii=True).encode()
    assert json.loads(ask_for_usage(body, fields)) == {**fields, "stream_options": {"include_usage": True}}


def test_other_stream_options_are_kept() -> None:
    request = {"stream_options": {"include_usage": False, "include_obfuscation": False}, "n": 1}
    asked = json.loads(ask_for_usage(json.dumps(request).encode(), request))
    assert asked == {"stream_options": {"include_usage": True, "include_obfuscation": False}, "n": 1}


@pytest.mark.parametrize(
    ("alias", "request_fields", "changes"),
    [
        (Alias("c", "m", max_tokens_cap=10), {"max_tokens": 11}, {"max_tokens": 10}),
        (Alias("c", "m", max_tokens_cap=10), {"max_tokens": 10}, {}),
        (Alias("c", "m", max_tokens_cap=10), {"max_tokens": 0}, {"max_tokens": 10}),
        (Alias("c", "m", max_tokens_cap=10), {"max_completion_tokens": 99}, {"max_completion_tokens": 10}),
        (Alias("c", "m", max_tokens_cap=10), {}, {"max_tokens": 10}),
        (Alias("c", "m", max_tokens_cap=10), {"max_tokens": None}, {"max_tokens": 10}),
        (Alias("c", "m", max_tokens_cap=10), {"max_tokens": -1}, {"max_tokens": 10}),
        (Alias("c", "m", temperature_cap=0.5), {"temperature": 0.7}, {"temperature": 0.5}),
        (Alias("c", "m", temperature_cap=0.5), {"temperature": 0.2}, {}),
        (Alias("c", "m", temperature_cap=0.5), {}, {}),
        (Alias("c", "m", tools=False), {"tools": []}, {}),
        (Alias("c", "m", tools=True), {"tools": [{}]}, {}),
    ],
)
def test_caps_of_an_alias(alias: Alias, request_fields: dict[str, Any], changes: dict[str, Any]) -> None:
    assert within_limits(alias, request_fields) == changes


def test_a_whole_answer_as_one_chunk_numbers_its_tool_calls() -> None:
    calls = [{"id": name, "type": "function", "function": {"name": name, "arguments": "{}"}} for name in "ab"]
    message = {"role": "assistant", "content": None, "tool_calls": calls}
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls"}
    chunk = as_chunk({"id": "c", "object": "chat.completion", "choices": [choice]})
    assert chunk["object"] == "chat.completion.chunk"
    (choice,) = chunk["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["delta"] == {**message, "tool_calls": [{"index": n, **call} for n, call in enumerate(calls)]}


@pytest.mark.parametrize(
    ("alias", "has_limits"),
    [
        (Alias("c", "m"), False),
        (Alias("c", "m", context=9, tools=True), False),
        (Alias("c", "m", tools=False), True),
        (Alias("c", "m", max_tokens_cap=1), True),
        (Alias("c", "m", temperature_cap=0.0), True),
    ],
)
def test_only_an_alias_with_limits_is_looked_at(alias: Alias, has_limits: bool) -> None:
    assert alias.limits is has_limits


def test_alias_without_tools_refuses_them_by_its_name() -> None:
    with pytest.raises(ApiError) as caught:
        within_limits(Alias("c", "m", tools=False), {"model": "fast", "tools": [{}]})
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, "tools", "tools_not_allowed")
    assert caught.value.message == "tools not allowed for model alias 'fast'"


@pytest.mark.parametrize("body", [b'{"model": "x", "messages": [%b{"role": "user"}]}', b"[%b1]"], ids=["good", "bad"])
def test_the_collector_rests_for_one_turn_after_a_large_body(body: bytes) -> None:
    """And never for longer, also where the body is refused."""
    large = body % (b'{"role": "user"},' * 10_000)

    async def test() -> tuple[bool, bool]:
        with suppress(ApiError):
            parse(large, CHAT)
        before = gc.isenabled()
        await asyncio.sleep(0)
        return before, gc.isenabled()

    assert asyncio.run(test()) == (False, True)
    with suppress(ApiError):
        parse(large, CHAT)  # without a loop nothing comes later
    assert gc.isenabled()
