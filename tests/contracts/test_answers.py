"""What a client is told of a backend's answer that is good, half good, cut, or of another form than was asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.in_process import Ending, Told, http, shared
from tests.support.sampling import sample
from tests.support.waiting import until_async
from tests.support.wire import EVENTS, JSON, NDJSON, chunked, event, head, line

BROKEN = 0  # told within the stream
WHOLE = 200
MAX_RESPONSE = 100_000
TEXT = "Grüße, wörld"
PARTS = ("Grü", "ße, ", "wörld")
STREAM_END = b"data: [DONE]\n\n"
PROBED = json.dumps({"data": [{"id": "m"}], "models": [{"name": "m"}]}).encode()


@dataclass(frozen=True)
class Way:
    """A kind of route in front of a kind of backend."""

    path: str
    stream: bool
    backend: str = "open"

    def __str__(self) -> str:
        return f"{self.path.removeprefix('/v1/')}{' stream' if self.stream else ''} {self.backend}"

    @property
    def is_native(self) -> bool:
        return self.backend == "ollama"

    @property
    def is_hot(self) -> bool:
        """The backend's bytes are passed on."""
        return self.path == CHAT and not self.is_native

    @property
    def content_type(self) -> str:
        if self.stream:
            return NDJSON if self.is_native else EVENTS
        return JSON

    def body(self) -> bytes:
        messages = [{"role": "user", "content": "Hi"}]
        prompt: Any = {"input": messages} if self.path == "/v1/responses" else {"messages": messages}
        return json.dumps({"model": f"{self.backend}:m", "stream": self.stream, "max_tokens": 64, **prompt}).encode()

    def pieces(self) -> list[bytes]:
        """A good answer: the events or lines of a stream, or the one whole body."""
        if self.is_native:
            lines: list[Any] = [{"message": {"role": "assistant", "content": part}, "done": False} for part in PARTS]
            last = {"message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop"}
            whole = {**last, "message": {"role": "assistant", "content": TEXT}}
            return [line({"model": "m", **content}) for content in ((*lines, last) if self.stream else (whole,))]
        if self.stream:
            return [*map(chunk, PARTS), chunk("", "stop"), STREAM_END]
        choice = {"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}
        return [json.dumps({"id": "c-1", "object": "chat.completion", "choices": [choice]}).encode()]

    def answer(self, pieces: Sequence[bytes] | None = None) -> bytes:
        """The same, or other pieces, on the wire."""
        pieces = self.pieces() if pieces is None else pieces
        return b"".join(chunked(self.content_type, pieces)) if self.stream else http(pieces[0])


def chunk(text: str, finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish_reason}
    return event({"id": "c-1", "object": "chat.completion.chunk", "choices": [choice]})


CHAT = "/v1/chat/completions"
PATHS = (CHAT, "/v1/responses", "/v1/messages")
WAYS = [Way(path, stream, backend) for backend in ("open", "ollama") for path in PATHS for stream in (False, True)]
STREAMS = [way for way in WAYS if way.stream]
OF_EVENTS = [way for way in STREAMS if not way.is_native]


class House:
    """A gateway whose backends answer with the bytes that a test lays down; no answer costs a slot or a traceback."""

    def __init__(self, home: Path, runner: Any, gateway: Any) -> None:
        self._log, self._run, self._gateway = home / "requests.jsonl", runner.run, gateway

    def post(self, path: str, body: bytes, answer: bytes, ending: Ending = "keep") -> Told:
        gateway = self._gateway
        gateway.double.answer, gateway.double.ending = lambda *_: answer, ending
        told: Told = self._run(gateway.post(path, body))
        assert gateway.alarms.told == []
        assert gateway.settle() == 0, "a slot is held"
        return told

    def ask(self, way: Way, answer: bytes, ending: Ending = "keep") -> Told:
        return self.post(way.path, way.body(), answer, ending)

    def tokens(self, told: Told) -> tuple[int, int]:
        """What the request log says was used."""
        mark = told.headers[b"x-request-id"].decode()

        def entries() -> list[Any]:
            written = self._log.read_text() if self._log.exists() else ""
            return [json.loads(text) for text in written.splitlines(keepends=True) if mark in text and text[-1] == "\n"]

        self._run(until_async(entries))
        return entries()[0]["input_tokens"], entries()[0]["output_tokens"]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    home = tmp_path_factory.mktemp("answers")
    with shared(home, lambda *_: http(PROBED), upstream_max_response_bytes=MAX_RESPONSE) as (runner, gateway):
        yield House(home, runner, gateway)


def verdict(way: Way, told: Told) -> int:
    """WHOLE, BROKEN, or the status of the error; fails for whatever is neither one nor the other."""
    if told.status != 200:
        assert json.loads(told.body)["error"]["message"]
        return told.status
    if not way.stream:
        assert said(way, told) == TEXT
        return WHOLE
    *_, last, rest = told.body.split(b"\n\n")
    assert rest == b""
    is_ended = any(mark in told.body for mark in (b"[DONE]", b"response.completed", b"message_stop"))
    content = json.loads(last.rpartition(b"data: ")[2]) if b"[DONE]" not in last else {}
    is_error = "error" in content or content.get("type") in ("error", "response.failed")
    assert is_ended != is_error, told.body
    if is_ended:
        assert said(way, told) == TEXT
    return WHOLE if is_ended else BROKEN


def said(way: Way, told: Told) -> str:
    if not way.stream:
        content = json.loads(told.body)
        if way.path == "/v1/responses":
            return str(content["output"][0]["content"][0]["text"])
        return str(
            content["content"][0]["text"] if "content" in content else content["choices"][0]["message"]["content"]
        )
    found = []
    for data in (block.rpartition(b"data: ")[2] for block in told.body.split(b"\n\n")):
        content = json.loads(data) if data.startswith(b"{") else {}
        deltas = [choice["delta"] for choice in content.get("choices", ())] or [content.get("delta", {})]
        found += [one if isinstance(one, str) else one.get("content", one.get("text")) or "" for one in deltas]
    return "".join(found)


AMID: dict[str, bytes] = {
    "an error": b'{"error":"CUDA out of memory"}',
    "half a JSON": b'{"id":"c-1","choices":[{"ind',
    "no UTF-8": b'{"x":"\xff\xfe"}',
    "a list": b"[1]",
    "null": b"null",
    "HTML": b"<html>",
}


@pytest.mark.parametrize("name", AMID)
@pytest.mark.parametrize("way", STREAMS, ids=str)
def test_what_comes_amid_a_stream(house: House, way: Way, name: str) -> None:
    """Nonsense passes where bytes pass, as does all after it; a translator says that it cannot understand it."""
    odd = AMID[name] + b"\n" if way.is_native else b"data: " + AMID[name] + b"\n\n"
    first, *rest = way.pieces()
    told = house.ask(way, way.answer([first, odd, *rest]))
    if way.is_hot and name != "an error":
        assert told.body == b"".join([first, odd, *rest])
    else:
        assert verdict(way, told) == BROKEN
        assert said(way, told) == PARTS[0]
        assert (b"CUDA out of memory" in told.body) == (name == "an error")


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_text_that_is_not_utf_8(house: House, way: Way) -> None:
    pieces = [piece.replace(rb"\u00f6", b"\xf6") for piece in way.pieces()]
    assert pieces != way.pieces()
    told = house.ask(way, way.answer(pieces))
    if way.is_hot:
        assert told.body == b"".join(pieces)
    else:
        assert verdict(way, told) == (BROKEN if way.stream else 502)


@pytest.mark.parametrize("way", OF_EVENTS, ids=str)
def test_what_an_event_without_its_blank_line_tells(house: House, way: Way) -> None:
    """Some servers end so; it may be the one with the usage, or with an error."""
    *most, _ = way.pieces()
    usage = event({"id": "c-1", "choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3}})
    told = house.ask(way, way.answer([*most, usage.rstrip()]))
    assert verdict(way, told) == WHOLE
    assert house.tokens(told) == (5, 3)
    told = house.ask(way, way.answer([*most[:-1], event({"error": {"message": "CUDA out of memory"}}).rstrip()]))
    assert verdict(way, told) == BROKEN
    assert b"CUDA out of memory" in told.body


@pytest.mark.parametrize("way", OF_EVENTS, ids=str)
def test_what_was_used_before_a_stream_broke_off_counts(house: House, way: Way) -> None:
    content = {"id": "c-1", "choices": [{"index": 0, "delta": {"content": "Hi"}}]}
    usage = {"prompt_tokens": 5, "completion_tokens": 1}
    pieces = [event({**content, "usage": usage}), event(content)]
    told = house.ask(way, b"".join(chunked(EVENTS, pieces, is_whole=False)), "close")
    assert verdict(way, told) == BROKEN
    assert house.tokens(told) == (5, 1)


@pytest.mark.parametrize("path", PATHS)
def test_another_form_than_was_asked_for(house: House, path: str) -> None:
    whole, stream = Way(path, stream=False), Way(path, stream=True)
    assert verdict(whole, house.ask(whole, stream.answer())) == 502
    assert verdict(stream, house.ask(stream, whole.answer())) == WHOLE
    for choices in (b"5", b"[1]", b'[{"message":5}]', b'"x"'):
        assert verdict(stream, house.ask(stream, http(b'{"choices":' + choices + b"}"))) in (502, BROKEN)


def test_a_whole_completion_where_a_stream_was_asked_for(house: House) -> None:
    content = {"id": "c-1", "choices": [{"index": 0, "text": "Hi", "finish_reason": "stop"}]}
    body = {"model": "open:m", "prompt": "Say hi", "stream": True}
    told = house.post("/v1/completions", json.dumps(body).encode(), http(json.dumps(content).encode()))
    first, *rest = told.body.split(b"\n\n")
    assert json.loads(first.removeprefix(b"data: ")) == content
    assert rest == [b"data: [DONE]", b""]


@pytest.mark.parametrize("framing", ["chunked", "length", "none"])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_cut_after_any_byte(house: House, way: Way, framing: str) -> None:
    """A cut answer is told as such, or it is the whole one: when nothing was missing but how it ends."""
    body = b"".join(way.pieces())
    data = {
        "chunked": b"".join(chunked(way.content_type, way.pieces())),
        "length": http(body, content_type=way.content_type),
        "none": head(way.content_type) + body,
    }[framing]
    needed = len(data) - len(body) if framing != "chunked" else data.index(b"\r\n\r\n")
    verdicts = []
    for n in sample(range(1, len(data) + 1), 12):
        told = house.ask(way, data[:n], "reset" if n % 2 and framing != "none" else "close")
        verdicts.append(verdict(way, told))
        # A line or an event that needs no end may be the last one.
        if verdicts[-1] == WHOLE:
            assert n >= len(data) - 20, n
        elif n < needed:  # within the head
            assert told.status in (502, 503)
    assert verdicts.count(WHOLE) < len(verdicts) / 2
    assert verdict(way, house.ask(way, data, "close")) == WHOLE


def test_good_answers_in_odd_forms(house: House) -> None:
    way = Way(CHAT, stream=True)
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    assert verdict(way, house.ask(way, interim + way.answer())) == WHOLE
    for odd in (EVENTS + "; a=\x7f", EVENTS + "; a=\x01", EVENTS + "; a=\xff", EVENTS + ";\ta=b"):
        assert verdict(way, house.ask(way, b"".join(chunked(odd, way.pieces())))) in (WHOLE, 502)


def test_a_backend_that_goes_on_after_the_terminator(house: House) -> None:
    way, rest = Way(CHAT, stream=True), b": bye\n\n"
    endings: list[Ending] = ["close", "reset"]
    for ending in endings:
        data = b"".join(chunked(EVENTS, [*way.pieces(), rest], is_whole=False))
        assert house.ask(way, data, ending).body.removesuffix(rest) == b"".join(way.pieces())
    told = house.ask(way, way.answer([*way.pieces()[:-1], STREAM_END + rest]))
    assert told.body == b"".join(way.pieces()) + rest


@pytest.mark.parametrize("way", [way for way in STREAMS if way.path == "/v1/responses"], ids=str)
def test_a_response_without_end_is_not_gathered(house: House, way: Way) -> None:
    """It is kept until it is stored, and so it has the bound of a whole answer."""
    long = way.pieces()[0].replace(rb"Gr\u00fc", b"x" * 1000)
    told = house.ask(way, way.answer([long] * (MAX_RESPONSE // 500)))
    assert verdict(way, told) == BROKEN
    assert 1000 < len(said(way, told)) <= MAX_RESPONSE
