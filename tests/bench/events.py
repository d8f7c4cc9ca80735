"""Measurements of single events: each carries its number and when the upstream sent it, so that none is lost unseen."""

from __future__ import annotations

import asyncio
import contextlib
import re
import statistics
import time
from typing import cast

from tests.bench.load import Budget, Target, keep_busy
from tests.bench.measures import Bounds
from tests.bench.results import NEVER
from tests.bench.subjects import Subject
from tests.bench.upstream import STAMPED_PACE

STREAMS = 256
BESIDE = 64
PROMPT_BYTES = 900_000
STAMP = re.compile(rb'"content": ?" (\d+) (\d+\.\d+)"')
PATIENCE = 30.0  # seconds beyond a stream's own length after which what has not come counts as lost


class Watcher(asyncio.Protocol):
    """One connection with one stamped stream on it; notes when each event came."""

    def __init__(self, target: Target, events: int) -> None:
        self.request = target.request(model="stamped", stream=True, max_tokens=events)
        self.events = events
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.buffer = b""
        self.came: list[tuple[float, float]] = []  # CLOCK_MONOTONIC: when it was sent, when it came

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        data = self.buffer + data
        end = 0
        for found in STAMP.finditer(data):
            end = found.end()
            if int(found[1]) == len(self.came):  # in its place: one that was lost, or came twice, is not made up for
                self.came.append((float(found[2]), now))
        self.buffer = data[end:][-4096:]
        if len(self.came) == self.events:
            self.transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.finished.done():
            self.finished.set_result(None)


async def watch(target: Target, streams: int, events: int) -> list[Watcher]:
    """Open so many stamped streams at once; they go on by themselves."""
    loop = asyncio.get_running_loop()
    opening = [
        loop.create_connection(lambda: Watcher(target, events), "127.0.0.1", target.port) for _ in range(streams)
    ]
    return [watcher for _, watcher in await asyncio.gather(*opening)]


async def paced_streams(subject: Subject, bounds: Bounds) -> tuple[int, float]:
    """Events lost of 256 streams at once, and the worst lateness of those that came, in paces."""
    watchers = await watch(subject.target, STREAMS, bounds.events)
    await asyncio.wait([each.finished for each in watchers], timeout=bounds.events * STAMPED_PACE + PATIENCE)
    for each in watchers:
        each.transport.abort()
    await asyncio.wait([each.finished for each in watchers])
    lost = sum(each.events - len(each.came) for each in watchers)
    worst = max((came - sent for each in watchers for sent, came in each.came), default=PATIENCE)
    return lost, worst / STAMPED_PACE


async def delay_beside_prompts_ms(subject: Subject, bounds: Bounds) -> float:
    """Worst delay of the events of 64 streams while prompts of 900 kB pass, beyond their median delay before.

    results.NEVER when the subject is so far behind with the streams alone that it answers no prompt.
    """
    watchers = await watch(subject.target, BESIDE, 1_000_000)
    await asyncio.sleep(1.0)  # streams begin, which is not what is measured
    quiet_from = time.monotonic()
    await asyncio.sleep(1.0)
    busy_from = time.monotonic()
    budget = Budget(bounds.prompts, bounds.seconds)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(bounds.seconds + PATIENCE):
            await keep_busy(subject.target, budget, 1, prompt=prompt())
    busy_until = time.monotonic()
    await asyncio.sleep(0.5)
    for each in watchers:
        each.transport.abort()
    await asyncio.wait([each.finished for each in watchers])
    stamps = [stamp for each in watchers for stamp in each.came]
    quiet = [came - sent for sent, came in stamps if quiet_from <= sent < busy_from]
    busy = [came - sent for sent, came in stamps if busy_from <= sent < busy_until]
    if not quiet or not busy or not budget.done:
        return NEVER
    return (max(busy) - statistics.median(quiet)) * 1000


def prompt() -> str:
    """Text with what JSON must escape, so that reading it costs what reading a real document does."""
    line = 'He said: "the quick brown fox jumps over the lazy dog", and it did.\n'
    return line * (PROMPT_BYTES // (len(line) + 3))
