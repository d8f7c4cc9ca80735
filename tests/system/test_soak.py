"""Very many requests, a fifth of whose clients leave, in every phase: nothing of them is left.

All of `make test-heavy` are 200,000; `-s` shows the figures.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import uvloop

from tests.bench.load import Budget, Target, keep_busy
from tests.support.gateways import TOKEN, Gateway, gateway, write_files
from tests.support.hostile import deaf
from tests.support.neighbour import neighbour
from tests.support.sampling import IS_FULL, SEED
from tests.support.waiting import PATIENCE_SEC, until

COUNT = 200_000 if IS_FULL else 4_000
FIRST = COUNT // 10  # after so many memory is as it is to stay
ROUND = 1_000
LEAVERS = ROUND // 5
CLIENTS, LEAVING_AT_ONCE = 16, 32
CONNECTIONS = 64  # to a backend, also idle ones
MEMORY_KB = 3_000 if IS_FULL else 6_000  # a short run has not seen all that is kept once
LEAVE_WITHIN_SEC = 0.01

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="macOS does not tell what a process holds")


class Phase(NamedTuple):
    """What a leaver asks for, and what it waits for before it leaves; `share` of its request is sent."""

    model: str
    is_stream: bool = False
    waits_for: bytes = b""
    share: float = 1.0


PHASES = {
    "mid-upload": Phase("test:echo", share=0.7),
    "while the gateway dials": Phase("deaf:echo"),
    "waiting for a slot": Phase("queued:hang"),
    "before the first token": Phase("test:hang", is_stream=True),
    "mid-stream": Phase("test:hang-mid", is_stream=True, waits_for=b"data: "),
    "non-streaming": Phase("test:hang"),
}


@pytest.fixture
def soaked(tmp_path: Path) -> Iterator[Gateway]:
    with ExitStack() as stack:
        good, silent = stack.enter_context(neighbour()), stack.enter_context(deaf())
        limits: dict[str, Any] = {"concurrency_limits": {"chat": 512}, "max_connections": CONNECTIONS}
        queued = {"concurrency_limits": {"chat": 1}, "queue": {"max": 1000, "timeout_sec": 60}}
        others = {"deaf": {**limits, "base_url": f"http://127.0.0.1:{silent.port}/v1"}, "queued": {**limits, **queued}}
        write_files(tmp_path, good.url, others, **limits)
        settings = {"HEALTH_CHECK_INTERVAL_SEC": "600"}
        running = stack.enter_context(gateway(tmp_path, None, **settings))
        silent.stop_hearing()
        yield running


async def leave(target: Target, phase: Phase, chance: random.Random) -> None:
    request = target.request(model=phase.model, stream=phase.is_stream)
    reader, writer = await asyncio.open_connection("127.0.0.1", target.port)
    writer.write(request[: int(len(request) * phase.share)])
    if phase.waits_for:
        async with asyncio.timeout(PATIENCE_SEC):
            await reader.readuntil(phase.waits_for)
    else:
        await asyncio.sleep(chance.random() * LEAVE_WITHIN_SEC)
    if chance.random() < 0.5:
        writer.transport.abort()  # a reset
    writer.close()


async def one_round(target: Target, chance: random.Random) -> None:
    phases = iter([chance.choice(list(PHASES.values())) for _ in range(LEAVERS)])

    async def leavers() -> None:
        for phase in phases:
            await leave(target, phase, chance)

    budgets = [Budget((ROUND - LEAVERS) // 2, PATIENCE_SEC) for _ in range(2)]
    await asyncio.gather(
        *(
            keep_busy(target, budget, CLIENTS // 2, model="test:echo", stream=bool(n))
            for n, budget in enumerate(budgets)
        ),
        *(leavers() for _ in range(LEAVING_AT_ONCE)),
    )
    assert [budget.done for budget in budgets] == [budget.requests for budget in budgets]


def test_soak(soaked: Gateway) -> None:
    chance = random.Random(SEED)  # noqa: S311 - repeatable, not secret
    target = Target(soaked.port, TOKEN)
    begun, files_before, memory_then = time.monotonic(), soaked.open_files(), 0
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for done in range(ROUND, COUNT + ROUND, ROUND):
            runner.run(one_round(target, chance))
            if done == max(FIRST, ROUND):
                soaked.wait_until_idle()
                memory_then = soaked.resident_kb()
    soaked.wait_until_idle()
    print(f"{COUNT} requests, TEST_SEED={SEED}, {time.monotonic() - begun:.0f} s")
    print(f"memory {memory_then} kB after {max(FIRST, ROUND)}, now {soaked.resident_kb()}")
    print(f"files {files_before} before, now {soaked.open_files()}")
    assert soaked.chat("echo").status_code == 200
    until(
        lambda: soaked.resident_kb() <= memory_then + MEMORY_KB,
        f"{soaked.resident_kb()} kB are held",
    )
    until(lambda: soaked.open_files() <= files_before + CONNECTIONS + 16, f"{soaked.open_files()} files are open")
    stopped = time.monotonic()
    soaked.process.terminate()
    assert soaked.process.wait(PATIENCE_SEC) == 0
    print(f"ended {time.monotonic() - stopped:.2f} s after SIGTERM")
    log = [json.loads(line) for line in soaked.said.splitlines()]
    assert [line for line in log if line["level"] in ("error", "critical") or "traceback" in line] == []
