"""Every way in which a backend or a client can fail, on every kind of route: what is told, and that nothing is left."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from tests.support.chat_script import chat_script
from tests.support.gateways import TOKEN, Gateway, gateway, write_files
from tests.support.sampling import sample
from tests.support.sockets import connect, read_until, send
from tests.support.upstream import upstream
from tests.support.waiting import PATIENCE_SEC, until
from tests.support.wire import (
    EVENTS,
    JSON,
    NDJSON,
    Ending,
    Script,
    Wire,
    by_ollama,
    chunked,
    event,
    framed,
    head,
    line,
    settle,
    wire,
)

BROKEN = 0  # told within the stream
WHOLE = 200
MAX_RESPONSE = 100_000
SETTINGS: Any = {
    "UPSTREAM_MAX_RESPONSE_BYTES": str(MAX_RESPONSE),
    "HEALTH_CHECK_INTERVAL_SEC": "600",  # what a request finds out is not to be a probe's luck
    "MAX_UPLOAD_BYTES": "1000000",
}
TEXT = "Grüße, wörld"
PARTS = ("Grü", "ße, ", "wörld")
MESSAGES = [{"role": "user", "content": "Hi"}]
HTML = b"<!DOCTYPE html>\n<html>\n\n<body>502 Bad Gateway</body></html>\n"
STREAM_END = b"data: [DONE]\n\n"


@dataclass(frozen=True)
class Way:
    """A kind of route in front of a kind of backend."""

    path: str
    stream: bool
    native: bool = False  # Ollama's own protocol

    def __str__(self) -> str:
        backend = "ollama" if self.native else "openai"
        return f"{self.path.rpartition('/v1/')[2]}{' stream' if self.stream else ''} {backend}"

    @property
    def is_hot(self) -> bool:
        """The backend's bytes are passed on."""
        return self.path == "/v1/chat/completions" and not self.native

    @property
    def content_type(self) -> str:
        if self.stream:
            return NDJSON if self.native else EVENTS
        return JSON

    def body(self) -> dict[str, Any]:
        model = "native:echo" if self.native else "test:echo"
        prompt = {"input": "Hi"} if self.path == "/v1/responses" else {"messages": MESSAGES}
        return {"model": model, "stream": self.stream, "max_tokens": 64, **prompt}

    def pieces(self) -> list[bytes]:
        """A good answer: the events or lines of a stream, or the one whole body."""
        if self.native:
            lines = [{"message": {"role": "assistant", "content": part}, "done": False} for part in PARTS]
            last = {"message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop"}
            if self.stream:
                return [line({"model": "echo", **said}) for said in (*lines, last)]
            return [line({"model": "echo", **last, "message": {"role": "assistant", "content": TEXT}})]
        if self.stream:
            return [*map(chunk, PARTS), chunk("", "stop"), STREAM_END]
        choice = {"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}
        return [json.dumps({"id": "c-1", "object": "chat.completion", "choices": [choice]}).encode()]

    def good(self) -> tuple[bytes, ...]:
        """The same on the wire."""
        if self.stream:
            return chunked(self.content_type, self.pieces())
        return (framed(self.content_type, self.pieces()[0]),)

    def broken(self, *after: bytes) -> Script:
        """A stream that begins well; what follows its first piece is `after` and then the rest."""
        first, *rest = self.pieces()
        return Script(chunked(self.content_type, [first, *after, *rest]))


def chunk(text: str, finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish_reason}
    return event({"id": "c-1", "object": "chat.completion.chunk", "choices": [choice]})


PATHS = ("/v1/chat/completions", "/v1/responses", "/v1/messages")
WAYS = [Way(path, stream, native) for native in (False, True) for path in PATHS for stream in (False, True)]
STREAMS = [way for way in WAYS if way.stream]


def write_backends(home: Path, server: Wire) -> None:
    """Classes `test` and `native` of the server in its two protocols."""
    write_files(home, server.url, {"native@here": by_ollama(server)})


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, server: Wire) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("faults")
    write_backends(home, server)
    with gateway(home, **SETTINGS) as running:
        yield running


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest, server: Wire) -> Iterator[None]:
    """After each fault no slot is held and all is as before; the gateway's end proves that no traceback was logged."""
    server.seen.clear()
    server.written = 0
    yield
    if "served" in request.fixturenames:
        check_alive(request.getfixturevalue("served"), server)


