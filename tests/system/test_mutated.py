"""Good requests of every route with their bytes changed: each is answered, or its connection ends, and none is a 500.

All of `make test-heavy` are 100,000. What failed is shown with its number: the same number and TEST_SEED make it again.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httptools
import httpx
import pytest
import uvloop

from tests.support.faces.images import png
from tests.support.gateways import TOKEN, Gateway, gateway, write_files
from tests.support.sampling import SEED, cases
from tests.support.sound import sound
from tests.support.upstream import Seen, Upstream, _write, running
from tests.support.waiting import PATIENCE_SEC

COUNT = cases(1_000, full=100_000)
BATCH = 500  # after so many a good client is asked
AT_ONCE = 32
SHOWN = 5
FRAMED = 0.75  # of the requests with a body get one that is as long as they say, and so are read to its end
HI = [{"role": "user", "content": "Hi"}]
FILE = ("a.png", png(8, 8), "image/png")
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


class Willing(Upstream):
    """Answers whatever it is asked."""

    async def _act(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.seen.clear()
        await _write(writer, sound(seen.path, seen.body).http())


def raw(method: str, path: str, *, lines: tuple[str, ...] = (), version: str = "1.1", **body: Any) -> bytes:
    """A request as httpx would send it, with its token and the wish that the connection end with it."""
    request = httpx.Request(method, f"http://x{path}", **body)
    content = request.read()
    headers = [f"{name}: {value}" for name, value in request.headers.items() if name != "transfer-encoding"]
    head = [f"{method} {path} HTTP/{version}", *headers, f"Authorization: Bearer {TOKEN}", *lines]
    return "\r\n".join([*head, "Connection: close", "", ""]).encode() + content


def seeds(page: dict[str, Any]) -> list[bytes]:
    """Good requests: those of the gateway's own page, and the other forms that a request has."""
    chat = {"model": "test:echo", "messages": HI}
    data = json.dumps(chat).encode()
    chunks = b"%x;name=value\r\n%b\r\n%x\r\n%b\r\n0\r\nX-Trailer: 1\r\n\r\n" % (9, data[:9], len(data) - 9, data[9:])
    whole = raw("POST", "/v1/chat/completions", json=chat)
    any_stream = {**chat, "prompt": "Hi", "input": "Hi", "max_tokens": 9, "stream": True}
    rich = {**chat, "tools": [TOOL], "tool_choice": "auto", "temperature": 0.5, "max_tokens": 9, "stop": ["a"], "n": 1}
    calls = [{"type": "function", "id": "c", "function": {"name": "f", "arguments": "{}"}}]
    turns = [*HI, {"role": "assistant", "tool_calls": calls}, {"role": "tool", "tool_call_id": "c", "content": "x"}]
    return [
        *of_page(page),
        *(raw("GET", path) for path in ("/docs", "/openapi.json", "/nowhere?x=%20")),
        *(
            raw("POST", f"/v1/{path}", json=any_stream)
            for path in ("chat/completions", "completions", "responses", "messages")
        ),
        *(raw("HEAD", path) for path in ("/health", "/v1/models")),
        raw("OPTIONS", "/v1/chat/completions", lines=("Origin: http://x", "Access-Control-Request-Method: POST")),
        raw("POST", "/v1/chat/completions", json={**rich, "messages": turns, "stream_options": None}),
        raw("POST", "/v1/chat/completions", json=rich, version="1.0"),
        raw("POST", "/v1/chat/completions", json=chat, lines=("Expect: 100-continue",)),
        raw("POST", "/v1/chat/completions", content=gzip.compress(data), lines=("Content-Encoding: gzip",)),
        re.sub(rb"content-length: \d+", b"Transfer-Encoding: chunked", whole).partition(b"{")[0] + chunks,
        (whole + raw("GET", "/health")).replace(b"Connection: close\r\n", b"", 1) + whole,
    ]


def of_page(page: dict[str, Any]) -> Iterator[bytes]:
    for where, item in page["paths"].items():
        path = re.sub(r"{\w+}", "x", where)
        for method, operation in item.items():
            content = operation.get("requestBody", {}).get("content", {})
            example = content.get("application/json", {}).get("example")
            if "multipart/form-data" in content:
                files = {"image" if "images" in path else "file": FILE, "mask": FILE}
                yield raw("POST", path, data={"model": "test:echo", "prompt": "a cat", "language": "en"}, files=files)
            elif example is not None:
                yield raw("POST", path, json={**example, "model": "test:echo"})
            else:
                yield raw(method.upper(), path)


