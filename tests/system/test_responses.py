"""`/v1/responses` through a real gateway process: translated to chats, kept for its caller, streamed in order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import httpx
import pytest
from openai.types.responses import Response as ResponseType

from tests.support.chat_script import DIE, HANG, USAGE, ChatScript, completion, delta, words
from tests.support.gateways import TOKEN, Gateway, gateway, write_files
from tests.support.waiting import until

PATH = "/v1/responses"
OTHER = "another-token-0123456789"
TOOL = {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, script: ChatScript) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("gateway")
    write_files(home, script.url)
    with gateway(home, GATEWAY_BEARER_TOKENS=f"{TOKEN},{OTHER}") as running:
        yield running


@pytest.fixture
def chats(script: ChatScript) -> ChatScript:
    script.answers.clear()
    script.seen.clear()
    return script


def ask(served: Gateway, given: Any = "Hi", **fields: Any) -> httpx.Response:
    return served.client.post(PATH, json={"model": "fast", "input": given, **fields})


def answer(served: Gateway, given: Any = "Hi", **fields: Any) -> dict[str, Any]:
    answered = ask(served, given, **fields)
    assert answered.status_code == 200, answered.text
    content: dict[str, Any] = answered.json()
    return content


def stream(served: Gateway, given: Any = "Hi", **fields: Any) -> list[dict[str, Any]]:
    """The events of a stream; each as it must be written, all numbered."""
    answered = ask(served, given, stream=True, **fields)
    assert answered.status_code == 200, answered.text
    assert answered.headers["content-type"] == "text/event-stream"
    blocks = answered.text.split("\n\n")
    assert blocks.pop() == ""
    is_whole = blocks[-1] == "data: [DONE]"
    events = []
    for block in blocks[: -1 if is_whole else None]:
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert is_whole == (events[-1]["type"] != "response.failed")
    return events


def types(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def timeless(response: dict[str, Any]) -> dict[str, Any]:
    """A response without what differs from one to the next."""
    text = json.dumps(response).replace(response["id"].removeprefix("resp_"), "")
    content: dict[str, Any] = json.loads(text)
    return {**content, "created_at": 0, "completed_at": content["completed_at"] and 0}


@pytest.mark.proves(PATH, "model", "input", "store", backend="openai")
def test_a_response_is_whole_and_headers_tell_the_route(served: Gateway, chats: ChatScript) -> None:
    answered = ask(served)
    response = answered.json()
    assert answered.headers["x-model-used"] == "echo"
    assert chats.requests == [{"model": "echo", "messages": [{"role": "user", "content": "Hi"}]}]
    ResponseType.model_validate(
        {
            **response,
            "usage": {
                **response["usage"],
                "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens_details": {"reasoning_tokens": 0},
            },
        },
        strict=True,
    )
    assert response["status"] == "completed"
    assert response["store"] is True
    assert response["model"] == "fast"
    assert response["usage"] == {"input_tokens": 31, "output_tokens": 17, "total_tokens": 48}
    (message,) = response["output"]
    assert (message["type"], message["role"], message["status"]) == ("message", "assistant", "completed")
    assert message["content"] == [{"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}]


@pytest.mark.proves(
    PATH, "instructions", "temperature", "top_p", "max_output_tokens", "reasoning.effort", "text.verbosity", "user",
    "safety_identifier", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "service_tier",
    "metadata", "top_logprobs", "tools", "tool_choice", "parallel_tool_calls", "max_tool_calls", "truncation",
    "include", backend="openai",
)  # fmt: skip
def test_fields_reach_the_chat_and_are_told_again(served: Gateway, chats: ChatScript) -> None:
    fields = {
        "temperature": 0.5,
        "top_p": 0.9,
        "user": "u",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "prompt_cache_options": {"ttl": "30m"},
        "prompt_cache_retention": "24h",
        "parallel_tool_calls": False,
        "top_logprobs": 2,
    }
    own = {"instructions": "Be kind.", "max_output_tokens": 99, "metadata": {"a": "b"}, "max_tool_calls": 3}
    more: dict[str, Any] = {"seed": 7, "service_tier": "default", "truncation": "disabled"}
    response = answer(
        served, "Hi", **fields, **own, **more, tools=[TOOL], tool_choice={"type": "function", "name": "f"},
        reasoning={"effort": "low"}, text={"verbosity": "low"}, include=["message.output_text.logprobs"],
    )  # fmt: skip
    function = {name: TOOL[name] for name in ("name", "description", "parameters", "strict")}
    assert chats.requests[0] == {
        **fields,
        "model": "echo",
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}],
        "max_tokens": 99,
        "seed": 7,
        "service_tier": "default",
        "reasoning_effort": "low",
        "verbosity": "low",
        "logprobs": True,
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
    }
    assert response.items() >= {**fields, **own, "truncation": "disabled", "tools": [TOOL]}.items()
    assert response["text"] == {"verbosity": "low", "format": {"type": "text"}}


def test_what_cannot_be_done_is_refused_by_name(served: Gateway, chats: ChatScript) -> None:
    refused = ask(served, background=True)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "background"), refused.text
    assert not chats.requests


@pytest.mark.proves(PATH, "stream", "stream_options", "stream_options.include_usage", backend="openai")
def test_events_of_a_text_in_their_order(served: Gateway, chats: ChatScript) -> None:
    events = stream(served, stream_options={"include_usage": True})
    assert types(events) == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert events[0]["response"]["status"] == "in_progress"
    assert events[0]["response"]["output"] == []
    assert [event["delta"] for event in events if "delta" in event] == ["Hel", "lo"]
    assert events[6]["text"] == "Hello"
    places = {(event["item_id"], event["output_index"], event["content_index"]) for event in events[3:8]}
    assert places == {(events[2]["item"]["id"], 0, 0)}
    last = events[-1]["response"]
    assert last["usage"] == {"input_tokens": 31, "output_tokens": 17, "total_tokens": 48}
    assert served.client.get(f"{PATH}/{last['id']}").json() == last
    assert timeless(last) == timeless(answer(served))


@pytest.mark.proves(PATH, "previous_response_id", backend="openai")
def test_reasoning_comes_back_to_the_model_with_what_it_led_to(served: Gateway, chats: ChatScript) -> None:
    chats.answers.append(completion({"reasoning_content": "I think.", "content": "So."}))
    whole = answer(served)
    answer(served, "And?", previous_response_id=whole["id"])
    assert chats.requests[-1]["messages"][1] == {
        "role": "assistant",
        "content": "So.",
        "reasoning_content": "I think.",
    }


@pytest.mark.proves(PATH, "max_output_tokens", backend="openai")
@pytest.mark.parametrize(
    ("finish_reason", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")]
)
def test_an_answer_cut_short_is_incomplete(served: Gateway, chats: ChatScript, finish_reason: str, reason: str) -> None:
    chats.answers.append(list(words("Hal", finish_reason=finish_reason)))
    events = stream(served)
    assert events[-1]["type"] == "response.incomplete"
    response = events[-1]["response"]
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": reason})
    assert response["output"][0]["status"] == "incomplete"
    assert response["completed_at"] is None
    assert served.client.get(f"{PATH}/{response['id']}").json() == response


@pytest.mark.proves(PATH, "top_logprobs", "include", backend="openai")
def test_logprobs(served: Gateway, chats: ChatScript) -> None:
    entry = {"token": "Hi", "bytes": [72, 105], "logprob": -0.5}
    content = {"content": [{**entry, "top_logprobs": [entry]}]}
    chats.answers.append([delta({"content": "Hi"}, logprobs=content), delta({}, "stop")])
    events = stream(served, top_logprobs=1)
    told = [{**entry, "top_logprobs": [entry]}]
    assert next(event for event in events if "delta" in event)["logprobs"] == told
    response = events[-1]["response"]
    assert response["output"][0]["content"][0]["logprobs"] == told
    assert response["usage"] is None, "nobody told the usage"


@pytest.mark.proves(PATH, "stream_options.include_obfuscation", backend="openai")
def test_obfuscation_pads_deltas_when_asked(served: Gateway, chats: ChatScript) -> None:
    chats.answers += [list(words("a", "bcd")), list(words("a", "bcd"))]
    deltas = [event for event in stream(served) if "delta" in event]
    assert not any("obfuscation" in event for event in deltas)
    deltas = [event for event in stream(served, stream_options={"include_obfuscation": True}) if "delta" in event]
    assert [len(event["delta"]) + len(event["obfuscation"]) for event in deltas] == [16, 16]


@pytest.mark.proves(PATH, "previous_response_id", "instructions", "store", backend="openai")
def test_a_conversation_goes_on(served: Gateway, chats: ChatScript) -> None:
    chats.answers += [completion({"content": "One."}), completion({"content": "Two."})]
    first = answer(served, "1", instructions="Not carried over.")
    second = answer(served, "2", previous_response_id=first["id"])
    third = answer(served, "3", previous_response_id=second["id"], instructions="New.")
    assert [message["content"] for message in chats.requests[-1]["messages"]] == ["New.", "1", "One.", "2", "Two.", "3"]
    assert third["previous_response_id"] == second["id"]
    page = served.client.get(f"{PATH}/{third['id']}/input_items", params={"order": "asc", "limit": 3}).json()
    assert [item["content"][0]["text"] for item in page["data"]] == ["1", "One.", "2"]
    assert page["has_more"] is True
    assert page["first_id"] == page["data"][0]["id"]
    rest = served.client.get(
        f"{PATH}/{third['id']}/input_items", params={"order": "asc", "after": page["last_id"]}
    ).json()
    assert [item["content"][0]["text"] for item in rest["data"]] == ["Two.", "3"]
    newest = served.client.get(f"{PATH}/{third['id']}/input_items", params={"limit": 1}).json()
    assert newest["data"] == rest["data"][1:]
    assert served.client.get(f"{PATH}/{third['id']}/input_items", params={"after": "nope"}).status_code == 400
    # The second is not needed to go on from the third.
    assert served.client.delete(f"{PATH}/{second['id']}").json() == {
        "id": second["id"],
        "object": "response",
        "deleted": True,
    }
    assert served.client.get(f"{PATH}/{second['id']}").status_code == 404
    assert answer(served, "4", previous_response_id=third["id"])["status"] == "completed"


@pytest.mark.proves(PATH, "previous_response_id", "store", backend="openai", refused=True)
def test_what_is_not_kept_cannot_be_gone_on_with(served: Gateway, chats: ChatScript) -> None:
    gone = answer(served, store=False)
    assert gone["store"] is False
    for response_id in (gone["id"], "resp_nope"):
        refused = ask(served, previous_response_id=response_id)
        assert refused.status_code == 400
        error = refused.json()["error"]
        assert (error["code"], error["param"]) == ("previous_response_not_found", "previous_response_id")
        assert error["message"] == f"Previous response with id '{response_id}' not found."
        assert served.client.get(f"{PATH}/{response_id}").status_code == 404
        assert served.client.get(f"{PATH}/{response_id}/input_items").status_code == 404
        assert served.client.delete(f"{PATH}/{response_id}").status_code == 404


@pytest.mark.proves(PATH, "input", "tools", backend="openai")
def test_a_round_of_tools_by_items_and_by_reference(served: Gateway, chats: ChatScript) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    chats.answers.append(completion({"content": None, "tool_calls": [call]}, "tool_calls"))
    first = answer(served, "Weather?", tools=[TOOL])
    (item,) = first["output"]
    assert (item["type"], item["call_id"], item["arguments"]) == ("function_call", "call_1", '{"a": 1}')
    output = {"type": "function_call_output", "call_id": "call_1", "output": "sunny"}
    expected = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    question = {"role": "user", "content": "Weather?"}
    answer(served, [output], previous_response_id=first["id"])
    answer(served, [question, item, output])
    answer(served, [question, {"type": "item_reference", "id": item["id"]}, output])
    answer(served, [question, {"id": item["id"]}, output])
    assert [request["messages"] for request in chats.requests[1:]] == [expected] * 4


@pytest.mark.proves(PATH, "input", backend="openai", refused=True)
def test_a_reference_to_nothing_is_a_404(served: Gateway, chats: ChatScript) -> None:
    item_id = answer(served, store=False)["output"][0]["id"]
    refused = ask(served, [{"type": "item_reference", "id": item_id}])
    assert (refused.status_code, refused.json()["error"]["param"]) == (404, "input")


def test_the_same_item_sent_again_keeps_pages_apart(served: Gateway, chats: ChatScript) -> None:
    item = {"type": "message", "id": "msg_mine", "role": "user", "content": "Hi"}
    path = f"{PATH}/{answer(served, [item, item, item])['id']}/input_items"
    ids, more = [], {"order": "asc", "limit": "1"}
    for _ in range(3):
        page = served.client.get(path, params=more).json()
        ids += [item["id"] for item in page["data"]]
        more["after"] = page["last_id"]
    assert len(set(ids)) == 3
    assert not page["has_more"]


@pytest.mark.proves(PATH, "input", backend="openai", refused=True)
def test_what_is_referred_to_counts_as_if_it_were_sent(served: Gateway, chats: ChatScript) -> None:
    kept = answer(served, "x" * 100_000)
    path = f"{PATH}/{kept['id']}/input_items"
    (item,) = served.client.get(path).json()["data"]
    refused = ask(served, [{"type": "item_reference", "id": item["id"]}] * 50)
    assert refused.status_code == 400
    assert (refused.json()["error"]["code"], refused.json()["error"]["param"]) == ("conversation_too_long", "input")


def test_another_token_sees_nothing_of_it(served: Gateway, chats: ChatScript) -> None:
    mine = answer(served)
    with httpx.Client(
        base_url=served.client.base_url, headers={"Authorization": f"Bearer {OTHER}"}, trust_env=False
    ) as stranger:
        assert stranger.get(f"{PATH}/{mine['id']}").status_code == 404
        assert stranger.get(f"{PATH}/{mine['id']}/input_items").status_code == 404
        assert stranger.delete(f"{PATH}/{mine['id']}").status_code == 404
        body = {"model": "fast", "input": "Hi", "previous_response_id": mine["id"]}
        assert stranger.post(PATH, json=body).json()["error"]["code"] == "previous_response_not_found"
        body = {"model": "fast", "input": [{"type": "item_reference", "id": mine["output"][0]["id"]}]}
        assert stranger.post(PATH, json=body).status_code == 404
    assert served.client.get(f"{PATH}/{mine['id']}").json() == mine


def test_a_conversation_that_grows_too_long_is_refused(served: Gateway, chats: ChatScript) -> None:
    text = "x" * 900_000
    previous: dict[str, str] = {}
    for _ in range(4):
        previous = {"previous_response_id": answer(served, text, **previous)["id"]}
    refused = ask(served, text, **previous)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "conversation_too_long"
    assert refused.json()["error"]["param"] == "previous_response_id"


@pytest.mark.parametrize("query", ["stream=true", "include=web_search_call.results", "include[]=x"])
def test_a_stored_response_is_given_whole(served: Gateway, chats: ChatScript, query: str) -> None:
    path = f"{PATH}/{answer(served)['id']}"
    refused = served.client.get(f"{path}?{query}")
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == query.split("=")[0].removesuffix("[]")
    assert served.client.get(f"{path}?include[]=message.output_text.logprobs&stream=false").status_code == 200


def test_a_backend_that_refuses_before_the_stream_is_no_stream(served: Gateway, chats: ChatScript) -> None:
    chats.answers.append(404)
    refused = ask(served, stream=True)
    assert (refused.status_code, refused.json()["error"]["message"]) == (404, "no such thing")


@pytest.mark.parametrize(
    "broken",
    [
        [DIE],
        [{"error": {"message": "out of memory", "code": "x"}}],
        [delta({"content": 7})],
        [delta({"tool_calls": "no"})],
    ],
    ids=["dies", "tells of an error", "content is no text", "calls are no list"],
)
def test_a_backend_that_fails_in_the_stream(served: Gateway, chats: ChatScript, broken: list[Any]) -> None:
    chats.answers.append([delta({"content": "Half"}), *broken])
    events = stream(served)
    assert types(events[-2:]) == ["error", "failed"]
    assert events[-2]["code"]
    response = events[-1]["response"]
    assert (response["status"], response["error"]["code"]) == ("failed", "server_error")
    assert response["error"]["message"] == events[-2]["message"]
    assert response["output"][0]["status"] == "incomplete"
    assert response["output"][0]["content"][0]["text"] == "Half"
    assert served.client.get(f"{PATH}/{response['id']}").status_code == 404


def test_a_whole_answer_that_is_none_is_a_502(served: Gateway, chats: ChatScript) -> None:
    chats.answers.append({"object": "chat.completion", "choices": []})
    assert ask(served).status_code == 502


def test_a_backend_that_does_not_stream_is_streamed_from(served: Gateway, chats: ChatScript) -> None:
    chats.answers.append(completion({"content": "Hello"}))
    events = stream(served)
    assert [event["delta"] for event in events if "delta" in event] == ["Hello"]
    assert events[-1]["response"]["usage"]["total_tokens"] == USAGE["total_tokens"]


def test_a_client_that_leaves_ends_the_work_and_leaves_nothing(served: Gateway, chats: ChatScript) -> None:
    chats.answers.append([delta({"content": "Half"}), HANG])
    with served.client.stream("POST", PATH, json={"model": "fast", "input": "Hi", "stream": True}) as answered:
        lines = answered.iter_lines()
        assert next(lines) == "event: response.created"
        data = next(lines)
    chats.wait_for(1, left=True)
    response_id = json.loads(data.removeprefix("data: "))["response"]["id"]
    entry = served.log_entry(lambda entry: entry.get("abort_reason") == "client_disconnected")
    assert entry["path"] == PATH
    assert served.client.get(f"{PATH}/{response_id}").status_code == 404


def test_numbers_of_any_size_survive_the_store(served: Gateway, chats: ChatScript) -> None:
    big = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 10**30}}}
    response = answer(served, tools=[{**TOOL, "parameters": big}])
    assert response["tools"][0]["parameters"] == big
    assert chats.requests[-1]["tools"][0]["function"]["parameters"] == big
    stored = served.client.get(f"{PATH}/{response['id']}")
    assert stored.json()["tools"][0]["parameters"] == big
    assert answer(served, previous_response_id=response["id"])["status"] == "completed"


def test_kept_across_a_restart_until_it_expires(tmp_path: Path, chats: ChatScript) -> None:
    write_files(tmp_path, chats.url)
    with gateway(tmp_path) as running:
        kept = answer(running)
    with gateway(tmp_path, RESPONSES_TTL_SEC="1") as running:
        assert running.client.get(f"{PATH}/{kept['id']}").json() == kept
        short = answer(running)
        until(lambda: running.client.get(f"{PATH}/{short['id']}").status_code != 200, "it does not expire")
    with gateway(tmp_path) as running:  # a start sweeps
        until(lambda: ids(tmp_path) == {kept["id"]}, "it is not swept")


def ids(home: Path) -> set[str]:
    connection = apsw.Connection(str(home / "data/gateway.sqlite"), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return {row[0] for row in connection.execute("SELECT id FROM responses")}
    finally:
        connection.close()


def test_beyond_its_size_the_oldest_go(tmp_path: Path, chats: ChatScript) -> None:
    write_files(tmp_path, chats.url)
    with gateway(tmp_path, RESPONSES_MAX_BYTES="25000") as running:
        kept = [answer(running, "y" * 6_000)["id"] for _ in range(5)]
        statuses = [running.client.get(f"{PATH}/{response_id}").status_code for response_id in kept]
        assert statuses == [404, 404, 200, 200, 200]
        assert answer(running, "y" * 30_000)["store"] is False
        assert running.client.get(f"{PATH}/{kept[-1]}").status_code == 200


def test_a_store_that_cannot_write_loses_no_answer(tmp_path: Path, chats: ChatScript) -> None:
    write_files(tmp_path, chats.url)
    with gateway(tmp_path) as running:
        kept = answer(running)
        broken = apsw.Connection(str(tmp_path / "data/gateway.sqlite"))
        broken.execute("ALTER TABLE responses RENAME TO elsewhere")
        broken.close()
        response = answer(running)
        assert response["store"] is False
        assert response["output"][0]["content"][0]["text"] == "Hello"
        assert stream(running)[-1]["response"]["store"] is False
        for refused in (running.client.get(f"{PATH}/{kept['id']}"), running.client.delete(f"{PATH}/{kept['id']}")):
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_unavailable")
        refused = ask(running, previous_response_id=kept["id"])
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_unavailable")