def check_alive(served: Gateway, server: Wire) -> None:
    served.wait_until_idle()
    for native in (False, True):
        way = Way(PATHS[0], False, native)
        server.script = Script(way.good())
        wait_until_there(served, way)


def wait_until_there(served: Gateway, way: Way) -> None:
    """Only a backend that could not be reached is away, until the next probe."""

    def is_there() -> bool:
        found = verdict(way, answer := ask(served, way))
        assert found == WHOLE or answer.json()["error"]["code"] == "backend_not_ready", answer.text
        return found == WHOLE

    until(is_there, "not probed back in")


def ask(served: Gateway, way: Way) -> httpx.Response:
    return served.client.post(way.path, json=way.body())


def verdict(way: Way, answer: httpx.Response) -> int:
    """WHOLE, BROKEN, or the status of the error; fails for whatever is neither one nor the other."""
    if answer.status_code != 200:
        assert answer.json()["error"]["message"]
        return answer.status_code
    if not way.stream:
        assert said(way, answer.text) == TEXT
        return WHOLE
    is_ended = any(mark in answer.text for mark in ("[DONE]", "response.completed", "message_stop"))
    *_, last, rest = answer.text.split("\n\n")
    assert rest == ""
    content = json.loads(last.rpartition("data: ")[2]) if "[DONE]" not in last else {}
    is_error = "error" in content or content.get("type") in ("error", "response.failed")
    assert is_ended != is_error, answer.text
    if is_ended:
        assert said(way, answer.text) == TEXT
    return WHOLE if is_ended else BROKEN


def said(way: Way, text: str) -> str:
    if not way.stream:
        content = json.loads(text)
        if way.path == "/v1/responses":
            return str(content["output"][0]["content"][0]["text"])
        return str(
            content["content"][0]["text"] if "content" in content else content["choices"][0]["message"]["content"]
        )
    found = []
    for data in (block.rpartition("data: ")[2] for block in text.split("\n\n")):
        content = json.loads(data) if data.startswith("{") else {}
        deltas = [choice["delta"] for choice in content.get("choices", ())] or [content.get("delta", {})]
        found += [
            delta if isinstance(delta, str) else delta.get("content", delta.get("text")) or "" for delta in deltas
        ]
    return "".join(found)


# --- what a backend can do


class Fault(NamedTuple):
    """What the backend does, and what may be told: of a whole answer, and of a stream."""

    script: Callable[[Way], Script]
    whole: int
    stream: int


def only(ending: Any, *pieces: bytes | float, repeats: bool = False) -> Callable[[Way], Script]:
    """The same on every way."""

    def script(_: Way) -> Script:
        return Script(pieces, ending, repeats)

    return script


def error_of(way: Way) -> dict[str, Any]:
    return {"error": "CUDA out of memory"} if way.native else {"error": {"message": "CUDA out of memory"}}


def status_only(status: str) -> Callable[[Way], Script]:
    return only("keep", head(None, "Location: http://127.0.0.1:9/", "Content-Length: 0", status=status))


def endless(way: Way) -> Script:
    block = b"%x\r\n%b\r\n" % (65536, b"x" * 65536)
    start = b'data: {"id":"' if way.stream and not way.native else b'{"id":"'
    begun = chunked(way.content_type, [start], is_whole=False)
    return Script((*begun, block), repeats=True)


