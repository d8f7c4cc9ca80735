"""Whatever one client or one backend does, a client beside it is served: each attack runs beside a well-behaved one.

After each attack the gateway's memory, its files and its slots are as before; after all of them it ends well when it is
told to. `-s` shows how late the worst answer was.
"""

from __future__ import annotations

import json
import re
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw
import pytest
import yaml

from tests.support.gateways import TOKEN, Gateway, gateway, write_files
from tests.support.hostile import NEAR, Deaf, Hostile, deaf, pour, reply
from tests.support.neighbour import Neighbour, neighbour
from tests.support.sockets import connect, read_until, send
from tests.support.upstream import running
from tests.support.waiting import PATIENCE_SEC, until

GREEDY, WALLED, ABSURD = (f"{name}-token-0123456789abcdef" for name in ("greedy", "walled", "absurd"))  # a test's own
LATE_MS = 250  # of the gateway's own computing while a good client waits for its answer, where a sum takes SUM_MS
SUM_MS = 12.5  # what `slowness` adds up took on the machine that the figure was asked of
TRIES = 3  # on a busy machine the same work now and then takes several times as long; what is wrong is so each time
MEMORY_KB = 100_000  # what may stay of an attack: the allocator keeps what it had, and ten such attacks take no more
FILES = 24  # idle connections to the backends among them
BODY_BYTES = 1_000_000
POURED_BYTES = 100_000_000  # 32 MiB are thrown away after an answer, and as much again the socket may hold
LEAVERS = 3_000
READER_KB = 4_000  # of an answer that its client does not take
HI = [{"role": "user", "content": "Hi"}]
PROXIED = "10.9.9.9"
CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="macOS does not tell what a process holds")


@dataclass
class House:
    """One gateway, between a good neighbour and all that is hostile."""

    gateway: Gateway
    neighbour: Neighbour
    hostile: Hostile
    deaf: Deaf
    home: Path

    def head(self, path: str = CHAT, *lines: str, token: str = TOKEN, host: str = "Host: x") -> bytes:
        """A POST's head without its end, and without what frames its body."""
        credentials = [f"Authorization: Bearer {token}"] if token else []
        return "\r\n".join([f"POST {path} HTTP/1.1", host, *credentials, *lines, ""]).encode()

    def whole(self, path: str, body: Any, *lines: str, token: str = TOKEN) -> bytes:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.head(path, *lines, token=token) + b"Content-Length: %d\r\n\r\n%b" % (len(data), data)

    def ask(self, path: str, body: Any, token: str = TOKEN) -> bytes:
        """The answer, on a connection of its own."""
        return reply(self.gateway.port, self.whole(path, body, "Connection: close", token=token))

    def chunked(self, trailer: str, *lines: str, token: str = TOKEN) -> bytes:
        """The answer to a chat in chunks with a trailer."""
        body = json.dumps({"model": "test:echo", "messages": HI}).encode()
        head = self.head(CHAT, "Connection: close", "Transfer-Encoding: chunked", *lines, token=token)
        chunks = b"\r\n%x\r\n%b\r\n0\r\n%b\r\n\r\n" % (len(body), body, trailer.encode())
        return reply(self.gateway.port, head + chunks)

    def cpu(self) -> float:
        """Seconds that the gateway's process has computed."""
        return time.clock_gettime((~self.gateway.process.pid << 3) | 2)

    def stored(self, caller: str) -> int:
        """The tokens of a caller in the database."""
        with closing(apsw.Connection(f"{self.home}/data/gateway.sqlite")) as connection:
            rows = connection.execute("SELECT sum(tokens) FROM token_usage WHERE caller = ?", (caller,))
            return next(rows)[0] or 0

    def metrics(self) -> str:
        return self.gateway.observe.get("/metrics").text


def slowness() -> float:
    """How many times as long as on that machine the same work takes here and now; 1 or more."""
    begun = time.process_time()
    sum(number * number for number in range(300_000))
    return max(1.0, (time.process_time() - begun) * 1000 / SUM_MS)


