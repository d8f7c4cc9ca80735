"""Talks with a backend over real sockets: what is asked, paused, answered; and the leave when nobody waits any more."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from gateway.backends import converse as module
from gateway.backends.converse import converse, settled
from gateway.backends.protocols.base import AnswerError, ErrorStatus, json_object
from gateway.backends.protocols.steps import NOTHING, Abandoned, Ask, Pause, Reply, Steps
from gateway.backends.records import BackendRecord
from gateway.backends.slots import Backend
from gateway.wire.errors import UpstreamClosed

from tests.support import scripted
from tests.support.scripted import OK, Run, cancelled
from tests.support.waiting import until_async

LIMIT = 100


@asynccontextmanager
async def backend() -> AsyncIterator[tuple[scripted.Backend, Backend]]:
    async with scripted.backend() as server, scripted.pool(server) as pool:
        url = f"http://127.0.0.1:{server.port}"
        record = {"class": "test", "base_url": url, "supported_capabilities": ["images"], "api_key": "key"}
        yield server, Backend("test@here", BackendRecord.model_validate(record), pool)
        await settled()


def job(said: list[str]) -> Steps[bytes]:
    """Submits, polls once, and cancels what nobody waits for."""
    try:
        reply = yield Ask("POST", "/jobs", b"{}")
        said.append(str(reply.status))
        assert (yield Pause(0)) == NOTHING
        reply = yield Ask("GET", "/jobs/1")
        return reply.content()
    except Abandoned:
        yield Ask("DELETE", "/jobs/1")
        said.append("cancelled")
        raise


async def test_steps_are_asked_one_after_the_other() -> None:
    said: list[str] = []
    async with backend() as (server, known):
        talk = asyncio.create_task(converse(known, job(said), max_response_bytes=LIMIT))
        peer = await server.accept()
        first = await peer.answer(b"HTTP/1.1 201 OK\r\nContent-Length: 0\r\n\r\n")
        second = await peer.answer(OK)
        assert await talk == b"ok"
    assert first.startswith(b"POST /jobs HTTP/1.1\r\n")
    assert b"\r\nAuthorization: Bearer key\r\nContent-Type: application/json\r\n" in first
    assert first.endswith(b"\r\n\r\n{}")
    assert second.startswith(b"GET /jobs/1 HTTP/1.1\r\n")
    assert b"Content-Type" not in second
    assert said == ["201"]


async def test_cancelled_talk_takes_its_leave_in_the_background() -> None:
    said: list[str] = []
    aborted: list[bool] = []
    async with backend() as (server, known):
        steps, on_abort = job(said), lambda: aborted.append(True)
        talk = asyncio.create_task(converse(known, steps, max_response_bytes=LIMIT, on_abort=on_abort))
        peer = await server.accept()
        await peer.request()
        await cancelled(talk)
        await peer.gone()
        assert (said, aborted) == ([], [True])
        other = await server.accept()
        assert (await other.answer(OK)).startswith(b"DELETE /jobs/1 ")
        await settled()
        assert said == ["cancelled"]


@pytest.mark.parametrize("has_begun", [False, True])
async def test_failure_of_a_connection_takes_its_leave_too(has_begun: bool) -> None:
    """A talk that has begun is begun on no other host: it counts as sent twice."""
    said: list[str] = []
    async with backend() as (server, known):
        steps, on_abort = job(said), lambda: said.append("the gateway did not abort")
        talk = asyncio.create_task(converse(known, steps, max_response_bytes=LIMIT, on_abort=on_abort))
        peer = await server.accept()
        if has_begun:
            await peer.answer(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            peer = await server.accept()
        await peer.request()
        peer.reset()
        with pytest.raises(UpstreamClosed) as raised:
            await talk
        assert (raised.value.sendings > 1) == has_begun
        await (await server.accept()).answer(OK)
        await until_async(lambda: said[has_begun:] == ["cancelled"])


def test_leave_that_hangs_is_given_up(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "FAREWELL_SEC", 0.05)

    async def test() -> None:
        async with backend() as (server, known):
            talk = asyncio.create_task(converse(known, job([]), max_response_bytes=LIMIT))
            await (await server.accept()).request()
            await cancelled(talk)
            peer = await server.accept()
            await settled()
            await peer.gone()

    with caplog.at_level(logging.WARNING):
        run(test)
    assert "a job of backend 'test' was not cancelled" in caplog.text


async def test_steps_that_have_nothing_to_stop_end_at_once() -> None:
    def steps() -> Steps[None]:
        yield Ask("GET", "/")

    async with backend() as (server, known):
        talk = asyncio.create_task(converse(known, steps(), max_response_bytes=LIMIT))
        await (await server.accept()).request()
        await cancelled(talk)
        await settled()
        assert server.accepted == 1


@pytest.mark.parametrize(("status", "seen"), [(422, 400), (503, 503)])
async def test_a_refusal_has_its_status_and_words(status: int, seen: int) -> None:
    async with backend() as (server, known):
        talk = asyncio.create_task(converse(known, job([]), max_response_bytes=LIMIT))
        peer = await server.accept()
        await peer.answer(OK)
        await peer.answer(b'HTTP/1.1 %d X\r\nContent-Length: 16\r\n\r\n{"detail": "no"}' % status)
        with pytest.raises(ErrorStatus) as raised:
            await talk
        assert (raised.value.status, raised.value.body) == (seen, b'{"detail": "no"}')


DEEP = b'{"a":' * 1_000 + b"1" + b"}" * 1_000  # a parser takes it; json.dumps ends in a RecursionError


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"1", b"\xff", b'{"a":', DEEP])
def test_reply_that_is_no_json_object(body: bytes) -> None:
    with pytest.raises(AnswerError):
        Reply(200, body).json()
    with pytest.raises(AnswerError):
        json_object(body)
