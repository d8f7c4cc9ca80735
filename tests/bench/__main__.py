"""`make bench`: the gateway's figures beside a peer's, on this machine, in one run. Times are printed, never asserted.

The program under measurement has one core to itself; the trivial upstream and the load generator share another. Each
figure is printed and kept as soon as it is there, so a run that is interrupted loses none.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path

import uvloop

from tests.bench import events, measures, subjects
from tests.bench.load import Target
from tests.bench.measures import FULL, QUICK, Bounds
from tests.bench.processes import CORES, GATEWAY_CORE, LOAD_CORE, resident_megabytes
from tests.bench.results import Results

PARTS = ("requests", "streams", "latency", "events", "leaving", "memory", "start")
PHASES = ("queued", "before first token", "mid-stream", "non-streaming")
PEER = "LiteLLM"
PEER_LIMIT = 300.0  # seconds for the peer's whole column: it is slow, and not what is developed here
FORK = multiprocessing.get_context("fork")


def say(text: str) -> None:
    print(f"bench: {text} (load {os.getloadavg()[0]:.2f})", file=sys.stderr, flush=True)


class Bench:
    """One run: an upstream, the bounds, the parts that are wanted, and the figures so far."""

    def __init__(self, upstream: Target, bounds: Bounds, parts: set[str], place: Path, results: Results) -> None:
        self.upstream, self.bounds, self.parts, self.place, self.add = upstream, bounds, parts, place, results.add

    def directory(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.place))

    def column(self, column: str, start: subjects.Start) -> None:
        """All wanted parts of one column of the table."""
        if self.parts & {"requests", "streams", "latency", "events"}:
            self.throughput(column, start)
        if "leaving" in self.parts:
            self.leavings(column, start)
        if self.parts & {"memory", "start"}:
            self.memory_and_start(column, start)

    def column_within(self, column: str, start: subjects.Start, seconds: float) -> None:
        """The same in a process of its own, which ends after so many seconds with what it has by then."""
        figures, told = FORK.Pipe(duplex=False)
        process = FORK.Process(target=self._tell, args=(column, start, told))
        process.start()
        told.close()
        deadline = time.monotonic() + seconds
        try:
            with contextlib.suppress(EOFError):
                while figures.poll(max(0, deadline - time.monotonic())):
                    self.add(*figures.recv())
                say(f"{column}: not done within {seconds:g} s")
        finally:
            process.terminate()
            process.join(30)
            process.kill()

    def _tell(self, column: str, start: subjects.Start, told: Connection) -> None:
        self.add = lambda *figure: told.send(figure)
        self.column(column, start)

    def throughput(self, column: str, start: subjects.Start) -> None:
        """Rows that load one running subject; the bare pass-through takes turns with the gateway."""
        with contextlib.ExitStack() as stack:
            subject = stack.enter_context(start(self.directory(), self.upstream.port))
            bare = None
            if column == "gateway":
                bare = stack.enter_context(subjects.passthrough(self.directory(), self.upstream.port))
            for turn in range(self.bounds.rounds):
                say(f"{column}: requests, streams, latency, events, round {turn + 1} of {self.bounds.rounds}")
                self.one_round(column, subject, bare)
                # Once for the peer: what cannot follow so many streams takes minutes for them.
                if "events" in self.parts and (bare or turn == 0):
                    self.single_events(column, subject)
                    if bare:
                        self.single_events("pass-through", bare)

    def one_round(self, column: str, subject: subjects.Subject, bare: subjects.Subject | None) -> None:
        measured: dict[str, Callable[[subjects.Subject], Coroutine[None, None, float]]] = {
            "requests": lambda it: measures.requests_per_cpu_second(it, self.bounds),
            "streams": lambda it: measures.stream_cpu_ms(it, self.bounds),
            "latency": lambda it: measures.added_latency_ms(it, self.upstream, self.bounds),
        }
        for part in (part for part in measured if part in self.parts):
            figure = uvloop.run(measured[part](subject))
            self.add(part, column, figure)
            if bare:
                most = uvloop.run(measured[part](bare))
                self.add(part, "pass-through", most)
                if part == "requests":
                    self.add("share", column, 100 * figure / most)

    def single_events(self, column: str, subject: subjects.Subject) -> None:
        lost, late = uvloop.run(events.paced_streams(subject, self.bounds))
        self.add("events lost", column, lost)
        self.add("events late", column, late)
        delay = uvloop.run(events.delay_beside_prompts_ms(subject, self.bounds))
        self.add("prompt delay", column, delay)

    def leavings(self, column: str, start: subjects.Start) -> None:
        """One client leaves, again and again, in each phase; waiting for a connection needs a backend with one."""
        for connections, phases in ((1, PHASES[:1]), (None, PHASES[1:])):
            with start(self.directory(), self.upstream.port, connections) as subject:
                for phase in phases:
                    say(f"{column}: a client leaves, {phase}")
                    for took in measures.leavings_ms(subject, self.upstream, phase, self.bounds):
                        self.add(f"leaving {phase}", column, took)

    def memory_and_start(self, column: str, start: subjects.Start) -> None:
        """Rows that need a fresh process each time."""
        for turn in range(self.bounds.rounds):
            say(f"{column}: start and memory, round {turn + 1} of {self.bounds.rounds}")
            with start(self.directory(), self.upstream.port) as subject:
                self.add("start", column, subject.started)
                if "memory" not in self.parts:
                    continue
                self.add("memory idle", column, resident_megabytes(subject.pid))
                after, requests = uvloop.run(measures.memory_mb(subject, self.bounds))
                self.add("memory after", column, after)
                self.add("memory requests", column, requests)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round with fewer requests, for development")
    parser.add_argument("--only", choices=PARTS, action="append", help="measure this part only; may be repeated")
    parser.add_argument("--no-peer", action="store_true", help="leave the peer out, for development")
    parser.add_argument("--json", type=Path, default=subjects.BUILD.parent / "bench.json", help="where the figures go")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    if not hasattr(os, "sched_setaffinity") or len(CORES) < 2:
        sys.exit("bench: needs Linux and two cores, one for the gateway and one for what loads it")
    os.sched_setaffinity(0, {LOAD_CORE})
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # which asyncio's runner knows to end
    subjects.BUILD.mkdir(parents=True, exist_ok=True)
    machine = {
        "python": platform.python_version(),
        "uvicorn": version("uvicorn"),
        "kernel": platform.release(),
        "cores": f"{GATEWAY_CORE} gateway, {LOAD_CORE} upstream and load generator, of {os.cpu_count()}",
        "load average at the start": [round(value, 2) for value in os.getloadavg()],
    }
    results = Results(options.json, machine)
    try:
        with tempfile.TemporaryDirectory(dir=subjects.BUILD, prefix="run-") as place, subjects.upstream() as upstream:
            parts = set(options.only or PARTS)
            bench = Bench(upstream, QUICK if options.quick else FULL, parts, Path(place), results)
            bench.column("gateway", subjects.gateway)
            if not options.no_peer:
                subjects.install_litellm()  # its time is not the measurement's
                bench.column_within(PEER, subjects.litellm, PEER_LIMIT)
    except KeyboardInterrupt:
        sys.exit("bench: interrupted; the figures so far:")
    finally:
        machine["load average at the end"] = [round(value, 2) for value in os.getloadavg()]
        results.save()
        print(results.table(("gateway", PEER, "pass-through")), flush=True)


if __name__ == "__main__":
    main()