def status(answer: bytes) -> int:
    assert answer.startswith(b"HTTP/1.1 "), answer[:200]
    return int(answer[9:12])


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    home = tmp_path_factory.mktemp("attacked")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # the gateway inherits it
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        good, bad = stack.enter_context(neighbour()), stack.enter_context(running(Hostile()))
        many, silent = stack.enter_context(running(Hostile(models=10_000))), stack.enter_context(deaf())
        write_files(home, good.url)
        content = yaml.safe_load((home / "backends.yaml").read_text())
        here = content["backends"]["test@here"]
        there = {**here, "base_url": bad.url, "supported_capabilities": ["chat", "completions", "embeddings", "tts"]}
        narrow = {"concurrency_limits": {"chat": 1}}
        records = {
            "pair@a": here,
            "pair@b": here,
            "hostile": there,
            "native": {**there, "protocol": "ollama", "supported_capabilities": ["chat", "embeddings"]},
            "narrow": {**here, **narrow, "queue": {"max": 16, "timeout_sec": 60}},
            "wide": {**there, **narrow, "queue": {"max": LEAVERS, "timeout_sec": 60}},
            "moved": {**there, "concurrency_limits": {"chat": 4}},
            "many": {**here, "base_url": many.url},
            "deaf": {**here, "base_url": f"http://127.0.0.1:{silent.port}/v1", "optional": True},
        }
        for name, record in records.items():
            content["backends"][name] = {"max_connections": 64, **record, "class": name.partition("@")[0]}
        (home / "backends.yaml").write_text(yaml.safe_dump(content))
        alias = {"backend": "test", "model": "echo"}
        capped = {"default": alias, "capped": {**alias, "max_tokens_cap": 5, "temperature_cap": 1.0}}
        (home / "model_aliases.json").write_text(json.dumps({"aliases": capped}))
        policies = {
            GREEDY: {"name": "greedy"},
            ABSURD: {"name": "absurd"},
            WALLED: {"name": "walled", "ip_allowlist": PROXIED},
        }
        served = stack.enter_context(
            gateway(
                home,
                None,
                GATEWAY_BEARER_TOKENS=",".join([TOKEN, *policies]),
                GATEWAY_TOKEN_POLICIES_JSON=json.dumps(policies),
                TRUST_PROXY_CIDRS="127.0.0.1",
                TTS_BACKEND_CLASS="hostile",
                HEALTH_CHECK_INTERVAL_SEC="600",
            )
        )
        house = House(served, good, bad, silent, home)
        with good.asking(served.port, served.process.pid, TOKEN, "test:echo"):
            for path, body in BODIES.values():  # what is loaded and kept once is not an attack's
                house.ask(path, {**body, "model": "hostile:m"})
                house.ask("/v1/chat/completions", {"model": "hostile:pieces", "messages": HI, "stream": True})
        yield house


Act = Callable[[House], None]
ATTACKS: dict[str, tuple[Act, str]] = {}


def attack(name: str, neighbour_asks: str = "test:echo") -> Callable[[Act], Act]:
    """Enters an attack into the table, and what model the good client asks for beside it."""

    def enter(act: Act) -> Act:
        ATTACKS[name] = act, neighbour_asks
        return act

    return enter


# --- what follows a head (rows 1, 2, 5)


FRAMED = b"Transfer-Encoding: chunked\r\n\r\n"


def without_end(house: House, block: bytes, begin: bytes = b"") -> None:
    """On each listener, with a token and without one."""
    health = b"GET /health HTTP/1.1\r\nHost: x\r\n" + FRAMED
    for port, head, expected in (
        (house.gateway.port, house.head(token="") + FRAMED, {401}),
        (house.gateway.port, health, {200, 400, 431}),
        (house.gateway.observe_port, health, {200, 400, 431}),
        (house.gateway.port, house.head() + FRAMED, {400, 413, 431}),
    ):
        with connect(port) as connection:
            connection.sendall(head + begin)
            sent, answer = pour(connection, block, POURED_BYTES)
        assert sent < POURED_BYTES, "there is no bound"
        assert status(answer) in expected, head


@attack("trailers without end")
def trailers_without_end(house: House) -> None:
    without_end(house, b"X-Many: 1234567890\r\n" * 3000, b"2\r\n{}\r\n0\r\n")


@attack("one trailer without end")
def trailer_without_end(house: House) -> None:
    without_end(house, b"x" * 60_000, b"2\r\n{}\r\n0\r\nX-Long: ")


