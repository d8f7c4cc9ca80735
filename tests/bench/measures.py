"""The measurements, one function for each row or group of rows. Each takes a running subject and returns figures."""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import orjson

from tests.bench.load import Budget, Target, keep_busy, once
from tests.bench.processes import cpu_seconds, resident_megabytes
from tests.bench.results import NEVER
from tests.bench.subjects import Subject

POLL = 0.0005
LIMIT = 30.0  # seconds after which a leaving that the upstream has not seen counts as never seen


@dataclass(frozen=True)
class Bounds:
    """How much is sent. Every run ends at its count or at its seconds, whichever comes first."""

    rounds: int
    requests: int
    streams: int
    latencies: int
    leavings: int
    memory: int
    events: int  # of each paced stream
    prompts: int
    seconds: float
    memory_seconds: float


FULL = Bounds(3, 80_000, 1280, 2000, 20, 100_000, 250, 40, 10, 60)
QUICK = Bounds(1, 20_000, 256, 500, 5, 10_000, 100, 10, 3, 10)


async def requests_per_cpu_second(subject: Subject, bounds: Bounds) -> float:
    """Non-streaming chats of 16 keep-alive clients, for each second of the subject's CPU."""
    await keep_busy(subject.target, Budget(bounds.requests // 20, 1), 16)
    budget = Budget(bounds.requests, bounds.seconds)
    before = cpu_seconds(subject.pid)
    await keep_busy(subject.target, budget, 16)
    return budget.done / (cpu_seconds(subject.pid) - before)


async def stream_cpu_ms(subject: Subject, bounds: Bounds) -> float:
    """CPU in ms for a stream of 33 events paced 10 ms, 64 at a time."""
    budget = Budget(bounds.streams, bounds.seconds)
    before = cpu_seconds(subject.pid)
    await keep_busy(subject.target, budget, 64, stream=True)
    return (cpu_seconds(subject.pid) - before) * 1000 / budget.done


async def added_latency_ms(subject: Subject, upstream: Target, bounds: Bounds) -> float:
    """Median latency of one client through the subject minus the median direct to the upstream, in turns."""
    through = Budget(bounds.latencies, bounds.seconds)
    direct = Budget(bounds.latencies, bounds.seconds)
    share = bounds.latencies // 10
    for _ in range(10):
        for target, total in ((upstream, direct), (subject.target, through)):
            part = Budget(share, bounds.seconds / 10)
            await keep_busy(target, part, 1)
            total.latencies += part.latencies
    return (through.median_latency() - direct.median_latency()) * 1000


async def memory_mb(subject: Subject, bounds: Bounds) -> tuple[float, int]:
    """Resident memory after many requests, every fiftieth an aborted stream; with how many were sent."""
    budget = Budget(bounds.memory, bounds.memory_seconds)
    await keep_busy(subject.target, budget, 16, abort_every=50)
    return resident_megabytes(subject.pid), budget.done


def seen(upstream: Target, name: str, what: str) -> float | None:
    """When the upstream saw this of that request; None when it did not within LIMIT seconds."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        requests = orjson.loads(once(upstream, upstream.post("/bench/log")).partition(b"\r\n\r\n")[2])
        if what in requests.get(name, {}):
            return float(requests[name][what])
        time.sleep(POLL)
    return None


def await_arrival(upstream: Target, name: str) -> None:
    if seen(upstream, name, "arrived") is None:
        sys.exit(f"bench: the request of {name} did not reach the upstream")


def opened(target: Target, **request: object) -> socket.socket:
    """A connection on which a request has been sent."""
    connection = socket.create_connection(("127.0.0.1", target.port), 30)
    connection.sendall(target.request(**request))  # type: ignore[arg-type]  # keywords of Target.request
    return connection


def leaving(subject: Subject, upstream: Target, name: str, *, model: str, stream: bool) -> float | None:
    """Seconds until the upstream sees that a client left: before anything came, or after the third event."""
    connection = opened(subject.target, model=model, stream=stream, name=name)
    await_arrival(upstream, name)
    received = b""
    while model == "endless" and received.count(b"data: ") < 3:
        received += connection.recv(65536)
    left_at = time.monotonic()
    connection.close()
    saw_at = seen(upstream, name, "left")
    return None if saw_at is None else saw_at - left_at


def leaving_queue(subject: Subject, upstream: Target, name: str) -> float | None:
    """Seconds until the place of a client that left while waiting for the upstream's one connection is free.

    A holds the connection, B waits for it, C waits behind B. B leaves, A ends 2 ms later, and the figure is the time
    from B's leaving until the upstream sees C, so those 2 ms are in it.
    """
    holder, waiter, follower = (f"{name}-{letter}" for letter in "abc")
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(opened(subject.target, model="hang", name=holder))
        await_arrival(upstream, holder)
        second = opened(subject.target, model="hang", name=waiter)
        time.sleep(0.05)  # B's place in the queue is before C's; nothing outside tells when B has it
        stack.enter_context(opened(subject.target, model="hang", name=follower))
        time.sleep(0.05)
        left_at = time.monotonic()
        second.close()
        time.sleep(0.002)
        once(upstream, upstream.post("/bench/release"))
        saw_at = seen(upstream, follower, "arrived")
        once(upstream, upstream.post("/bench/release"))
        first.recv(1)
        return None if saw_at is None else saw_at - left_at


def leavings_ms(subject: Subject, upstream: Target, phase: str, bounds: Bounds) -> Iterator[float]:
    """Milliseconds of every try in one phase; ends with results.NEVER when the upstream did not see one."""
    for number in range(bounds.leavings):
        name = f"{phase}-{number}-{time.monotonic_ns()}"
        if phase == "queued":
            took = leaving_queue(subject, upstream, name)
        else:
            model = "endless" if phase == "mid-stream" else "hang"
            took = leaving(subject, upstream, name, model=model, stream=phase != "non-streaming")
        for path in ("/bench/release", "/bench/clear"):
            once(upstream, upstream.post(path))
        yield NEVER if took is None else took * 1000
        if took is None:
            return