VALUES = (
    b"null", b"true", b"0", b"-1", b"1e400", b"[]", b"{}", b"[[]]", b'""', b'"x"',
    b'"\\ud800"', b'"auto"', b'[{"x":1}]',
)  # fmt: skip
NUMBERS = (b"0", b"-1", b"1e9", b"9" * 20, b"0x10", b"", b"+5", b" 5", b"1_0", b"18446744073709551616", b"00000005")
LINE_ENDS = (b"\n", b"\r", b"\n\r", b"\r\r\n", b"\r\n\r\n", b"\r\n ", b"\x00\r\n", b"")
LINES = (
    b"Content-Length: 5", b"Content-Length: 5, 5", b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: identity", b"Expect: 100-continue", b"Expect: x", b"Upgrade: websocket", b"Upgrade: h2c",
    b"Connection: upgrade", b"Connection: keep-alive", b"Host: y", b"X-Backend: test", b"X-Backend: \xff",
    b"X: " + b"x" * 70_000,
    b"X-Forwarded-For: 10.0.0.1", b"Content-Encoding: br", b"Content-Type: text/plain",
    b"Content-Type: multipart/form-data",
    b"Content-Type: multipart/form-data; boundary=", b"Accept: \x00", b": x", b"x", b" x: y", b"Range: bytes=0-1",
    b"Prefer: respond-async", b"Prefer: wait=99999999999999999999", b"anthropic-version: 2023-06-01",
    b"traceparent: 00-0-0-0", b"X-Request-Id: " + b"\xc3\xa4", b"Cookie: " + b"a=b; " * 2000,
)  # fmt: skip


Way = Callable[[bytearray, random.Random], None]


