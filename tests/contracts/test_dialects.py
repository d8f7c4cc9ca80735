"""Each dialect with golden turns: a request in, a chat out; a chat's answer in, the dialect's answer and events out.

`dialects/turns.json` has a model's turns, `dialects/<dialect>.json` the dialect's requests and answers. After a change
`python -m tests.contracts.test_dialects` writes what the translators make now; then read the diff.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from anthropic.types import Message, RawMessageStreamEvent
from gateway.dialects.messages.answer import Facts, MessageStream, message
from gateway.dialects.messages.request import MessagesRequest, prefill, shows_thinking
from gateway.dialects.messages.request import to_chat as message_to_chat
from gateway.dialects.responses.answer import ResponseBuilder, begin, make_ids
from gateway.dialects.responses.chat import to_chat as response_to_chat
from gateway.dialects.responses.conversation import REQUEST
from gateway.dialects.responses.items import read_items
from gateway.dialects.responses.request import check
from gateway.dialects.responses.tools import Tools
from gateway.errors import ApiError
from gateway.web.endpoint import parse
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from tests.support.chat_script import completion, delta, usage_chunk
from tests.support.pieces import ended

GOLDEN = Path(__file__).parent / "dialects"
Json = dict[str, Any]
SEALED = {"sealed": "Where?"}


class Messages:
    """Anthropic's messages."""

    route = "/v1/messages"
    plain: ClassVar[Json] = {"model": "m", "max_tokens": 10, "messages": [{"role": "user", "content": "Hello"}]}
    whole, event = TypeAdapter[Any](Message), TypeAdapter[Any](RawMessageStreamEvent)
    requests = TypeAdapter(MessagesRequest)

    def chat(self, request: bytes) -> Json:
        ignored: set[str] = set()
        chat = message_to_chat(parse(request, self.requests), ignored)
        return chat | {"ignored": sorted(ignored)} if ignored else chat

    def answers(self, request: Json, chunks: list[Json], whole: Json) -> tuple[bytes, Json]:
        stops, words = request.get("stop_sequences", ()), prefill(self.chat(json.dumps(request).encode()))
        facts = Facts("msg_1", "m", stops, shows_thinking(request), words)
        stream = MessageStream(facts)
        events = b"".join(map(stream.feed, chunks)) + stream.end()
        told: Json = json.loads(message(whole, facts))
        return events, told


class Responses:
    """OpenAI's responses."""

    route = "/v1/responses"
    plain: ClassVar[Json] = {"model": "m", "input": "Hello"}
    whole, event = TypeAdapter[Any](Response), TypeAdapter[Any](ResponseStreamEvent)
    id = "resp_0"

    def chat(self, request: bytes) -> Json:
        checked, ignored = parse(request, REQUEST), set[str]()
        check(checked, ignored)
        tools = Tools(checked.get("tools") or (), ignored)
        items, _ = ended(read_items(checked, make_ids(self.id), ignored))
        chat: Json = ended(response_to_chat(checked, items, tools, SEALED.get))[0]
        return chat | {"ignored": sorted(ignored)} if ignored else chat

    def answers(self, request: Json, chunks: list[Json], whole: Json) -> tuple[bytes, Json]:
        stream, told = self.builder(request), self.builder(request)
        events = stream.start() + b"".join(map(stream.feed, chunks)) + stream.end() + stream.finish()
        told.feed_completion(whole)
        told.end()
        return events.removesuffix(b"data: [DONE]\n\n"), told.response

    def builder(self, request: Json) -> ResponseBuilder:
        tools = Tools(request.get("tools") or (), set())
        seal = (lambda _: "sealed") if request.get("include") else None
        return ResponseBuilder(request, begin(request, self.id, tools), tools, make_ids(self.id), 1_000_000, seal)


DIALECTS: Mapping[str, Any] = {"messages": Messages(), "responses": Responses()}


def timeless(response: Json) -> Json:
    return response | {"created_at": 0, "completed_at": response["completed_at"] and 0}


def golden(name: str) -> Json:
    content: Json = json.loads((GOLDEN / f"{name}.json").read_text())
    return content


