"""One backend: whether it lives, what it serves, how many requests are under way on it; and the slots of admission."""

from __future__ import annotations

import asyncio
import ssl
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from time import monotonic

from gateway.backends.protocols import BY_NAME
from gateway.backends.queue import FairQueue
from gateway.backends.records import BackendRecord
from gateway.wire.http1 import Pool, Timeouts
from gateway.wire.origin import Origin

# The circuit breaker of a host whose probes are answered: it opens after so many failures in a row.
CIRCUIT_OPENS_AFTER = 3
CIRCUIT_OPEN_MAX_SEC = 60.0


class Slots:
    """One capability of one backend: where it is asked for, how many requests are under way, and how many may be.

    `adapter` is None where the backend speaks OpenAI's protocol, `change_body` where it takes bodies as they come,
    `queue` where the class asks for none. `on_abort` is to be called when the gateway ends an answer before its end;
    None where the record asks for no cooldown. `heir` has the count of requests since a reload has put it in this one's
    place.
    """

    __slots__ = (
        "adapter", "backend", "capability", "change_body", "heir", "inflight", "limit", "on_abort", "protocol",
        "queue", "target",
    )  # fmt: skip

    def __init__(self, backend: Backend, capability: str) -> None:
        self.backend = backend
        self.capability = capability
        self.protocol = backend.protocol
        self.target = self.protocol.target(capability, backend.origin.prefix)
        self.adapter = self.protocol.chat
        self.change_body = self.protocol.bodies.get(capability)
        self.limit = sys.maxsize
        self.queue: FairQueue | None = None
        self.heir: Slots | None = None
        self.on_abort: Callable[[], object] | None = None
        self.inflight = 0

    @property
    def is_free(self) -> bool:
        return self.inflight < self.limit and self.backend.ready

    def take(self, model: str) -> None:
        """Counts a request; `release` counts it down again."""
        self.inflight += 1
        self.backend.last_model = model

    def release(self) -> None:
        if self.heir is not None:
            self.heir.release()
            return
        self.inflight -= 1
        if self.queue is not None:
            self.queue.wake(self)

    def cool_down(self) -> None:
        """After an abort the backend may go on for a while: one slot more counts as taken for so long."""
        if self.heir is not None:
            self.heir.cool_down()
            return
        self.inflight += 1
        asyncio.get_running_loop().call_later(self.backend.record.cooldown_ms / 1000, self.release)


class Backend:
    """One backend and its state. `loaded` are the models that it has in memory, where it tells."""

    def __init__(self, name: str, record: BackendRecord, pool: Pool) -> None:
        self.name = name
        self.pool = pool
        self._all_slots: dict[str, Slots] = {}  # also of capabilities that it has no more
        self.take_over(record)
        self.models: tuple[str, ...] = ()
        self.loaded: tuple[str, ...] = ()
        self.last_model = ""
        # Until the first probe is back nothing is known, and a request is the best probe.
        self.healthy = self.ready = True
        self.error: str | None = None
        self.last_check: float | None = None
        self.on_failure: Callable[[], object] = lambda: None
        self.failures: dict[str, int] = {}  # by kind, of which there are a dozen
        self.circuit_failures = 0  # requests in a row that got no proper answer
        self.circuit_open_until = 0.0  # time.monotonic seconds, then half-open; 0 while the circuit is closed

    def take_over(self, record: BackendRecord) -> None:
        """Follows another record of the same host: what is known of it, and what is under way, stays counted."""
        self.record = record
        self.protocol = BY_NAME[record.protocol]
        self.auth_headers = f"Authorization: Bearer {record.api_key}\r\n".encode("ascii") if record.api_key else b""
        self.request_headers = self.auth_headers + b"Content-Type: application/json\r\n"
        self.slots: dict[str, Slots] = {}
        for capability in record.supported_capabilities:
            old = slots = self._all_slots.get(capability)
            if slots is None or slots.protocol is not self.protocol:
                slots = Slots(self, capability)
            if old is not None and old is not slots:  # answers under way are still read as the old protocol has them
                slots.inflight, old.heir = old.inflight, slots
            slots.limit = record.concurrency_limits.get(capability, sys.maxsize)
            slots.on_abort = slots.cool_down if record.cooldown_ms and slots.limit < sys.maxsize else None
            self.slots[capability] = self._all_slots[capability] = slots

    @property
    def all_slots(self) -> Iterable[Slots]:
        """Also those of capabilities that it has no more."""
        return self._all_slots.values()

    @property
    def origin(self) -> Origin:
        return self.pool.origin

    @property
    def is_usable(self) -> bool:
        return self.ready and (not self.circuit_open_until or self.circuit_open_until <= monotonic())

    def count_failure(self, kind: str) -> None:
        self.failures[kind] = self.failures.get(kind, 0) + 1

    def fail(self, error: str) -> None:
        """A request found that the backend cannot be reached; the prober looks at it until it can."""
        self.healthy = self.ready = False
        self.error = error
        self.on_failure()

    def strain_circuit(self) -> None:
        """Counts a request without a proper answer. Some in a row open the circuit: others of the class go first.

        Once half-open it is tried again; each failure then opens it for twice as long.
        """
        self.circuit_failures += 1
        if self.circuit_failures >= CIRCUIT_OPENS_AFTER:
            seconds = min(2.0 ** (self.circuit_failures - CIRCUIT_OPENS_AFTER), CIRCUIT_OPEN_MAX_SEC)
            self.circuit_open_until = monotonic() + seconds

    def close_circuit(self) -> None:
        """A request got its answer."""
        self.circuit_failures = 0
        self.circuit_open_until = 0.0

    def wake(self) -> None:
        """It has become ready: who waits for it may go on."""
        for slots in self.slots.values():
            if slots.queue is not None:
                slots.queue.wake(slots)


MakeBackend = Callable[[str, BackendRecord, Backend | None], Backend]


def backend_maker(timeouts: Timeouts, tls: Callable[[], ssl.SSLContext]) -> MakeBackend:
    """Makes backends with these timeouts, those of https with what `tls` returns.

    One that is known already, by its name and address, takes over its record instead.
    """

    def make(name: str, record: BackendRecord, known: Backend | None) -> Backend:
        first_byte = BY_NAME[record.protocol].first_byte_sec
        own = timeouts if first_byte is None else replace(timeouts, first_byte=first_byte)
        if known is None:
            origin = Origin.parse(record.base_url)
            pool = Pool(
                origin, max_connections=record.max_connections, timeouts=own, ssl_context=tls() if origin.tls else None
            )
            return Backend(name, record, pool)
        if known.record != record:
            known.take_over(record)
            known.on_failure()  # it is probed as the record now says
        known.pool.take_over(record.max_connections, own)
        return known

    return make