def flip(data: bytearray, chance: random.Random) -> None:
    for _ in range(chance.choice((1, 1, 2, 8))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def cut(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(data))
    del data[at : at + chance.choice((1, 2, 9, 50))]


def double(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(data))
    data[at:at] = data[at : at + chance.choice((1, 2, 9, 50))] * chance.choice((1, 1, 2, 500))


def put_in(data: bytearray, chance: random.Random) -> None:
    at = chance.randrange(len(data))
    data[at:at] = chance.randbytes(chance.choice((1, 2, 9)))


def splice(seeds: list[bytes]) -> Way:
    def spliced(data: bytearray, chance: random.Random) -> None:
        other = chance.choice(seeds)
        at, begin = chance.randrange(len(data)), chance.randrange(len(other))
        data[at : at + chance.choice((0, 9, 10_000))] = other[begin:]

    return spliced


def truncate(data: bytearray, chance: random.Random) -> None:
    del data[chance.randrange(len(data)) :]


def other_number(data: bytearray, chance: random.Random) -> None:
    if numbers := list(re.finditer(rb"\d+", data)):
        found = chance.choice(numbers)
        data[found.start() : found.end()] = chance.choice(NUMBERS)


def other_value(data: bytearray, chance: random.Random) -> None:
    """Another value, or key, of a body in JSON."""
    if values := list(re.finditer(rb'"[^"\r\n]*"|\d+|true|null', data)):
        found = chance.choice(values)
        data[found.start() : found.end()] = chance.choice(VALUES)


def other_line_end(data: bytearray, chance: random.Random) -> None:
    if ends := list(re.finditer(b"\r\n", data)):
        found = chance.choice(ends)
        data[found.start() : found.end()] = chance.choice(LINE_ENDS)


def other_lines(data: bytearray, chance: random.Random) -> None:
    """A line of the head twice, or gone, or in another's place; or one more."""
    head, end, body = bytes(data).partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    at = chance.randrange(len(lines))
    line = chance.choice((lines[at], lines[at].swapcase(), *chance.sample(LINES, 3)))
    lines[at : at + chance.choice((0, 1))] = chance.choice(([line], [line, line], [], [line]))
    data[:] = b"\r\n".join(lines) + end + body


WAYS: tuple[Way, ...] = (
    flip, cut, double, put_in, truncate, other_number, other_line_end, other_lines, other_value, other_value,
    other_value,
)  # fmt: skip


def mutated(seeds: list[bytes], number: int) -> bytes:
    """The request of this number."""
    chance = random.Random(f"{SEED}:{number}")  # noqa: S311 - repeatable, not secret
    seed, ways = chance.choice(seeds), (*WAYS, splice(seeds))
    head, end, body = seed.partition(b"\r\n\r\n")
    is_framed = bool(body) and b"content-length" in head and chance.random() < FRAMED
    data = bytearray(body if is_framed else seed)
    for _ in range(chance.choice((1, 1, 2, 3))):
        if data:
            chance.choice(ways)(data, chance)
    if not is_framed:
        return bytes(data)
    return re.sub(rb"(?i)content-length: \d+", b"content-length: %d" % len(data), head) + end + data


@dataclass
class Asked:
    """What the gateway's own parser says of a request: the methods of what is whole; whether anything is wrong."""

    methods: list[bytes] = field(default_factory=list)
    is_wrong: bool = False

    @classmethod
    def of(cls, data: bytes) -> Asked:
        asked = cls()
        parser = httptools.HttpRequestParser(asked)
        asked.on_message_complete = lambda: asked.methods.append(parser.get_method())  # type: ignore[attr-defined]
        parser = httptools.HttpRequestParser(asked)
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass
        except httptools.HttpParserError:
            asked.is_wrong = True
        return asked


HEAD = re.compile(rb"HTTP/1\.1 (\d{3}) [^\r\n]*\r\n((?:[^\r\n]+\r\n)*)\r\n")
LENGTH = re.compile(rb"(?i)content-length: (\d+)\r\n")


def answered(data: bytes, methods: list[bytes]) -> list[int]:
    """The statuses of the answers in it that are whole, but for interim ones."""
    statuses: list[int] = []
    at = 0
    while found := HEAD.match(data, at):
        status, at = int(found[1]), found.end()
        if status < 200:
            continue
        is_head = len(statuses) < len(methods) and methods[len(statuses)] == b"HEAD"
        if (length := LENGTH.search(found[2])) and not is_head:
            at += int(length[1])
        elif b"chunked" in found[2].lower() and not is_head:
            end = data.find(b"\r\n0\r\n\r\n", at)
            at = end + 7 if end >= 0 else len(data) + 1
        if at > len(data):
            break
        statuses.append(status)
    return statuses


async def exchange(port: int, data: bytes) -> tuple[list[int], str]:
    """The statuses of what was answered, and what is wrong with that."""
    asked = Asked.of(data)
    wanted = len(asked.methods) or asked.is_wrong
    received, problem, is_whole = b"", "", False
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(PATIENCE_SEC):
            writer.write(data)
            while True:
                if not is_whole and len(answered(received, asked.methods)) >= wanted:
                    is_whole = True
                    writer.write_eof()  # what is still to come is known never to come
                if not (more := await reader.read(262_144)):
                    break
                received += more
    except ConnectionError as error:
        problem = f"reset without an answer: {error!r}" if b"\r\n\r\n" in data else ""
    except TimeoutError:
        return [], f"neither answered nor closed: {received[:200]!r}"
    finally:
        writer.transport.abort()
    statuses = answered(received, asked.methods)
    if statuses:
        problem = "a 500" if 500 in statuses else ""
    elif wanted and not problem:
        problem = f"closed without an answer: {received[:200]!r}"
    return statuses, problem


@pytest.fixture(scope="module")
def willing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("mutated")
    with running(Willing()) as double:
        all_of_them = ["chat", "completions", "embeddings", "rerank", "images", "tts", "transcription"]
        write_files(home, double.url, supported_capabilities=all_of_them)
        classes = {"TTS_BACKEND_CLASS": "test", "TRANSCRIPTION_BACKEND_CLASS": "test", "IMAGES_MAX_PIXELS": "10000"}
        with gateway(home, None, **classes) as served:
            yield served


def test_mutated_requests(willing: Gateway) -> None:
    problems: list[str] = []
    statuses: Counter[int] = Counter()
    good = seeds(willing.client.get("/openapi.json").json())

    async def one(number: int) -> None:
        data = mutated(good, number)
        found, problem = await exchange(willing.port, data)
        statuses.update(found or [0])
        if problem:
            problems.append(f"TEST_SEED={SEED}, number {number}: {problem}; sent {data[:3000]!r}")

    async def some(numbers: Iterator[int]) -> None:
        for number in numbers:
            await one(number)

    async def batch(begin: int) -> None:
        numbers = iter(range(begin, min(begin + BATCH, COUNT)))
        await asyncio.gather(*(some(numbers) for _ in range(AT_ONCE)))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for begin in range(0, COUNT, BATCH):
            runner.run(batch(begin))
            assert willing.chat("echo").status_code == 200, f"no longer served after number {begin}"
            assert len(problems) < SHOWN, "\n".join(problems)
    print(f"{COUNT} requests, TEST_SEED={SEED}; answers by status, 0 for none: {dict(sorted(statuses.items()))}")
    assert not problems, "\n".join(problems)
    assert sum(count for status, count in statuses.items() if 200 <= status < 300) > COUNT / 50  # not all of them bad
    log = [json.loads(line) for line in willing.said.splitlines()]
    assert [line for line in log if line["level"] in ("error", "critical") or "traceback" in line] == []
