"""One event of the backend is one of the client, byte for byte, however the network cut it on its way.

The events have the shapes of recorded ones (recorded/), with texts and decorations that are hard to carry.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.faces.ollama import go_json
from tests.support.gateways import Gateway, gateway, write_files
from tests.support.ollama_lines import ndjson, recorded_shapes
from tests.support.sampling import SEED, cases
from tests.support.wire import EVENTS, NDJSON, Script, Wire, by_ollama, head

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RECORDED = {path.stem: path.read_bytes() for path in sorted(Path(__file__).with_name("recorded").glob("*.sse"))}
WORDS = [
    *("Hello", " naïve", " Zürich", "🌍", "👩‍👩‍👧", "\u2028", "\n\n", "\r\n", "\\", '"', "\x7f", "", " "),
    *(
        '"usage":{"prompt_tokens":1}',
        '{"error":"no"}',
        "data: [DONE]",
        "\n\ndata: [DONE]\n\n",
        "[DONE]",
        ": no comment",
    ),
]
STREAMS = cases(4, full=40)
EVENTS_A_STREAM = 400


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, server: Wire) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("fidelity")
    write_files(home, server.url, {"native@here": by_ollama(server)})
    with gateway(home) as running:
        yield running


class Shapes:
    """Long streams of a recorded one's shape."""

    def __init__(self, recorded: bytes, chance: random.Random) -> None:
        self.events = [event + b"\n\n" for event in recorded.split(b"\n\n") if event]
        self.chance = chance
        # As the server writes: llama.cpp compact and in UTF-8, Python with blanks and in ASCII.
        self.is_compact = b'":"' in recorded

    def stream(self, length: int) -> list[bytes]:
        """The events: the first ones, many from the middle, the last ones."""
        begin = next(place for place, event in enumerate(self.events) if event.startswith(b"data: ")) + 1
        first, middle, last = self.events[:begin], self.events[begin:-3], self.events[-3:]
        chosen = self.chance.choices(middle or first[-1:], k=length)
        return [*first, *(self.decorated(self.with_words(event)) for event in chosen), *last]

    def with_words(self, event: bytes) -> bytes:
        content = json.loads(event.removeprefix(b"data: ")) if event.startswith(b"data: {") else None
        if content is None:
            return event
        for choice in content["choices"]:
            place = choice.get("delta", choice)
            for name in ("content", "text", "reasoning_content"):
                if isinstance(place.get(name), str):
                    place[name] = self.chance.choice(WORDS)
            for call in place.get("tool_calls", ()):
                call["function"]["arguments"] = self.chance.choice(WORDS)
        return b"data: " + self.dump(content) + b"\n\n"

    def dump(self, content: Any, indent: int | None = None) -> bytes:
        separators = (",", ":") if self.is_compact and indent is None else None
        return json.dumps(content, separators=separators, ensure_ascii=not self.is_compact, indent=indent).encode()

    def decorated(self, event: bytes) -> bytes:
        """With what else the format allows, now and then."""
        kind = self.chance.randrange(40)
        if kind == 0:
            return b": alive\n\n" + event
        if kind == 1:
            return b"event: message\nid: 7\nretry: 100\n" + event
        if kind == 2 and event.startswith(b"data: {"):
            lines = self.dump(json.loads(event.removeprefix(b"data: ")), indent=1).split(b"\n")
            return b"".join(b"data: " + line + b"\n" for line in lines) + b"\n"
        return event

    def pieces(self, data: bytes) -> list[bytes]:
        """Cut anywhere, into pieces of any size."""
        mean = self.chance.choice([7, 50, 400, 3000])
        places = sorted(self.chance.sample(range(1, len(data)), len(data) // mean))
        return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]

    def script(self, content_type: str, data: bytes) -> Script:
        """The stream on the wire in one of the framings; its pieces are neither chunks nor events."""
        if self.chance.random() < 0.3:
            return Script((head(content_type), *self.pieces(data)), "close")
        chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in self.pieces(data))
        return Script((head(content_type, "Transfer-Encoding: chunked"), *self.pieces(chunks + b"0\r\n\r\n")))


def is_usage(event: bytes) -> bool:
    """The one event that may vanish: nothing but the usage is in it."""
    text = b"".join(re.findall(rb"^data: (.*?)\r?$", event, re.MULTILINE))
    content = json.loads(text) if text.startswith(b"{") else {}
    return bool(content.get("usage")) and content["choices"] == []


