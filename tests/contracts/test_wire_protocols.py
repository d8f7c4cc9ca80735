"""Each wire protocol in golden turns: what a backend is asked for a client's request, and what the client is told.

A turn is a file `wire_protocols/<protocol>/<capability>[-<variant>].txt` of parts that begin with `--- `: the client's
request; then in turn what the backend was `asked` and what it `answered`; and last what the client was `told`. The
request and the answers are written by hand; UPDATE_GOLDEN=1 writes the other parts as they are now. A protocol that
lists its models as OpenAI's does is played OpenAI's turns of each capability that has no turn of the protocol's own.
docs/compatibility.md has the fields of the requests: a turn of a protocol's own proves them, or the refusal of one.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gateway.backends.protocols import BY_NAME, PROTOCOLS, openai
from gateway.backends.protocols.wire_protocol import WireProtocol

from tests.support.in_process import InProcess, http, in_process, shared
from tests.support.waiting import PATIENCE_SEC

GOLDEN = Path(__file__).parent / "wire_protocols"
PAGE = Path(__file__).parents[2] / "docs/add-a-protocol.md"
PROBED = b'{"data": [{"id": "m"}], "models": [{"name": "m"}]}'
IS_LIKE_OPENAI = {each.name: each.models is openai.MODELS for each in PROTOCOLS}
# By protocol: its name, what follows the host in base_url, and all its capabilities.
BACKENDS = {
    each.name: (each.name, "/v1" if IS_LIKE_OPENAI[each.name] else "", sorted(each.capabilities)) for each in PROTOCOLS
}
# What is new in every turn.
VOLATILE = [
    (re.compile(rb"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"), b"UUID"),
    (re.compile(rb"\b(chatcmpl-|cmpl-|call_|music-)[0-9a-f]{16,24}\b"), rb"\1ID"),
    (re.compile(rb"task\([0-9a-f]{32}\)"), b"task(ID)"),
    (re.compile(rb'"created":\d{10}\b'), b'"created":0'),
    (re.compile(rb'"upstream_latency_ms":[\d.]+'), b'"upstream_latency_ms":0'),
    (re.compile(rb"Backend '\w+'"), b"Backend 'NAME'"),
    (re.compile(rb"http://127\.0\.0\.1:\d+"), b"http://backend"),
]
Part = tuple[str, bytes]


def turns() -> Iterator[tuple[str, str, Path]]:
    """Protocol, capability, file."""
    for each in PROTOCOLS:
        own = {path: path.stem.partition("-")[0] for path in sorted((GOLDEN / each.name).glob("*.txt"))}
        if IS_LIKE_OPENAI[each.name] and each is not openai.PROTOCOL:
            shared = (GOLDEN / openai.PROTOCOL.name).glob("*.txt")
            found = {path: path.stem.partition("-")[0] for path in sorted(shared)}
            missing = each.capabilities - set(own.values())
            own |= {path: capability for path, capability in found.items() if capability in missing}
        yield from ((each.name, capability, path) for path, capability in own.items())


TURNS = list(turns())


def read(turn: bytes) -> list[Part]:
    """The parts of a turn: what stands behind `--- `, and the lines below it but for the last line's end."""
    parts = re.split(rb"^--- (.*)\n", turn, flags=re.MULTILINE)[1:]
    return [(head.decode(), body.removesuffix(b"\n")) for head, body in zip(parts[::2], parts[1::2], strict=True)]


def proofs(protocol: str, path: Path) -> Iterator[pytest.MarkDecorator]:
    """Of fields with a kind of backend that only doubles stand for; for others servers do, scripted or their own."""
    (request, body), *_, (told, answer) = read(path.read_bytes())
    is_other = path.parent.name != protocol
    if is_other or (protocol in ("openai", "llamacpp") and not path.stem.startswith("images")):
        return
    fields, is_refused = [], told.startswith("told 400 ")
    if is_refused:
        fields = [name for name in [json.loads(answer)["error"]["param"]] if name]
    elif told.startswith("told 200 "):
        given = {name: value for name, value in json.loads(body).items() if value is not None}
        fields = [name for name in given if name != "own_field"]  # which no API has
    if fields:
        yield pytest.mark.proves(request.split(" ")[1], *fields, backend=protocol, refused=is_refused)