@attack("chunk extensions without end")
def extension_without_end(house: House) -> None:
    without_end(house, b"x" * 60_000, b"2;x=")


@attack("trailers that would be headers")
def trailers_as_headers(house: House) -> None:
    assert status(house.chunked(f"Authorization: Bearer {TOKEN}", token="")) == 401
    assert status(house.chunked(f"X-Api-Key: {TOKEN}", "Trailer: X-Api-Key", token="")) == 401
    assert status(house.chunked("X-Nothing: 1", token=WALLED)) == 403
    assert status(house.chunked(f"X-Forwarded-For: {PROXIED}", token=WALLED)) == 403
    answer = house.chunked("X-Backend: hostile\r\nX-Request-Id: of-the-trailer\r\nContent-Encoding: gzip")
    assert status(answer) == 200
    assert b"x-backend-used: test\r\n" in answer
    assert b"of-the-trailer" not in answer


@attack("heads of two meanings")
def heads_of_two_meanings(house: House) -> None:
    body = json.dumps({"model": "test:echo", "messages": HI}).encode()
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    length = b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
    close = "Connection: close"
    for request in (
        house.head(CHAT, close, "Transfer-Encoding: gzip, chunked") + b"\r\n" + chunks,
        house.head(CHAT, close, "Transfer-Encoding: gzip", "Transfer-Encoding: chunked") + b"\r\n" + chunks,
        house.head(CHAT, close, "Host: y") + length,
        house.head(CHAT, close, "Host: x") + length,
        house.head(CHAT, close, host="X-No-Host: x") + length,
    ):
        assert status(reply(house.gateway.port, request)) in (400, 501), request
    older = house.head(CHAT, host="X-No-Host: x").replace(b"HTTP/1.1", b"HTTP/1.0") + length
    assert status(reply(house.gateway.port, older)) == 200


@attack("tiny chunks after a refusal")
def tiny_chunks(house: House) -> None:
    for token, expected in (("", 401), (TOKEN, 413)):
        with connect(house.gateway.port) as connection:
            connection.sendall(house.head(token=token) + FRAMED)
            sent, answer = pour(connection, b"1\r\nx\r\n" * 10_000, 4 * POURED_BYTES)
        assert sent < 4 * POURED_BYTES, "there is no bound"
        assert status(answer) == expected


# --- clients that leave, or do not read (rows 3, 7)


@attack("leaving while the gateway dials")
def leaving_in_the_dial(house: House) -> None:
    house.deaf.stop_hearing()
    for _ in range(20):
        with send(house.gateway.port, CHAT, {"model": "deaf:echo", "messages": HI}):
            until(lambda: house.gateway.held() == 1, "it is not admitted")
        until(lambda: house.gateway.held() == 0, "its slot is held")


@attack("leaving at once")
def leaving_at_once(house: House) -> None:
    for number in range(500):
        body = {"model": "test:hang", "messages": HI, "stream": bool(number % 2)}
        send(house.gateway.port, CHAT, body).close()


