"""`/v1/responses` through a real gateway process: told again, kept for its caller, continued, ended well."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import httpx
import pytest

from tests.support.chat_script import DIE, HANG, ChatScript, completion, delta, words
from tests.support.gateways import TOKEN, Gateway, gateway, write_files
from tests.support.waiting import until

PATH = "/v1/responses"
OTHER = "another-token-0123456789"
TOOL = {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}
BIG_TOOL = {**TOOL, "parameters": {"type": "object", "properties": {"n": {"type": "integer", "maximum": 10**30}}}}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, script: ChatScript) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("gateway")
    write_files(home, script.url)
    with gateway(home, GATEWAY_BEARER_TOKENS=f"{TOKEN},{OTHER}", MAX_UPLOAD_BYTES="4000000") as running:
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


def stored(served: Gateway, response: dict[str, Any], more: str = "", **query: Any) -> httpx.Response:
    return served.client.get(f"{PATH}/{response['id']}{more}", params=query)


def refusal(answered: httpx.Response, status: int = 400) -> tuple[str, str]:
    """The code and the field that an error names."""
    assert answered.status_code == status, answered.text
    error = answered.json()["error"]
    return error["code"], error["param"]


def stream(served: Gateway, given: Any = "Hi", **fields: Any) -> list[dict[str, Any]]:
    """The events of a stream; all numbered, and `[DONE]` behind those of one that has not failed."""
    answered = ask(served, given, stream=True, **fields)
    assert answered.status_code == 200, answered.text
    assert answered.headers["content-type"] == "text/event-stream"
    blocks = answered.text.removesuffix("\n\n").split("\n\n")
    is_whole = blocks[-1] == "data: [DONE]"
    events = [json.loads(block.partition("\ndata: ")[2]) for block in blocks[: -1 if is_whole else None]]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert is_whole == (events[-1]["type"] != "response.failed")
    return events


def timeless(response: dict[str, Any]) -> dict[str, Any]:
    """A response without what differs from one to the next."""
    text = json.dumps(response).replace(response["id"].removeprefix("resp_"), "")
    content: dict[str, Any] = json.loads(text)
    return {**content, "created_at": 0, "completed_at": content["completed_at"] and 0}


@pytest.mark.proves(PATH, "model", "input", "instructions", "store", backend="openai")
def test_a_response_tells_the_fields_of_its_request_again(served: Gateway, chats: ChatScript) -> None:
    chat = {
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
    answered = ask(served, **chat, **own, tools=[TOOL], text={"verbosity": "low"}, reasoning={"effort": "low"})
    assert answered.headers["x-model-used"] == "echo"
    function = {name: value for name, value in TOOL.items() if name != "type"}
    assert chats.requests == [
        {
            **chat,
            "model": "echo",
            "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}],
            "max_tokens": 99,
            "logprobs": True,
            "verbosity": "low",
            "reasoning_effort": "low",
            "tools": [{"type": "function", "function": function}],
        }
    ]
    response = answered.json()
    assert response.items() >= {**chat, **own, "model": "fast", "store": True, "tools": [TOOL]}.items()
    assert response["text"] == {"verbosity": "low", "format": {"type": "text"}}
    assert response["reasoning"] == {"effort": "low", "summary": None}


@pytest.mark.proves(PATH, "stream", "stream_options", "stream_options.include_usage", backend="openai")
@pytest.mark.parametrize("finish_reason", ["stop", "length"])
def test_a_stream_ends_with_the_response_that_is_stored(served: Gateway, chats: ChatScript, finish_reason: str) -> None:
    said = completion({"content": "Hello"}, finish_reason)
    chats.answers += [list(words("Hel", "lo", finish_reason=finish_reason)), said]
    last = stream(served, stream_options={"include_usage": True})[-1]
    assert last["type"] == f"response.{'completed' if finish_reason == 'stop' else 'incomplete'}"
    assert stored(served, last["response"]).json() == last["response"]
    assert timeless(last["response"]) == timeless(answer(served))


@pytest.mark.proves(PATH, "top_logprobs", "include", backend="openai")
def test_logprobs(served: Gateway, chats: ChatScript) -> None:
    entry = {"token": "Hi", "bytes": [72, 105], "logprob": -0.5}
    told = [{**entry, "top_logprobs": [entry]}]
    chats.answers.append([delta({"content": "Hi"}, logprobs={"content": told}), delta({}, "stop")])
    events = stream(served, top_logprobs=1)
    assert next(event for event in events if "delta" in event)["logprobs"] == told
    assert events[-1]["response"]["output"][0]["content"][0]["logprobs"] == told


@pytest.mark.proves(PATH, "stream_options.include_obfuscation", backend="openai")
def test_obfuscation_pads_deltas_when_asked(served: Gateway, chats: ChatScript) -> None:
    chats.answers += [list(words("a", "bcd")), list(words("a", "bcd"))]
    assert not any("obfuscation" in event for event in stream(served))
    deltas = [event for event in stream(served, stream_options={"include_obfuscation": True}) if "delta" in event]
    assert [len(event["delta"]) + len(event["obfuscation"]) for event in deltas] == [16, 16]


@pytest.mark.proves(PATH, "previous_response_id", "instructions", "store", backend="openai")
def test_a_conversation_goes_on(served: Gateway, chats: ChatScript) -> None:
    chats.answers += [completion({"content": "One."}), completion({"content": "Two.", "reasoning_content": "Hm."})]
    first = answer(served, "1", instructions="Not carried over.")
    second = answer(served, "2", previous_response_id=first["id"])
    third = answer(served, "3", previous_response_id=second["id"], instructions="New.")
    assert [(message["content"], message.get("reasoning_content")) for message in chats.requests[-1]["messages"]] == [
        *(("New.", None), ("1", None), ("One.", None), ("2", None), ("Two.", "Hm."), ("3", None))
    ]
    assert third["previous_response_id"] == second["id"]
    items = stored(served, third, "/input_items", order="asc").json()["data"]
    assert [item["content"][0]["text"] for item in items] == ["1", "One.", "2", "Hm.", "Two.", "3"]
    # The second is not needed to go on from the third.
    deleted = {"id": second["id"], "object": "response", "deleted": True}
    assert served.client.delete(f"{PATH}/{second['id']}").json() == deleted
    assert stored(served, second).status_code == 404
    assert answer(served, "4", previous_response_id=third["id"])["status"] == "completed"


def test_input_items_come_in_pages(served: Gateway, chats: ChatScript) -> None:
    """Also where the same item was sent again."""
    item = {"type": "message", "id": "msg_mine", "role": "user"}
    response = answer(served, [{**item, "content": text} for text in "abc"])

    def page(**query: Any) -> tuple[str, dict[str, Any]]:
        told = stored(served, response, "/input_items", **query).json()
        ids = [item["id"] for item in told["data"]]
        assert (told["first_id"], told["last_id"], len(set(ids))) == (ids[0], ids[-1], len(ids))
        return "".join(item["content"][0]["text"] for item in told["data"]), told

    texts, first = page(order="asc", limit=2)
    assert (texts, first["has_more"]) == ("ab", True)
    texts, rest = page(order="asc", after=first["last_id"])
    assert (texts, rest["has_more"]) == ("c", False)
    assert [page()[0], page(limit=1)[0]] == ["cba", "c"]
    assert stored(served, response, "/input_items", after="nope").status_code == 400


@pytest.mark.proves(PATH, "previous_response_id", "store", "input", backend="openai", refused=True)
def test_what_is_not_kept_cannot_be_gone_on_with(served: Gateway, chats: ChatScript) -> None:
    gone = answer(served, store=False)
    assert gone["store"] is False
    assert refusal(ask(served, [{"type": "item_reference", "id": gone["output"][0]["id"]}]), 404)[1] == "input"
    for response in (gone, {"id": "resp_nope"}):
        refused = ask(served, previous_response_id=response["id"])
        assert refusal(refused) == ("previous_response_not_found", "previous_response_id")
        assert refused.json()["error"]["message"] == f"Previous response with id '{response['id']}' not found."
        assert stored(served, response).status_code == 404
        assert stored(served, response, "/input_items").status_code == 404
        assert served.client.delete(f"{PATH}/{response['id']}").status_code == 404


@pytest.mark.proves(PATH, "input", "tools", backend="openai")
def test_a_round_of_tools_by_items_and_by_reference(served: Gateway, chats: ChatScript) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    chats.answers.append(completion({"content": None, "tool_calls": [call]}, "tool_calls"))
    question = {"role": "user", "content": "Weather?"}
    output = {"type": "function_call_output", "call_id": "call_1", "output": "sunny"}
    first = answer(served, [question], tools=[TOOL])
    (item,) = first["output"]
    answer(served, [output], previous_response_id=first["id"])
    for way in (item, {"type": "item_reference", "id": item["id"]}, {"id": item["id"]}):
        answer(served, [question, way, output])
    expected = [
        question,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    assert [request["messages"] for request in chats.requests[1:]] == [expected] * 4


@pytest.mark.proves(PATH, "input", backend="openai", refused=True)
def test_a_conversation_that_grows_too_long_is_refused(served: Gateway, chats: ChatScript) -> None:
    """What is referred to counts as if it were sent."""
    text = "x" * 900_000
    previous: dict[str, str] = {}
    for _ in range(4):
        previous = {"previous_response_id": (kept := answer(served, text, **previous))["id"]}
    newest = stored(served, kept, "/input_items", limit=1).json()["data"][0]
    references = [{"type": "item_reference", "id": newest["id"]}] * 5
    assert refusal(ask(served, references)) == ("conversation_too_long", "input")
    assert refusal(ask(served, text, **previous)) == ("conversation_too_long", "previous_response_id")


def test_another_token_sees_nothing_of_it(served: Gateway, chats: ChatScript) -> None:
    mine = answer(served)
    stranger = {"Authorization": f"Bearer {OTHER}"}
    for method, more in (("GET", ""), ("GET", "/input_items"), ("DELETE", "")):
        path = f"{PATH}/{mine['id']}{more}"
        assert served.client.request(method, path, headers=stranger).status_code == 404
    reference = [{"type": "item_reference", "id": mine["output"][0]["id"]}]
    for status, fields in ((400, {"previous_response_id": mine["id"]}), (404, {"input": reference})):
        body = {"model": "fast", "input": "Hi", **fields}
        assert served.client.post(PATH, json=body, headers=stranger).status_code == status
    assert stored(served, mine).json() == mine


@pytest.mark.parametrize("query", ["stream=true", "include=web_search_call.results", "include[]=x"])
def test_a_stored_response_is_given_whole(served: Gateway, chats: ChatScript, query: str) -> None:
    path = f"{PATH}/{answer(served)['id']}"
    assert refusal(served.client.get(f"{path}?{query}"))[1] == query.split("=")[0].removesuffix("[]")
    assert served.client.get(f"{path}?include[]=message.output_text.logprobs&stream=false").status_code == 200


@pytest.mark.parametrize("broken", [DIE, {"error": {"message": "out of memory", "code": "x"}}], ids=str)
def test_a_backend_that_fails_in_the_stream(served: Gateway, chats: ChatScript, broken: Any) -> None:
    chats.answers.append([delta({"content": "Half"}), broken])
    *_, error, last = stream(served)
    response = last["response"]
    assert [error["type"], last["type"], response["status"]] == ["error", "response.failed", "failed"]
    assert error["code"]
    assert response["error"] == {"code": "server_error", "message": error["message"]}
    assert response["output"][0]["status"] == "incomplete"
    assert response["output"][0]["content"][0]["text"] == "Half"
    assert stored(served, response).status_code == 404


def test_a_client_that_leaves_ends_the_work_and_leaves_nothing(served: Gateway, chats: ChatScript) -> None:
    chats.answers.append([delta({"content": "Half"}), HANG])
    with served.client.stream("POST", PATH, json={"model": "fast", "input": "Hi", "stream": True}) as answered:
        lines = answered.iter_lines()
        assert next(lines) == "event: response.created"
        response = json.loads(next(lines).removeprefix("data: "))["response"]
    chats.wait_for(1, left=True)
    assert served.log_entry(lambda entry: entry.get("abort_reason") == "client_disconnected")["path"] == PATH
    assert stored(served, response).status_code == 404


def test_numbers_of_any_size_survive_the_store(served: Gateway, chats: ChatScript) -> None:
    response = answer(served, tools=[BIG_TOOL])
    assert response["tools"] == stored(served, response).json()["tools"] == [BIG_TOOL]
    assert chats.requests[-1]["tools"][0]["function"]["parameters"] == BIG_TOOL["parameters"]
    assert answer(served, previous_response_id=response["id"])["status"] == "completed"


def test_a_store_is_bounded_and_outlives_a_restart(tmp_path: Path, chats: ChatScript) -> None:
    write_files(tmp_path, chats.url)
    with gateway(tmp_path, RESPONSES_MAX_BYTES="25000") as running:
        kept = [answer(running, "y" * 6_000) for _ in range(5)]
        assert [stored(running, response).status_code for response in kept] == [404, 404, 200, 200, 200]
        assert answer(running, "y" * 30_000)["store"] is False
    with gateway(tmp_path, RESPONSES_TTL_SEC="1") as running:
        assert stored(running, kept[-1]).json() == kept[-1]
        short = answer(running)
        until(lambda: stored(running, short).status_code == 404, "it does not expire")


def test_a_store_that_cannot_write_loses_no_answer(served: Gateway, chats: ChatScript) -> None:
    kept = answer(served)
    database = apsw.Connection(str(served.home / "data/gateway.sqlite"))
    database.execute("ALTER TABLE responses RENAME TO elsewhere")
    try:
        response = answer(served)
        assert (response["store"], response["output"][0]["content"][0]["text"]) == (False, "Hello")
        assert stream(served)[-1]["response"]["store"] is False
        for refused in (
            stored(served, kept),
            served.client.delete(f"{PATH}/{kept['id']}"),
            ask(served, previous_response_id=kept["id"]),
        ):
            assert refusal(refused, 503)[0] == "storage_unavailable"
    finally:
        database.execute("ALTER TABLE elsewhere RENAME TO responses")
        database.close()