FAULTS = {
    "answers late": Fault(lambda way: Script((0.2, *way.good())), WHOLE, WHOLE),
    "HTML by another name": Fault(lambda way: Script((framed(way.content_type, HTML),)), 502, BROKEN),
    "nothing": Fault(lambda way: Script((framed(way.content_type, b""),)), 502, BROKEN),
    "half a JSON": Fault(lambda way: Script((framed(way.content_type, b'{"id":"c-1","choi'),)), 502, BROKEN),
    "the end of a JSON": Fault(lambda way: Script((framed(way.content_type, b'c-1","choices":[]}'),)), 502, BROKEN),
    "null": Fault(lambda way: Script((framed(way.content_type, b"null\n\n"),)), 502, BROKEN),
    "HTML as whole events": Fault(lambda way: Script((framed(way.content_type, HTML + b"\n"),)), 502, BROKEN),
    "status 101": Fault(status_only("101 Switching Protocols"), 502, 502),
    "status 204": Fault(only("keep", head(None, status="204 No Content")), 502, 502),
    "status 206": Fault(only("keep", framed(JSON, b"{}", "206 Partial Content")), 502, 502),
    "status 304": Fault(only("keep", head(None, status="304 Not Modified")), 502, 502),
    "status 999": Fault(status_only("999 Odd"), 502, 502),
    "interim answers": Fault(
        lambda way: Script(
            (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", *way.good())
        ),
        WHOLE,
        WHOLE,
    ),
    "interim answers without end": Fault(
        only("keep", b"HTTP/1.1 102 Processing\r\n\r\n" * 100, repeats=True), 502, 502
    ),
    "huge head": Fault(only("keep", head(JSON, "X-Huge: " + "x" * 100_000, "Content-Length: 0")), 502, 502),
    "endless head": Fault(only("keep", b"HTTP/1.1 200 OK\r\n", b"X-A: 1\r\n" * 1000, repeats=True), 502, 502),
    "endless body": Fault(endless, 502, BROKEN),
    "endless refusal": Fault(only("keep", head(JSON, status="500 X"), b"x" * 65536, repeats=True), 502, 502),
    "two lengths": Fault(only("close", head(JSON, "Content-Length: 2", "Content-Length: 3") + b"{}x"), 502, 502),
}


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("fault", FAULTS)
def test_backend_that_fails(served: Gateway, server: Wire, fault: str, way: Way) -> None:
    script, whole, stream = FAULTS[fault]
    server.script = script(way)
    answer = ask(served, way)
    expected = {stream if way.stream else whole}
    if way.native and stream == 502:
        expected.add(BROKEN)  # an adapter finds out when it reads the first line
    if way.stream and stream == BROKEN and not way.is_hot:
        expected.add(502)  # a translation begins with the first chunk
    assert verdict(way, answer) in expected, (answer.status_code, answer.text[:1000])
    assert "Retry-After" in answer.headers or answer.status_code != 503


@pytest.mark.parametrize("way", STREAMS, ids=str)
def test_error_within_a_stream(served: Gateway, server: Wire, way: Way) -> None:
    told = error_of(way)
    server.script = way.broken(line(told) if way.native else event(told))
    answer = ask(served, way)
    assert verdict(way, answer) == BROKEN
    assert "CUDA out of memory" in answer.text
    assert said(way, answer.text) == PARTS[0]


@pytest.mark.parametrize("way", [way for way in STREAMS if not way.native], ids=str)
def test_what_an_event_without_its_blank_line_tells(served: Gateway, server: Wire, way: Way) -> None:
    """Some servers end so; it may be the one with the usage, or with an error."""
    *most, stop, _ = way.pieces()
    usage = event({"id": "c-1", "choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 3}})
    server.script = Script(chunked(EVENTS, [*most, stop, usage.rstrip()]))
    answer = ask(served, way)
    assert verdict(way, answer) == WHOLE
    entry = served.log_entry(lambda entry: entry["request_id"] == answer.headers["x-request-id"])
    assert (entry["input_tokens"], entry["output_tokens"]) == (5, 3)
    server.script = Script(chunked(EVENTS, [*most, event(error_of(way)).rstrip()]))
    answer = ask(served, way)
    assert verdict(way, answer) == BROKEN
    assert "CUDA out of memory" in answer.text


@pytest.mark.parametrize("way", [way for way in STREAMS if not way.native], ids=str)
def test_what_was_used_before_a_stream_broke_off_counts(served: Gateway, server: Wire, way: Way) -> None:
    told = {"id": "c-1", "choices": [{"index": 0, "delta": {"content": "Hi"}}]}
    usage = {"prompt_tokens": 5, "completion_tokens": 1}
    pieces = [event({**told, "usage": usage}), event(told)]
    server.script = Script(chunked(EVENTS, pieces, is_whole=False), "close")
    answer = ask(served, way)
    assert verdict(way, answer) == BROKEN
    entry = served.log_entry(lambda entry: entry["request_id"] == answer.headers["x-request-id"])
    assert (entry["input_tokens"], entry["output_tokens"]) == (5, 1)


@pytest.mark.parametrize("malformed", [b'{"id":"c-1","choices":[{"ind', b"{\xff\xfe}", b"[1]", b"null"], ids=ascii)
@pytest.mark.parametrize("way", STREAMS, ids=str)
def test_malformed_event(served: Gateway, server: Wire, way: Way, malformed: bytes) -> None:
    """It passes where bytes pass, as does all after it; who has to understand it says that it cannot."""
    bad = malformed + b"\n" if way.native else b"data: " + malformed + b"\n\n"
    server.script = way.broken(bad)
    answer = ask(served, way)
    if way.is_hot:
        first, *rest = way.pieces()
        assert answer.content == b"".join([first, bad, *rest])
    else:
        assert verdict(way, answer) == BROKEN
        assert said(way, answer.text) == PARTS[0]


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_text_that_is_no_utf_8(served: Gateway, server: Wire, way: Way) -> None:
    pieces = [piece.replace(rb"\u00f6", b"\xf6") for piece in way.pieces()]
    assert pieces != way.pieces()
    whole = (framed(JSON, pieces[0]),)
    server.script = Script(chunked(way.content_type, pieces) if way.stream else whole)
    answer = ask(served, way)
    if way.is_hot:
        assert answer.content == b"".join(pieces)
    else:
        assert verdict(way, answer) == (BROKEN if way.stream else 502)


@pytest.mark.parametrize("path", PATHS)
def test_events_for_who_asked_for_none(served: Gateway, server: Wire, path: str) -> None:
    server.script = Script(Way(path, stream=True).good())
    way = Way(path, stream=False)
    assert verdict(way, ask(served, way)) == 502


@pytest.mark.parametrize("path", PATHS)
def test_a_whole_answer_for_who_asked_for_a_stream(served: Gateway, server: Wire, path: str) -> None:
    server.script = Script(Way(path, stream=False).good())
    way = Way(path, stream=True)
    assert verdict(way, ask(served, way)) == WHOLE


def test_a_whole_completion_for_who_asked_for_a_stream(served: Gateway, server: Wire) -> None:
    content = {"id": "c-1", "choices": [{"index": 0, "text": "Hi", "finish_reason": "stop"}]}
    server.script = Script((framed(JSON, json.dumps(content).encode()),))
    body = {"model": "test:echo", "prompt": "Say hi", "stream": True}
    first, *rest = served.client.post("/v1/completions", json=body).text.split("\n\n")
    assert json.loads(first.removeprefix("data: ")) == content
    assert rest == ["data: [DONE]", ""]


@pytest.mark.parametrize("choices", [b"5", b"[1]", b'[{"message":5}]', b'"x"'])
@pytest.mark.parametrize("way", [way for way in STREAMS if not way.native], ids=str)
def test_a_whole_answer_that_is_none_for_a_stream(served: Gateway, server: Wire, way: Way, choices: bytes) -> None:
    server.script = Script((framed(JSON, b'{"choices":' + choices + b"}"),))
    assert verdict(way, ask(served, way)) in (502, BROKEN)


@pytest.mark.parametrize("framing", ["chunked", "length", "none"])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_cut_after_any_byte(served: Gateway, server: Wire, way: Way, framing: str) -> None:
    """A cut answer is told as such, or it is the whole one: when nothing was missing but how it ends."""
    body = b"".join(way.pieces())
    data = {
        "chunked": b"".join(chunked(way.content_type, way.pieces())),
        "length": framed(way.content_type, body),
        "none": head(way.content_type) + body,
    }[framing]
    needed = len(data) - len(body) if framing != "chunked" else data.index(b"\r\n\r\n")
    verdicts = []
    for n in sample(range(1, len(data) + 1), 12):
        ending: Any = "reset" if n % 2 and framing != "none" else "close"
        server.script = Script((data[:n],), ending)
        answer = ask(served, way)
        verdicts.append(verdict(way, answer))
        # A line or an event that needs no end may be the last one.
        if verdicts[-1] == WHOLE:
            assert n >= len(data) - 20, n
        elif n < needed:  # within the head
            assert answer.status_code in (502, 503)
        if answer.status_code == 503:
            check_alive(served, server)
    assert verdicts.count(WHOLE) < len(verdicts) / 2
    server.script = Script((data,), "close")
    assert verdict(way, ask(served, way)) == WHOLE


def test_control_characters_in_a_content_type(served: Gateway, server: Wire) -> None:
    way = Way(PATHS[0], stream=True)
    for odd in (EVENTS + "; a=\x7f", EVENTS + "; a=\x01", EVENTS + "; a=\xff", EVENTS + ";\ta=b"):
        server.script = Script(chunked(odd, way.pieces()))
        assert verdict(way, ask(served, way)) in (WHOLE, 502)


def test_a_backend_that_goes_on_after_the_terminator(served: Gateway, server: Wire) -> None:
    way = Way(PATHS[0], stream=True)
    rest = b": bye\n\n"
    endings: list[Ending] = ["close", "reset"]
    for ending in endings:
        server.script = Script(chunked(EVENTS, [*way.pieces(), rest], is_whole=False), ending)
        assert ask(served, way).content.removesuffix(rest) == b"".join(way.pieces())
    server.script = Script(chunked(EVENTS, [*way.pieces()[:-1], STREAM_END + rest]))
    assert ask(served, way).content == b"".join(way.pieces()) + rest


# --- what a client can do

FLOOD = event({"id": "c-1", "choices": [{"index": 0, "delta": {"content": "x" * 1000}}]})
FLOOD_MAX = 32_000_000  # what sockets hold on a loopback with large buffers, and the gateway's own 256 KiB


def begin(served: Gateway, way: Way) -> socket.socket:
    """A connection on which a request was sent and nothing was read."""
    return send(served.port, way.path, way.body(), buffer=4096)


def flooded(served: Gateway, server: Wire, way: Way) -> socket.socket:
    """The same, once more comes than anybody reads."""
    server.script = flood(way)
    before = server.written
    connection = begin(served, way)
    until(lambda: server.written > before, "nothing is written")
    return connection


def flood(way: Way) -> Script:
    if not way.native:
        first, block = chunked(EVENTS, [FLOOD * 50], is_whole=False)
    else:
        said = line({"model": "echo", "message": {"role": "assistant", "content": "x" * 1000}, "done": False})
        first, block = chunked(NDJSON, [said * 50], is_whole=False)
    return Script((first, block), repeats=True)


@pytest.mark.parametrize("way", [way for way in STREAMS if way.path == "/v1/responses"], ids=str)
def test_a_response_without_end_is_not_gathered(served: Gateway, server: Wire, way: Way) -> None:
    """It is kept until it is stored, and so it has the bound of a whole answer."""
    server.script = flood(way)
    answer = ask(served, way)
    assert verdict(way, answer) == BROKEN
    assert len(said(way, answer.text)) <= MAX_RESPONSE


@pytest.mark.parametrize("way", [way for way in STREAMS if way.path != "/v1/responses"], ids=str)
def test_a_client_that_does_not_read_stops_its_backend(served: Gateway, server: Wire, way: Way) -> None:
    """And nobody else: what it does not take stays with the backend, not in the gateway's memory."""
    server.script = flood(way)
    with begin(served, way) as connection:
        held = settle(lambda: server.written)
        assert 0 < held < FLOOD_MAX
        server.script = Script(Way(PATHS[0], False).good())
        for _ in range(20):
            assert verdict(Way(PATHS[0], False), ask(served, Way(PATHS[0], False))) == WHOLE
        assert server.written == held
        assert served.inflight() == 1
        taken = 0
        while taken < held or server.written == held:  # once it reads, it goes on
            data = connection.recv(1_000_000)
            assert data, "cut off"
            taken += len(data)


def test_a_stop_does_not_wait_for_a_client_that_does_not_read(tmp_path: Path, server: Wire) -> None:
    write_backends(tmp_path, server)
    with gateway(tmp_path, GATEWAY_SHUTDOWN_TIMEOUT_SEC="1") as served, ExitStack() as stack:
        for way in STREAMS:
            stack.enter_context(flooded(served, server, way))
        settle(lambda: server.written)
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(PATIENCE_SEC) == 0


def test_pipelined_requests_after_a_broken_stream(served: Gateway, server: Wire) -> None:
    """What is left of a broken stream is no part of the next answer."""
    way = Way(PATHS[0], stream=True)
    server.script = Script((chunked(EVENTS, way.pieces()[:2], is_whole=False)), "reset")
    body = json.dumps(way.body()).encode()
    lines = (
        f"POST {way.path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with connect(served.port) as connection:
        connection.sendall((lines.encode() + body) * 3)
        received = read_until(connection, b"\r\n0\r\n\r\n", 3)
    assert received.count(b"HTTP/1.1 200 OK\r\n") == 3
    assert received.count(b"upstream_closed") == 3
    assert b"[DONE]" not in received


@pytest.mark.parametrize("path", [*PATHS, "/v1/embeddings", "/v1/rerank", "/v1/audio/speech", "/v1/images/generations"])
@pytest.mark.parametrize("has_length", [False, True])
def test_bodies_beyond_the_limit(served: Gateway, server: Wire, path: str, has_length: bool) -> None:
    blocks = (b" " * 100_000 for _ in range(100))
    answer = served.client.post(path, content=b" " * 1_000_001 if has_length else blocks)
    assert answer.status_code == 413
    assert "MAX_REQUEST_BYTES" in answer.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/images/edits"])
@pytest.mark.parametrize("has_length", [False, True])
def test_forms_beyond_the_limit(served: Gateway, server: Wire, path: str, has_length: bool) -> None:
    start = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    blocks = (block for blocks in ([start], [b"x" * 100_000] * 100) for block in blocks)
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    content = start + b"x" * 1_000_000 if has_length else blocks
    answer = served.client.post(path, content=content, headers=headers)
    assert answer.status_code == 413
    assert "MAX_UPLOAD_BYTES" in answer.json()["error"]["message"]


def test_heads_that_come_one_byte_at_a_time(served: Gateway, server: Wire) -> None:
    """Such clients wait for themselves; a request that is whole in the end is answered."""
    way = Way(PATHS[0], False)
    server.script = Script(way.good())
    head_bytes = f"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode()
    with ExitStack() as stack:
        slow = [stack.enter_context(connect(served.port)) for _ in range(100)]
        for number, byte in enumerate(head_bytes):
            for connection in slow:
                connection.sendall(bytes([byte]))
            if number % 10 == 0:
                assert verdict(way, ask(served, way)) == WHOLE
        for connection in slow:
            assert read_until(connection, b"\r\n").startswith(b"HTTP/1.1 200 OK\r\n")


# --- clients that leave before it, hosts that fail before their answer


def test_client_that_leaves_before_its_backend_is_asked(tmp_path: Path) -> None:
    """Stored responses are read beside the event loop: who leaves meanwhile has left when the work begins."""
    with chat_script() as script:
        write_files(tmp_path, script.url)
        with gateway(tmp_path) as running:
            stored = running.client.post("/v1/responses", json={"model": "echo", "input": "Hi"}).json()["id"]
            request = {"model": "hang", "input": "Go on", "previous_response_id": stored}
            for number in range(30):
                headers = {"X-Request-Id": f"leaving-{number}"}
                send(running.port, "/v1/responses", request, headers=headers).close()
            for number in range(30):
                assert running.log_entry(_is(f"leaving-{number}"))["status"] == 499
            running.wait_until_idle()


@pytest.mark.parametrize("way", STREAMS, ids=str)
def test_backend_that_said_all_and_stays(tmp_path: Path, way: Way) -> None:
    """Nobody waits for the end of its message: the client has its answer whole, the next one the slot."""
    with wire() as server:
        write_backends(tmp_path, server)
        server.script = Script(chunked(way.content_type, way.pieces(), is_whole=False), "hang")
        with gateway(tmp_path) as running:
            assert verdict(way, ask(running, way)) == WHOLE
            running.wait_until_idle()


@pytest.mark.parametrize(
    ("path", "content"),
    [("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}), ("/v1/responses", {"input": "Hi"})],
)
def test_time_that_a_silent_backend_took_is_told(tmp_path: Path, path: str, content: dict[str, Any]) -> None:
    with upstream() as backend:
        write_files(tmp_path, backend.url)
        with gateway(tmp_path, UPSTREAM_FIRST_BYTE_TIMEOUT_SEC="0.3") as running:
            assert running.client.post(path, json={"model": "hang", **content}).status_code == 504
            assert running.log_entry(lambda entry: entry["status"] == 504)["upstream_ms"] >= 300


def _is(request_id: str) -> Callable[[dict[str, Any]], bool]:
    return lambda entry: entry["request_id"] == request_id
