"""Probes: what a backend may answer them, and that nothing it does holds them up."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from gateway.backends.health import Prober
from gateway.backends.records import BackendsFile
from gateway.backends.slots import Backend

from tests.support.gateways import environment, write_files
from tests.support.registries import record, registry
from tests.support.scripted import OK, backend
from tests.support.scripted import Backend as Server
from tests.support.waiting import until_async

MODELS = b'{"data": [{"id": "one"}, {"id": "two"}]}'
LISTED = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(MODELS), MODELS)
ENDLESS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@asynccontextmanager
async def probed(server: Server, longest: float = 5) -> AsyncIterator[Backend]:
    """A backend that is asked every 10 ms."""
    made = registry(a=record(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="secret"))
    prober = Prober(made, 0.01, longest)
    starting = asyncio.create_task(prober.start())
    try:
        yield made.backends[0]
    finally:
        await starting
        await prober.stop()


async def test_models_are_those_that_were_listed_last() -> None:
    async with backend() as server, probed(server) as one:
        peer = await server.accept()
        asked = await peer.answer(OK)
        assert asked.startswith(b"GET /health HTTP/1.1\r\n")
        assert b"authorization: bearer secret\r\n" in asked.lower()
        assert (await peer.answer(LISTED)).startswith(b"GET /v1/models HTTP/1.1\r\n")
        await until_async(lambda: one.last_check is not None)
        assert (one.models, one.healthy, one.ready, one.error) == (("one", "two"), True, True, None)


async def test_no_backends_are_probed_but_those_of_now() -> None:
    def probes() -> set[str]:
        return {name for task in asyncio.all_tasks() if (name := task.get_name()).startswith("probe ")}

    async with backend() as server:
        one = record(base_url=f"http://127.0.0.1:{server.port}/v1")
        made = registry(a=one)
        prober = Prober(made, 60, 5)
        await prober.start()
        assert probes() == {"probe a"}
        made.replace(BackendsFile({"b": one, "c": one}, {}), {})
        await until_async(lambda: probes() == {"probe b", "probe c"})
        await prober.stop()
        assert probes() == set()


@pytest.mark.parametrize(
    ("head", "error"),
    [
        (b"503 X", "/v1/models answered 503"),
        (b"307 X\r\nLocation: /health", "/v1/models answered 307, and no redirect is followed: correct the path"),
    ],
)
async def test_backend_that_lives_and_is_not_ready(head: bytes, error: str) -> None:
    async with backend() as server, probed(server) as one:
        peer = await server.accept()
        await peer.answer(OK)
        await peer.answer(b"HTTP/1.1 %b\r\nContent-Length: 0\r\n\r\n" % head)
        await until_async(lambda: one.last_check is not None)
        assert (one.healthy, one.ready, one.error) == (True, False, error)


async def test_connection_of_a_probe_is_no_request_s() -> None:
    """With every connection that requests may have in use, the backend is probed, and is ready."""
    async with backend() as server:
        made = registry(a=record(base_url=f"http://127.0.0.1:{server.port}/v1", max_connections=1))
        (one,) = made.backends
        asking = asyncio.create_task(one.pool.request(b"GET", b"/long", b""))
        busy = await server.accept()
        await busy.request()
        prober = Prober(made, 60, 5)
        starting = asyncio.create_task(prober.start())
        peer = await server.accept()
        await peer.answer(OK)
        await peer.answer(LISTED)
        await starting
        await until_async(lambda: one.last_check is not None)
        assert (one.ready, one.pool.open_connections, one.pool.waiting) == (True, 1, 0)
        await peer.gone()  # nothing is kept between two looks
        await busy.send(OK)
        assert await (await asking).read(2) == b"ok"
        await prober.stop()
        await one.pool.close()


@pytest.mark.parametrize("pause", [0.0, 0.02], ids=["a flood", "a trickle"])
async def test_an_answer_without_end_is_a_failure(monkeypatch: pytest.MonkeyPatch, pause: float) -> None:
    """Neither its bytes nor its time are taken without bound."""
    monkeypatch.setattr("gateway.backends.health.ANSWER_MAX_BYTES", 100_000)
    async with backend() as server, probed(server, longest=0.3 if pause else 60) as one:
        peer = await server.accept()
        await peer.request()
        await peer.send(ENDLESS)
        size = 1 if pause else 65_536
        while one.last_check is None:
            await peer.offer(b"%x\r\n%b\r\n" % (size, b"x" * size))
            await asyncio.sleep(pause)
        assert not one.ready
        why = " did not answer within 0.3 s" if pause else ": response body longer than 100000 bytes"
        assert one.error == "/health" + why
        await peer.gone()


SERVING = """
import asyncio, sys
import gateway.server
from gateway.app import App, load_settings

async def main():
    app = App(load_settings())
    await app.start()
    await app.stop()

asyncio.run(main())
print({"httpx", "requests", "opentelemetry.sdk", "opentelemetry.exporter"} & {*sys.modules})
"""


def test_no_second_http_client_and_no_tracing_is_in_the_serving_process(tmp_path: Path) -> None:
    write_files(tmp_path, "http://127.0.0.1:9/v1")
    done = subprocess.run(
        [sys.executable, "-c", SERVING], env=environment(tmp_path), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "set()\n"), done.stderr
