"""Each failure of a backend on each way to one: status, code, the metric's kind, Retry-After and what it does to the
backend are the same everywhere."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import httpx
import pytest
from gateway.backends.slots import Backend
from gateway.wire.http1 import Timeouts
from gateway.wire.origin import Origin

from tests.support.faces.images import png
from tests.support.in_process import Ending, InProcess, Told, http, shared
from tests.support.ports import NOBODYS

MAX_RESPONSE = 100_000
HI = [{"role": "user", "content": "Hi"}]
JSON, EVENTS, NDJSON, AUDIO = "application/json", "text/event-stream", "application/x-ndjson", "audio/mpeg"
ERROR = {"error": {"message": "CUDA out of memory", "code": "x", "param": "y"}}
SILENCE_SEC = 0.05  # nothing that comes is waited for with it
IN_STREAM = 0  # for a status: the error is told within the stream


@dataclass(frozen=True)
class Way:
    """A kind of request to a kind of backend. `begins` is how its answer does, of type `media`."""

    path: str
    backend: str
    fields: dict[str, Any]
    media: str = JSON
    begins: bytes = b'{"a"'
    files: tuple[str, ...] = ()
    method: str = "POST"

    def __str__(self) -> str:
        streamed = " stream" if self.is_stream else ""
        return f"{self.path.removeprefix('/v1/')} {self.backend}{streamed}"

    @property
    def is_stream(self) -> bool:
        return self.media in (EVENTS, NDJSON, AUDIO)

    def request(self) -> httpx.Request:
        if not self.files:
            return httpx.Request(self.method, "http://x", json=self.fields)
        return httpx.Request("POST", "http://x", data=self.fields, files=dict.fromkeys(self.files, png(8, 8)))


def chat_ways() -> Iterator[Way]:
    prompts: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"messages": HI},
        "/v1/completions": {"prompt": "Hi"},
        "/v1/responses": {"input": "Hi"},
        "/v1/messages": {"messages": HI, "max_tokens": 9},
    }
    for path, fields in prompts.items():
        for backend in ("open", "llamacpp", "ollama"):
            given = {"model": f"{backend}:m", **fields}
            yield Way(path, backend, given)
            media, begins = (NDJSON, b'{"mo') if backend == "ollama" else (EVENTS, b"data: {")
            yield Way(path, backend, {**given, "stream": True}, media, begins)


def other_ways() -> Iterator[Way]:
    for backend in ("open", "llamacpp", "ollama", "embedder"):
        yield Way("/v1/embeddings", backend, {"model": f"{backend}:m", "input": "Hi"})
    for backend in ("open", "llamacpp", "nexa", "ollama", "embedder"):  # the last two by embeddings
        yield Way("/v1/rerank", backend, {"model": f"{backend}:m", "query": "Hi", "documents": ["Hi"]})
    yield Way("/v1/messages/count_tokens", "llamacpp", {"model": "llamacpp:m", "messages": HI})
    for backend in ("open", "nexa", "a1111", "comfyui", "invokeai"):
        yield Way("/v1/images/generations", backend, {"model": f"{backend}:m", "prompt": "Hi"})
        if backend != "nexa":
            yield Way("/v1/images/edits", backend, {"model": f"{backend}:m", "prompt": "Hi"}, files=("image",))
    speech = {"model": "open:m", "input": "Hi"}
    yield Way("/v1/audio/speech", "open", speech)
    yield Way("/v1/audio/speech", "open", speech, AUDIO, b"ID3")
    yield Way("/v1/audio/speech", "open", {**speech, "stream_format": "sse"}, EVENTS, b"data: {")
    for path in ("transcriptions", "translations"):
        yield Way(f"/v1/audio/{path}", "open", {"model": "open:m"}, files=("file",))
    yield Way("/v1/audio/transcriptions", "open", {"model": "open:m", "stream": "true"}, EVENTS, b"da", ("file",))
    yield Way("/v1/music/generations", "heartmula", {"model": "heartmula:m", "prompt": "Hi"})
    yield Way("/ui/heartmula/audio/a.mp3", "heartmula", {}, AUDIO, b"ID3", method="GET")


WAYS = [*chat_ways(), *other_ways()]


class Outcome(NamedTuple):
    """`effect` is what became of the backend: away, strained or nothing."""

    status: int
    code: str | None
    kind: str
    retry_after: str | None = None
    effect: str = "strained"


class Failure(NamedTuple):
    """What the backend does, and what comes of it; `setting` is done to it before, `where` it can fail so."""

    answer: Callable[[Way], bytes]
    outcome: Outcome
    ending: Ending = "keep"
    setting: Callable[[Backend], object] = lambda _: None
    where: Callable[[Way], bool] = lambda _: True


def always(answer: bytes) -> Callable[[Way], bytes]:
    return lambda _: answer


def half(way: Way) -> bytes:
    return http(way.begins + b" " * 90, content_type=way.media)[:-90]


def status(number: int) -> Callable[[Way], bytes]:
    return always(http(json.dumps(ERROR).encode(), number))


def waiting(**seconds: float) -> Callable[[Backend], object]:
    return lambda backend: backend.pool.take_over(8, replace(Timeouts(), **seconds))


def occupied(backend: Backend) -> None:
    backend.pool.take_over(0, replace(Timeouts(), pool_wait=SILENCE_SEC))


def gone(backend: Backend) -> None:
    backend.pool.retire()
    backend.pool.origin = Origin.parse(f"http://127.0.0.1:{NOBODYS}{backend.origin.prefix.decode()}")


def is_whole(way: Way) -> bool:
    return not way.is_stream


def has_events(way: Way) -> bool:
    return way.media in (EVENTS, NDJSON)


def speaks_openai(way: Way) -> bool:
    """Whether the answer is read as JSON of OpenAI's: other protocols, and audio, may be of any type."""
    return way.backend in ("open", "llamacpp", "embedder") and not way.path.startswith(("/v1/audio", "/v1/images"))


