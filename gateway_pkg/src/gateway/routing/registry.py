"""The backends as they are now: who lives, who is busy, who serves which model; and the slots of admission."""

from __future__ import annotations

import ssl
import sys
from collections.abc import Iterable, Mapping
from typing import NamedTuple
from urllib.parse import quote

import orjson

from gateway.http.errors import ApiError, retry_after
from gateway.routing.aliases import Alias
from gateway.routing.backends import BackendRecord
from gateway.routing.policy import Decision, Names, decide
from gateway.routing.rename import Rename
from gateway.upstream.http1 import Origin, Pool, Timeouts

# What a capability is below a backend's base_url.
PATHS = {"chat": b"/chat/completions", "completions": b"/completions", "embeddings": b"/embeddings"}
RETRY_NOT_READY_SEC = 30  # the earlier system's figures
RETRY_OVERLOADED_SEC = 5
ROUTES_MAX = 1_000
_SAFE_IN_HEADER = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")


class Slots:
    """One capability of one backend: where it is asked for, how many requests are under way, and how many may be."""

    __slots__ = ("backend", "capability", "inflight", "limit", "target")

    def __init__(self, backend: Backend, capability: str, target: bytes, limit: int) -> None:
        self.backend = backend
        self.capability = capability
        self.target = target
        self.limit = limit
        self.inflight = 0


class Backend:
    """One backend and its state."""

    def __init__(self, name: str, record: BackendRecord, timeouts: Timeouts, tls: ssl.SSLContext | None) -> None:
        self.name = name
        self.record = record
        origin = Origin.parse(record.base_url)
        self.pool = Pool(origin, max_connections=record.max_connections, timeouts=timeouts, ssl_context=tls)
        authorization = f"Authorization: Bearer {record.api_key}\r\n" if record.api_key else ""
        self.request_headers = f"{authorization}Content-Type: application/json\r\n".encode("ascii")
        self.slots = {
            capability: Slots(
                self,
                capability,
                origin.prefix + PATHS[capability],
                record.concurrency_limits.get(capability, sys.maxsize),
            )
            for capability in record.supported_capabilities
        }
        self.models: tuple[str, ...] = ()
        # Until the first probe is back nothing is known, and a request is the best probe.
        self.healthy = self.ready = True
        self.error: str | None = None
        self.last_check: float | None = None
        self.on_failure = _nobody_listens

    def fail(self, error: str) -> None:
        """A request found that the backend cannot be reached; the prober looks at it until it can."""
        self.healthy = self.ready = False
        self.error = error
        self.on_failure()


class Route(NamedTuple):
    """A decision with what follows from it: the slots that can serve it, the headers that tell of it.

    `head` begins an answer of 200 with JSON: status line and whole header lines, those of `headers` among them.
    `rename` is None where the body already names the upstream model. `log_fields` are the request log's fields that
    all requests of the route share: the inside of a JSON object.
    """

    decision: Decision
    slots: tuple[Slots, ...]
    headers: tuple[tuple[bytes, bytes], ...]
    head: bytes
    rename: Rename | None
    log_fields: bytes


class Registry:
    """All backends by class, and the names of the models that they serve."""

    def __init__(self, backends: Iterable[Backend], aliases: Mapping[str, Alias]) -> None:
        self.backends = tuple(backends)
        self._by_class: dict[str, list[Backend]] = {}
        for backend in self.backends:
            self._by_class.setdefault(backend.record.backend_class, []).append(backend)
        self._aliases = aliases
        self._routes: dict[tuple[str, bytes, str], Route] = {}
        self.names = Names(aliases, {})
        self.refresh_names()

    def refresh_names(self) -> None:
        """To be called when a backend's `models` have changed."""
        served = {
            backend_class: tuple(dict.fromkeys(model for backend in backends for model in backend.models))
            for backend_class, backends in self._by_class.items()
        }
        self.names = Names(self._aliases, served)
        self._routes.clear()

    def route(self, model: str, backend_header: bytes, capability: str) -> Route:
        """The route of a request; decided once for each combination until the names change.

        Raises:
            ApiError: as `decide`; 400 when the class cannot do this, 503 when no backend is of the class.
        """
        key = (model, backend_header, capability)
        route = self._routes.get(key)
        if route is None:
            decision = decide(model, backend_header.decode("latin-1"), self.names)
            headers = _headers(decision)
            lines = b"".join(b"%b: %b\r\n" % header for header in headers)
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n" + lines
            rename = None if decision.model == model else Rename(model, decision.model)
            slots = self._slots(decision.backend_class, capability)
            route = Route(decision, slots, headers, head, rename, _log_fields(decision, capability))
            if len(self._routes) >= ROUTES_MAX:
                self._routes.clear()
            self._routes[key] = route
        return route

    def take(self, route: Route) -> Slots:
        """Takes a slot of the least-loaded ready backend; who takes it counts `inflight` down again.

        Raises:
            ApiError: 503 none is ready, 429 all slots are taken.
        """
        best: Slots | None = None
        for slots in route.slots:
            if (
                slots.backend.ready
                and slots.inflight < slots.limit
                and (best is None or slots.inflight < best.inflight)
            ):
                best = slots
        if best is None:
            if not any(slots.backend.ready for slots in route.slots):
                raise not_ready(route.decision.backend_class)
            raise overloaded(route.decision.backend_class)
        best.inflight += 1
        return best

    def _slots(self, backend_class: str, capability: str) -> tuple[Slots, ...]:
        backends = self._by_class.get(backend_class)
        if backends is None:
            raise ApiError(
                503,
                f"No backend of class '{backend_class}' is configured; an alias names it",
                code="backend_not_ready",
            )
        slots = tuple(backend.slots[capability] for backend in backends if capability in backend.slots)
        if not slots:
            able = sorted({backend.record.backend_class for backend in self.backends if capability in backend.slots})
            hint = f"; these do: {', '.join(able)}" if able else ""
            raise ApiError(
                400,
                f"Backend '{backend_class}' does not support {capability}{hint}",
                param="model",
                code="capability_not_supported",
            )
        return slots


def not_ready(backend_class: str) -> ApiError:
    return ApiError(
        503,
        f"Backend '{backend_class}' is not ready; its state is in /readyz",
        code="backend_not_ready",
        headers=retry_after(RETRY_NOT_READY_SEC),
    )


def overloaded(backend_class: str) -> ApiError:
    return ApiError(
        429,
        f"Backend '{backend_class}' is at its limit of requests; try again",
        code="backend_overloaded",
        headers=retry_after(RETRY_OVERLOADED_SEC),
    )


def _headers(decision: Decision) -> tuple[tuple[bytes, bytes], ...]:
    model = decision.model
    if not (model.isascii() and model.isprintable()):
        model = quote(model, safe=_SAFE_IN_HEADER)
    return (
        (b"x-backend-used", decision.backend_class.encode()),
        (b"x-model-used", model.encode()),
        (b"x-router-reason", decision.reason.encode()),
    )


def _log_fields(decision: Decision, capability: str) -> bytes:
    path = PATHS[capability].decode()
    fields = {
        "method": "POST",
        "path": f"/v1{path}",
        "op": path[1:].replace("/", "."),
        "backend_class": decision.backend_class,
        "upstream_model": decision.model,
        "router_reason": decision.reason,
    }
    return orjson.dumps(fields)[1:-1]


def _nobody_listens() -> None:
    pass