def ask(served: Gateway, path: str, *, usage: bool, model: str = "test:echo") -> bytes:
    prompt = {"prompt": "Hi"} if path == COMPLETIONS else {"messages": [{"role": "user", "content": "Hi"}]}
    options = {"stream_options": {"include_usage": True}} if usage else {}
    answer = served.client.post(path, json={"model": model, "stream": True, **prompt, **options})
    assert answer.status_code == 200, answer.text
    return answer.content


@pytest.mark.proves(CHAT, "stream", "tools", "logprobs", "stream_options.include_usage", backend="llamacpp")
@pytest.mark.proves(CHAT, "stream", "tools", "stream_options.include_usage", backend="mlx")
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"], ids=ascii)
@pytest.mark.parametrize("name", RECORDED)
def test_events_of_recorded_shapes(served: Gateway, server: Wire, name: str, line_end: bytes) -> None:
    """With seven recordings, two line ends and four streams of 400 each these are more than 20,000 events."""
    print(f"TEST_SEED={SEED}")
    shapes = Shapes(RECORDED[name], random.Random(f"{SEED} {name} {line_end!r}"))  # noqa: S311 - repeatable, not secret
    path = COMPLETIONS if name.endswith("completion") else CHAT
    for _ in range(STREAMS):
        events = [event.replace(b"\n", line_end) for event in shapes.stream(EVENTS_A_STREAM)]
        # llama.cpp tells a completion's usage beside its finish_reason: that event stays.
        assert [is_usage(event) for event in events].count(True) == (name != "llamacpp-completion")
        server.script = shapes.script(EVENTS, b"".join(events))
        assert ask(served, path, usage=True) == b"".join(events)
        server.script = shapes.script(EVENTS, b"".join(events))
        assert ask(served, path, usage=False) == b"".join(event for event in events if not is_usage(event))
        assert server.seen[-1].json["stream_options"] == {"include_usage": True}
    assert len(RECORDED) * 2 * STREAMS * EVENTS_A_STREAM >= 10_000


@pytest.mark.parametrize("name", [name for name in RECORDED if name.endswith(("chat", "tools"))])
def test_recorded_streams_mean_the_same_as_responses(served: Gateway, server: Wire, name: str) -> None:
    """Through the translation, too, each text and each call's arguments arrive byte for byte."""
    shapes = Shapes(RECORDED[name], random.Random(f"{SEED} {name}"))  # noqa: S311 - repeatable, not secret
    data = RECORDED[name]
    chunks = [json.loads(event[6:]) for event in data.split(b"\n\n") if event.startswith(b"data: {")]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    text = "".join(delta.get("content") or "" for delta in deltas)
    calls: dict[int, str] = {}
    for call in (call for delta in deltas for call in delta.get("tool_calls", ())):
        calls[call["index"]] = calls.get(call["index"], "") + call["function"].get("arguments", "")
    for _ in range(STREAMS):
        server.script = shapes.script(EVENTS, data)
        answer = served.client.post("/v1/responses", json={"model": "test:echo", "input": "Hi", "stream": True})
        events = [json.loads(block.rpartition("data: ")[2]) for block in answer.text.split("\n\n")[:-2]]
        spoken = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
        assert "".join(spoken) == text
        assert [e["arguments"] for e in events if e["type"] == "response.function_call_arguments.done"] == [
            arguments for _, arguments in sorted(calls.items())
        ]
        assert events[-1]["type"] in ("response.completed", "response.incomplete")


@pytest.mark.proves(CHAT, "stream", "tools", "parallel_tool_calls", backend="ollama")
def test_lines_of_ollama(served: Gateway, server: Wire) -> None:
    """A line is an event; what each says, calls among it, is what the client hears."""
    chance = random.Random(SEED)  # noqa: S311 - repeatable, not secret
    shapes = Shapes(RECORDED["llamacpp-chat"], chance)
    total = calls = 0
    for lines in recorded_shapes(SEED):
        server.script = shapes.script(NDJSON, ndjson(*lines))
        *blocks, done, rest = ask(served, CHAT, usage=False, model="native:echo").split(b"\n\n")
        assert (done, rest) == (b"data: [DONE]", b"")
        assert len(blocks) == len(lines)
        for line, block in zip(lines, blocks, strict=True):
            said = line["message"]
            delta = json.loads(block.removeprefix(b"data: "))["choices"][0]["delta"]
            assert (delta.get("content", ""), delta.get("thinking", "")) == (said["content"], said.get("thinking", ""))
            for call, spoken in zip(delta.get("tool_calls", []), said.get("tool_calls", []), strict=True):
                assert call["function"]["name"] == spoken["function"]["name"]
                assert call["function"]["arguments"].encode() == go_json(spoken["function"]["arguments"])
                calls += 1
        total += len(lines)
    assert total >= 3_000
    assert calls >= 100