@attack("leaving with a request behind")
def leaving_with_one_behind(house: House) -> None:
    for model in ("hostile:endless", "hostile:hang"):
        body = {"model": model, "messages": HI, "stream": True}
        for _ in range(20):
            with send(house.gateway.port, CHAT, body) as connection:
                connection.sendall(house.whole(CHAT, body) + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
                if model == "hostile:endless":
                    read_until(connection, b"data: ")


@attack("a crowd that leaves the queue")
def crowd_that_leaves(house: House) -> None:
    crowd = house.whole(CHAT, {"model": "wide:hang", "messages": HI}, token=GREEDY)
    with ExitStack() as stack:
        for number in range(LEAVERS):
            stack.enter_context(connection := connect(house.gateway.port))
            connection.sendall(crowd)
            if number % 500 == 0:
                until(lambda number=number: house.gateway.held() > number, "it is not admitted")  # type: ignore[misc]
        until(lambda: house.gateway.held() >= LEAVERS - 50, "they do not wait")


@attack("a queue that one token fills", "narrow:slow")
def greedy_queue(house: House) -> None:
    request = house.whole(CHAT, {"model": "narrow:slow", "messages": HI}, token=GREEDY)
    ends = time.monotonic() + 2

    def again(_: int) -> list[int]:
        statuses = []
        with connect(house.gateway.port) as connection:
            while time.monotonic() < ends:
                connection.sendall(request)
                statuses.append(status(read_until(connection, b"}}")))
        return statuses

    with ThreadPoolExecutor(40) as threads:
        statuses = [one for some in threads.map(again, range(40)) for one in some]
    assert set(statuses) <= {200, 429}
    assert 429 in statuses  # it did fill it


@attack("clients that do not read")
def slow_readers(house: House) -> None:
    before = house.gateway.resident_kb()
    with ExitStack() as stack:
        body = {"model": "hostile:endless", "messages": HI, "stream": True}
        some = [stack.enter_context(send(house.gateway.port, CHAT, body, buffer=4096)) for _ in range(40)]
        for one in some:
            read_until(one, b"data: ")
        time.sleep(1)  # the pace of the attack
        print(f"{house.gateway.resident_kb() - before} kB held")
        assert house.gateway.resident_kb() - before < 40 * READER_KB


# --- bodies (row 4)


def items(item: str, last: str = "5") -> bytes:
    """A list that is as long as a body may be, and wrong at its end."""
    return ("[" + f"{item}," * ((BODY_BYTES - 1000) // (len(item) + 1)) + f"{last}]").encode()


TURN = json.dumps(HI[0])
FUNCTIONS = [{"type": "function", "function": {"name": f"f{number}"}} for number in range(11_000)]
FLAT = [{"type": "function", "name": f"f{number}"} for number in range(11_000)]
ALLOWED = {"type": "allowed_tools", "mode": "auto"}
BODIES_OF_1_MB: dict[str, tuple[str, bytes]] = {
    "prompts of objects": ("/v1/completions", b'{"model":"test:echo","prompt":%b}' % items("{}")),
    "inputs of lists": ("/v1/embeddings", b'{"model":"test:echo","input":%b}' % items("[5]", '"x"')),
    "messages of numbers": (CHAT, b'{"model":"test:echo","messages":%b}' % items("5")),
    "messages of objects": (CHAT, b'{"model":"test:echo","messages":%b}' % items("{}")),
    "Anthropic's messages of numbers": (MESSAGES, b'{"model":"test:echo","max_tokens":5,"messages":%b}' % items("5")),
    "items of numbers": (RESPONSES, b'{"model":"test:echo","input":%b}' % items("5")),
    "items of objects": (RESPONSES, b'{"model":"test:echo","input":%b}' % items("{}")),
    "parts of numbers": (CHAT, b'{"model":"test:echo","messages":[{"role":"user","content":%b}]}' % items("5")),
    "documents of numbers": ("/v1/rerank", b'{"model":"test:echo","query":"x","documents":%b}' % items("5")),
    "many messages": (CHAT, b'{"model":"test:echo","messages":%b}' % items(TURN, TURN)),
    "many messages under an alias with caps": (CHAT, b'{"model":"capped","messages":%b}' % items(TURN, TURN)),
    "many items": (RESPONSES, b'{"model":"test:echo","input":%b}' % items(TURN, TURN)),
    "many of Anthropic's messages": (
        MESSAGES,
        b'{"model":"test:echo","max_tokens":5,"messages":%b}' % items(TURN, TURN),
    ),
    "stops of numbers": (CHAT, b'{"model":"test:echo","messages":[],"stop":%b}' % items("5")),
    "tools of numbers": (CHAT, b'{"model":"test:echo","messages":[],"tools":%b}' % items("5")),
    "allowed tools": (
        CHAT,
        json.dumps(
            {
                "model": "test:echo",
                "messages": HI,
                "tools": FUNCTIONS,
                "tool_choice": {**ALLOWED, "allowed_tools": {"mode": "auto", "tools": FUNCTIONS[:6000]}},
            },
            separators=(",", ":"),
        ).encode(),
    ),
    "allowed tools of responses": (
        RESPONSES,
        json.dumps(
            {"model": "test:echo", "input": "Hi", "tools": FLAT, "tool_choice": {**ALLOWED, "tools": FLAT}},
            separators=(",", ":"),
        ).encode(),
    ),
    "deep fields under an alias with caps": (
        CHAT,
        json.dumps({"model": "capped", "messages": HI, "x": 0}).encode()[:-2]
        + b"[%b0]}" % ((b"[" * 190 + b"]" * 190 + b",") * 2600),
    ),
    "many fields under an alias with caps": (
        CHAT,
        json.dumps({"model": "capped", "messages": HI, **{f"x{number}": [[]] for number in range(50_000)}}).encode(),
    ),
    "many spaces under an alias with caps": (
        CHAT,
        b'{"model":"capped","messages":[{"role":"user","content":"Hi"}]' + b" " * 900_000 + b"}",
    ),
}
assert all(len(body) < BODY_BYTES for _, body in BODIES_OF_1_MB.values())


def body_of_1_mb(path: str, body: bytes) -> Act:
    def act(house: House) -> None:
        for _ in range(3):
            assert status(house.ask(path, body)) < 500
            time.sleep(0.03)  # so that no answer of another's waits for two of them

    return act


for _name, (_path, _body) in BODIES_OF_1_MB.items():
    attack(_name)(body_of_1_mb(_path, _body))


@attack("names that are near to 10,000")
def near_names(house: House) -> None:
    for number in range(3):
        assert status(house.ask(CHAT, {"model": f"{NEAR}{number}x", "messages": HI})) == 404
        time.sleep(0.03)


# --- what one backend does (rows 6, 12, 13, 14, 15)


def poison(model: str) -> Act:
    def act(house: House) -> None:
        asked = house.neighbour.count("poison")
        for _ in range(15):
            assert status(house.ask(CHAT, {"model": model, "messages": HI})) in (502, 503)
            time.sleep(0.05)  # the pace of the attack
        assert house.neighbour.count("poison") - asked <= 2 * 15, "more than one failover"

    return act


attack("a request that its backend breaks off")(poison("test:poison"))
attack("a request that both backends break off", "pair:echo")(poison("pair:poison"))

BODIES: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, {"messages": HI}),
    "responses": (RESPONSES, {"input": "Hi"}),
    "messages": (MESSAGES, {"messages": HI, "max_tokens": 64}),
}


def streamed(model: str, path: str, body: dict[str, Any]) -> Act:
    def act(house: House) -> None:
        answer = house.ask(path, {**body, "model": model, "stream": True})
        assert status(answer) in (200, 502)
        assert answer.endswith((b"0\r\n\r\n", b"}"))

    return act


for _name, (_path, _fields) in BODIES.items():
    attack(f"{_name}: blank lines")(streamed("hostile:blank", _path, _fields))
    attack(f"{_name}: pieces of two calls by turns")(streamed("hostile:pieces", _path, _fields))


@attack("an answer of 48 MB")
def big_answer(house: House) -> None:
    for path, body in BODIES.values():
        assert status(house.ask(path, {**body, "model": "hostile:big"})) in (200, 502)


@attack("vectors of Ollama, 500 of 4096")
def many_vectors(house: House) -> None:
    for fields in ({}, {"encoding_format": "base64"}):
        body = {"model": "native:late", "input": ["x"] * 500, **fields}
        assert status(house.ask("/v1/embeddings", body)) == 200


@attack("speech that dies before a request behind it")
def pipelined_speech(house: House) -> None:
    speech = house.whole("/v1/audio/speech", {"model": "dies", "input": "Hi", "voice": "joe"}, "X-Request-Id: speech-1")
    reply(house.gateway.port, speech + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    entry = house.gateway.log_entry(lambda entry: entry["request_id"] == "speech-1")
    assert entry["abort_reason"]


@attack("more tokens than there are")
def absurd_usage(house: House) -> None:
    """So many within the second after which counts are stored that their sum is beyond what a database holds."""
    for path, body in BODIES.values():
        assert status(house.ask(path, {**body, "model": "native:late"})) in (200, 502)
    request = house.whole(CHAT, {"model": "hostile:absurd", "messages": HI}, token=ABSURD)

    def again(_: int) -> None:
        with connect(house.gateway.port) as connection:
            for _ in range(10):
                connection.sendall(request * 20)
                read_until(connection, b"HTTP/1.1 200", 20)

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(again, range(16)))
    stored = house.stored("greedy")
    house.ask(CHAT, {"model": "test:echo", "messages": HI}, token=GREEDY)
    until(lambda: house.stored("greedy") == stored + 2, "counts are no longer stored")


# --- names and pages (rows 11, 17)


@attack("error codes of 50 kB")
def error_codes(house: House) -> None:
    for number in range(40):
        for stream, expected in ((False, 400), (True, 200)):
            body = {"model": f"hostile:code-{number}-{stream}", "messages": HI, "stream": stream}
            assert status(house.ask(CHAT, body)) == expected
    assert len(house.metrics()) < 500_000


@attack("models that are made up")
def made_up_models(house: House) -> None:
    for number in range(250):
        assert status(house.ask(CHAT, {"model": f"hostile:made-up-{number}", "messages": HI})) == 200
    assert status(house.ask(CHAT, {"model": "hostile:late", "messages": HI})) == 200
    assert re.search('backend_class="hostile",.*model="late"', house.metrics())


@attack("methods that are odd")
def odd_methods(house: House) -> None:
    for line in ("CONNECT x", "CONNECT x:443", "CONNECT /v1/models", "OPTIONS *", "TRACE /", "PRI *", "M-SEARCH *"):
        request = f"{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        assert 400 <= status(reply(house.gateway.port, request.encode())) < 500


@attack("the OpenAPI page again and again")
def page_again(house: House) -> None:
    def cost(path: str) -> float:
        request = f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        with connect(house.gateway.port) as connection:
            before = house.cpu()
            for _ in range(100):
                connection.sendall(request)
                head, _, body = read_until(connection, b"\r\n\r\n").partition(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head)
                assert length is not None
                missing = int(length[1]) - len(body)
                while missing > 0:
                    missing -= len(connection.recv(missing))
            return house.cpu() - before

    assert cost("/openapi.json") < 10 * cost("/health")


@attack("reloads while requests are under way")
def reload_storm(house: House) -> None:
    request = house.whole(CHAT, {"model": "moved:slow", "messages": HI}, "Connection: close")
    path = house.home / "backends.yaml"
    content = yaml.safe_load(path.read_text())
    with ThreadPoolExecutor(32) as threads:
        asked = []
        for number in range(20):
            content["backends"]["moved"]["description"] = f"edited {number}"
            path.with_suffix(".new").write_text(yaml.safe_dump(content))
            path.with_suffix(".new").replace(path)
            house.gateway.process.send_signal(signal.SIGHUP)
            asked += [threads.submit(reply, house.gateway.port, request) for _ in range(8)]
            time.sleep(0.03)  # the pace of the attack
        statuses = [status(one.result()) for one in asked]
    assert set(statuses) <= {200, 429}
    assert 200 in statuses
    assert house.hostile.most <= 4


# --- each beside the good client


@pytest.mark.parametrize("name", ATTACKS)
def test_beside_a_good_client(house: House, name: str) -> None:
    act, model = ATTACKS[name]
    until(lambda: house.gateway.held() == 0, "a slot is held from before")
    memory, files, said = house.gateway.resident_kb(), house.gateway.open_files(), len(house.gateway.said)
    worst: list[float] = []
    while len(worst) < TRIES and min(worst, default=LATE_MS + 1) > LATE_MS:
        with house.neighbour.asking(house.gateway.port, house.gateway.process.pid, TOKEN, model) as report:
            act(house)
        worst.append(report.worst_cpu_ms / slowness())
        print(f"{report.answers} answers, the worst {report.worst_cpu_ms} ms of CPU, {report.worst_wall_ms} ms in all")
        assert report.problems[:3] == []
        assert report.answers > 0
    assert min(worst) <= LATE_MS
    assert "Traceback" not in house.gateway.said[said:]
    until(lambda: house.gateway.held() == 0, "a slot is held")
    try:
        until(lambda: house.gateway.resident_kb() <= memory + MEMORY_KB, "the memory is not back", PATIENCE_SEC)
        until(lambda: house.gateway.open_files() <= files + FILES, "the files are not closed")
    finally:
        print(f"memory {memory} kB before, now {house.gateway.resident_kb()}")
        print(f"files {files} before, now {house.gateway.open_files()}")