NOTHING = always(b"")
WRONG = Outcome(502, "upstream_error", "answer")
HTML = b"<!DOCTYPE html>\n<html>\n\n<body>502 Bad Gateway</body></html>\n"
FAILURES = {
    "resets": Failure(NOTHING, Outcome(503, "backend_not_ready", "closed", "30"), "reset"),
    "breaks off": Failure(half, Outcome(502, "upstream_closed", "closed"), "close"),
    "is silent": Failure(
        NOTHING, Outcome(504, "upstream_timeout", "timeout_first_byte"), setting=waiting(first_byte=SILENCE_SEC)
    ),
    "is silent within its head": Failure(
        always(b"HTTP/1.1 200 OK\r\nContent-Ty"),
        Outcome(504, "upstream_timeout", "timeout_first_byte"),
        setting=waiting(first_byte=SILENCE_SEC),
    ),
    "falls silent": Failure(half, Outcome(504, "upstream_timeout", "timeout_idle"), setting=waiting(idle=SILENCE_SEC)),
    "no HTTP": Failure(
        always(b"SSH-2.0-OpenSSH_9.6\r\n"), Outcome(502, "upstream_protocol_error", "protocol"), "close"
    ),
    "too much": Failure(
        lambda way: http(way.begins + b" " * 2_000_000, content_type=way.media),
        Outcome(502, "upstream_protocol_error", "protocol"),
        where=is_whole,
    ),
    "HTML": Failure(always(http(b"<html>", content_type="text/html")), WRONG),
    "another content type": Failure(always(http(b"{}", content_type="text/plain")), WRONG, where=speaks_openai),
    "no content type": Failure(always(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"), WRONG, where=speaks_openai),
    **{
        name: Failure(lambda way, body=body: http(body or way.begins), WRONG, where=is_whole)  # type: ignore[misc]  # of the default
        for name, body in {"half a JSON": b"", "the end of a JSON": b'c","choices":[]}', "null": b"null\n"}.items()
    },
    "nothing": Failure(always(http(b"")), WRONG, where=is_whole),
    "HTML by another name": Failure(lambda way: http(HTML, content_type=way.media), WRONG, where=is_whole),
    "no event": Failure(
        lambda way: http(b"", content_type=way.media), Outcome(502, "upstream_closed", "closed"), where=has_events
    ),
    "an error as JSON": Failure(
        always(http(json.dumps(ERROR).encode())),
        Outcome(502, "x", "status_200_with_error", effect="nothing"),
        where=lambda way: way.media != AUDIO,
    ),
    "an error as an event": Failure(
        lambda way: http(
            b"data: " * (way.media == EVENTS) + json.dumps(ERROR).encode() + b"\n\n", content_type=way.media
        ),
        Outcome(502, "x", "status_200_with_error", effect="nothing"),
        where=lambda way: has_events(way) and not way.path.startswith("/v1/audio"),
    ),
    "status 302": Failure(status(302), Outcome(502, "upstream_error", "status_3xx", effect="nothing")),
    "status 401": Failure(status(401), Outcome(502, "upstream_error", "status_4xx", effect="nothing")),
    "status 409": Failure(status(409), Outcome(409, "x", "status_4xx", effect="nothing")),
    "status 429": Failure(status(429), Outcome(429, "x", "status_4xx", "5", "nothing")),
    "status 500": Failure(status(500), Outcome(502, "upstream_error", "status_5xx")),
    "status 503": Failure(status(503), Outcome(503, "backend_not_ready", "status_5xx", "30", "nothing")),
    **{
        f"status {line}": Failure(
            always(b"HTTP/1.1 %b\r\nContent-Length: 0\r\n\r\n" % line.encode()),
            Outcome(502, "upstream_error", f"status_{line[0]}xx", effect="nothing"),
            where=lambda way: not way.path.startswith(("/v1/images", "/ui")),
        )
        for line in ("204 No Content", "206 Partial Content", "304 Not Modified")
    },
    **{
        name: Failure(always(data), Outcome(502, "upstream_protocol_error", "protocol"))
        for name, data in {
            "interim answers without end": b"HTTP/1.1 102 Processing\r\n\r\n" * 50_000,
            "a head without end": b"HTTP/1.1 200 OK\r\n" + b"X-A: 1\r\n" * 50_000,
            "status 101": b"HTTP/1.1 101 Switching Protocols\r\nContent-Length: 0\r\n\r\n",
            "status 999": b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n",
            "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}x",
            "a refusal without end": http(b"x" * 2_000_000, 500),
        }.items()
    },
    "no connection free": Failure(
        NOTHING, Outcome(429, "backend_overloaded", "connections_exhausted", "5", "nothing"), setting=occupied
    ),
    # The last one, since nothing is there after it.
    "refuses connections": Failure(NOTHING, Outcome(503, "backend_not_ready", "connect", "30", "away"), setting=gone),
}


class House:
    """A gateway whose backends do as a failure says."""

    def __init__(self, runner: asyncio.Runner, gateway: InProcess) -> None:
        self._runner = runner
        self._gateway = gateway

    def outcome(self, way: Way, failure: Failure) -> Outcome:
        return self._runner.run(self._outcome(way, failure))

    async def _outcome(self, way: Way, failure: Failure) -> Outcome:
        gateway = self._gateway
        (backend,) = (one for one in gateway.app.registry.backends if one.record.backend_class == way.backend)
        backend.on_failure = lambda: None  # no probe is to find it again meanwhile
        backend.failures.clear()
        backend.pool.take_over(8, Timeouts())
        backend.pool._interval = SILENCE_SEC
        failure.setting(backend)
        gateway.double.answer = lambda *_: failure.answer(way)
        gateway.double.ending = failure.ending
        request = way.request()
        content_type = request.headers["content-type"].encode()
        told = await gateway.ask(way.method, way.path, request.read(), [(b"content-type", content_type)])
        effect = "away" if not backend.ready else "strained" if backend.circuit_failures else "nothing"
        kinds = " ".join(f"{kind}" if count == 1 else f"{count} {kind}" for kind, count in backend.failures.items())
        assert gateway.alarms.told == []
        if way.method == "POST":
            assert told.headers[b"x-backend-used"] == way.backend.encode()
        assert gateway.settle() == 0, "a slot is held"
        retry_after = told.headers.get(b"retry-after")
        return Outcome(*status_and_code(told), kinds, retry_after.decode() if retry_after else None, effect)


def status_and_code(told: Told) -> tuple[int, str | None]:
    """IN_STREAM for a stream that had begun; None for the code where the connection was cut."""
    if told.is_cut:
        return IN_STREAM, None
    assert told.is_complete
    text = told.body if told.status != 200 else told.body.rstrip().rpartition(b"data: ")[2]
    error = json.loads(text)["error"]
    assert set(error) in ({"message", "type", "param", "code"}, {"message", "type", "details"})
    return told.status if told.status != 200 else IN_STREAM, error.get("details", {}).get(
        "error_code", error.get("code")
    )


def good(*_: Any) -> bytes:
    """What probes are answered, and the one piece of music whose audio is asked for."""
    return http(json.dumps({"data": [{"id": "m"}], "models": [{"name": "m"}], "audio_url": "/a.mp3"}).encode())


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    settings: dict[str, Any] = {
        "upstream_max_response_bytes": MAX_RESPONSE,
        "images_http_timeout_sec": 600,
        "music_max_jobs": 100,
    }
    with shared(tmp_path_factory.mktemp("failures"), good, **settings) as (runner, gateway):
        made = runner.run(gateway.post("/v1/music/generations", json.dumps({"prompt": "Hi"}).encode()))
        assert made.status == 200, made
        yield House(runner, gateway)


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_is_the_same_on_every_way(house: House, name: str) -> None:
    failure = FAILURES[name]
    wrong = {}
    for way in filter(failure.where, WAYS):
        found, wanted = house.outcome(way, failure), failure.outcome
        if way.is_stream and found.status == IN_STREAM:
            wanted = wanted._replace(status=IN_STREAM, code=wanted.code if found.code else None)
        if found != wanted:
            wrong[str(way)] = found
    assert wrong == {}