def settled(text: bytes) -> bytes:
    for pattern, instead in VOLATILE:
        text = pattern.sub(instead, text)
    return text


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[asyncio.Runner, InProcess]]:
    """One gateway in front of a backend of each wire protocol, its class named like it."""
    settings: Any = {"model_aliases_json": "{}", "images_http_timeout_sec": 9}
    with shared(tmp_path_factory.mktemp("turns"), lambda *_: http(PROBED), BACKENDS, **settings) as opened:
        yield opened


async def played(gateway: InProcess, parts: list[Part], backend: str) -> list[Part]:
    """The turn as it is now: the request and the answers as given, between them what was asked and told."""
    (request, body), *rest = parts
    _, path, *content_type = request.split(" ", 2)
    told = [parts[0]]
    answers = iter([part for part in rest if part[0].startswith("answered ")])

    def answer(method: str, path: str, body: bytes) -> bytes:
        told.append((f"asked {settled(f'{method} {path}'.encode()).decode()}", settled(body)))
        head, content = next(answers, ("answered 500 text/plain", b"the turn has no answer to this"))
        told.append((head, content))
        _, status, media = head.split(" ", 2)
        return http(content, int(status), media)

    gateway.double.answer = answer
    if content_type and content_type[0].startswith("multipart/"):
        body = body.replace(b"\n", b"\r\n")
    headers = [(b"x-backend", backend.encode()), (b"content-type", "".join(content_type).encode())]
    answered = await gateway.post(path, body, headers)
    media = answered.headers.get(b"content-type", b"").decode()
    return [*told, (f"told {answered.status} {media}", settled(answered.body))]


@pytest.mark.parametrize(
    ("protocol", "path"),
    [pytest.param(name, path, id=f"{name}-{path.stem}", marks=[*proofs(name, path)]) for name, _, path in TURNS],
)
def test_golden_turn(house: tuple[asyncio.Runner, InProcess], protocol: str, path: Path) -> None:
    runner, gateway = house
    golden = read(path.read_bytes())
    now = runner.run(asyncio.wait_for(played(gateway, golden, protocol), PATIENCE_SEC))
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_bytes(b"".join(b"--- %b\n%b\n" % (head.encode(), body) for head, body in now))
    assert gateway.settle() == 0
    assert gateway.alarms.told == []
    assert now == read(path.read_bytes())


def test_every_capability_of_every_protocol_has_a_turn() -> None:
    wanted = {(each.name, capability) for each in PROTOCOLS for capability in each.capabilities}
    assert {(protocol, capability) for protocol, capability, _ in TURNS} == wanted
    assert {path for _, _, path in TURNS} == set(GOLDEN.rglob("*.txt"))


def test_the_page_adds_a_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, turn = re.findall(r"```(?:python)?\n(.*?)```", PAGE.read_text(), re.DOTALL)[:2]
    added: dict[str, WireProtocol] = {}
    exec(source, added)  # noqa: S102 - our own page
    protocol = added["PROTOCOL"]
    monkeypatch.setitem(BY_NAME, protocol.name, protocol)

    async def added_and_played() -> list[Part]:
        backends = {protocol.name: (protocol.name, "", sorted(protocol.capabilities))}
        async with in_process(tmp_path, lambda *_: http(PROBED), backends, model_aliases_json="{}") as gateway:
            return await played(gateway, read(turn.encode()), protocol.name)

    *_, (asked, body), _, (told, events) = asyncio.run(added_and_played())
    assert (asked, body) == ("asked POST /say", b'{"bird":"polly","text":"pretty bird"}')
    assert told == "told 200 text/event-stream"
    assert [line.partition(b'"content":')[2][:9] for line in events.splitlines()[:4:2]] == [b'"pretty "', b'"bird "},']
    assert events.endswith(b"\n\ndata: [DONE]\n\n")