def cases(part: str) -> Iterator[Any]:
    """Each case of this part of the golden files; docs/compatibility.md lists the fields that a case `proves`."""
    for dialect, adapter in DIALECTS.items():
        for case in golden(dialect)[part]:
            name, fields = case.get("name") or case.get("param", "new"), case.get("proves", ())
            mark = pytest.mark.proves(adapter.route, *fields, backend="openai", refused=part == "refused")
            yield pytest.param(adapter, case, id=f"{dialect}: {name}", marks=[mark] if fields else ())


def asked(dialect: Any, case: Json) -> Json:
    """What the case's request adds to the plainest chat; null where it takes a field away."""
    plain = dialect.chat(json.dumps(dialect.plain).encode())
    chat = dialect.chat(json.dumps({**dialect.plain, **case["request"]}).encode())
    return {name: chat.get(name) for name in {**chat, **plain} if chat.get(name) != plain.get(name)}


def refusal(dialect: Any, case: Json) -> Json:
    with pytest.raises(ApiError) as error:
        dialect.chat(json.dumps({**dialect.plain, **case["request"]}).encode())
    assert error.value.status == 400
    return {"param": error.value.param, "code": error.value.code}


def answered(dialect: Any, case: Json) -> Json:
    turn = golden("turns")[case["turn"]]
    last = delta({}, turn["finish_reason"], **turn.get("choice", {}))
    chunks = [*map(delta, turn["deltas"]), last, usage_chunk(turn["usage"])]
    whole = completion(turn["message"], turn["finish_reason"], **turn.get("choice", {})) | {"usage": turn["usage"]}
    stream, told = dialect.answers({**dialect.plain, **case.get("request", {})}, chunks, whole)
    events = []
    for event in stream.decode().removesuffix("\n\n").split("\n\n"):
        name, data = event.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    if told["usage"] is None or None not in told["usage"].values():  # the SDKs' models require usage of messages
        dialect.whole.validate_python(told, strict=True)
        for event in events:
            if event["type"] != "ping":
                dialect.event.validate_python(event, strict=True)
    if "response" in events[-1]:
        first, last = timeless(events[0]["response"]), timeless(events[-1]["response"])
        assert last == timeless(told)
        told = {name: value for name, value in last.items() if value != first[name]}
        events = [
            event | {"response": event["response"]["status"]} if "response" in event else event for event in events
        ]
    return {"whole": told, "events": events}


@pytest.mark.parametrize(("dialect", "case"), [*cases("requests")])
def test_requests(dialect: Any, case: Json) -> None:
    assert asked(dialect, case) == case["chat"]


@pytest.mark.parametrize(("dialect", "case"), [*cases("refused")])
def test_refusals(dialect: Any, case: Json) -> None:
    assert refusal(dialect, case) == {"param": case["param"], "code": case["code"]}


@pytest.mark.parametrize(("dialect", "case"), [*cases("answers")])
def test_answers(dialect: Any, case: Json) -> None:
    assert answered(dialect, case) == {"whole": case["whole"], "events": case["events"]}


def written(case: Json) -> str:
    """A case as JSON, a line for each field and each event."""
    fields = [f'"{name}": {json.dumps(value, ensure_ascii=False)}' for name, value in case.items() if name != "events"]
    if "events" in case:
        events = ",\n      ".join(json.dumps(event, ensure_ascii=False) for event in case["events"])
        fields.append(f'"events": [\n      {events}\n    ]')
    return "{\n    " + ",\n    ".join(fields) + "\n  }"


def rewrite() -> None:
    for name, dialect in DIALECTS.items():
        content = golden(name)
        for case in content["requests"]:
            case["chat"] = asked(dialect, case)
        for part, run in (("refused", refusal), ("answers", answered)):
            content[part] = [case | run(dialect, case) for case in content[part]]
        parts = [f'"{part}": [\n  ' + ",\n  ".join(map(written, found)) + "\n]" for part, found in content.items()]
        (GOLDEN / f"{name}.json").write_text("{\n" + ",\n".join(parts) + "\n}\n")


if __name__ == "__main__":
    rewrite()
