"""The backends as they are now, by class: which of them gets a request, and which models they serve."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from urllib.parse import quote

import orjson

from gateway.backends.protocols.wire_protocol import OPENAI_PATHS, VERSION
from gateway.backends.queue import FairQueue
from gateway.backends.records import BackendsFile
from gateway.backends.slots import Backend, MakeBackend, Slots
from gateway.errors import RETRY_NOT_READY_SEC, ApiError, invalid_value, not_ready, retry_after
from gateway.routing.aliases import Alias, models_by_class
from gateway.routing.body import Rename
from gateway.routing.policy import (
    AUTO,
    DEFAULT_ALIAS,
    MODEL_MAX_CHARS,
    Decision,
    Facts,
    Names,
    decide,
    decide_by_policy,
    decide_embedder,
    decide_in_class,
)
from gateway.routing.settings import EmbeddingsSettings, RoutingSettings

log = logging.getLogger(__name__)

BOUNDED = ("chat", "completions")  # whose answers an alias's caps are for
BUILTIN_EMBEDDER = {"builtin": "gateway_embed"}  # the earlier EMBEDDINGS_BACKEND's word for it
ROUTES_MAX = 1_000
NO_NAMES = ("", AUTO, DEFAULT_ALIAS)  # of an embedder
_SAFE_IN_HEADER = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")


@dataclass(slots=True, eq=False)
class Route:
    """A decision with what follows from it: the slots that can serve it, the headers that tell of it.

    `head` begins an answer of 200 with JSON: status line and whole header lines, those of `headers` among them.
    `rename` is None where the body already names the upstream model. `log_fields` are the request log's fields that
    all requests of the route share: the inside of a JSON object. `queue` is None where the class asks for none,
    `limits` the alias where it has limits.
    """

    decision: Decision
    capability: str
    slots: tuple[Slots, ...]
    headers: tuple[tuple[bytes, bytes], ...]
    head: bytes
    rename: Rename | None
    log_fields: bytes
    queue: FairQueue | None
    limits: Alias | None


class Registry:
    """All backends by class, and the names of the models that they serve."""

    def __init__(
        self,
        file: BackendsFile,
        aliases: Mapping[str, Alias],
        settings: RoutingSettings,
        embeddings: EmbeddingsSettings,
        make: MakeBackend,
    ) -> None:
        self._make = make
        self.rules = settings
        self._embedder = embeddings.embeddings_backend, embeddings.embeddings_model
        self.backends: tuple[Backend, ...] = ()
        self._leaving: tuple[Backend, ...] = ()  # no record has them, and requests are under way on them
        self.on_change: Callable[[], object] = lambda: None
        self._by_class: dict[str, list[Backend]] = {}
        self._queues: dict[tuple[str, str], FairQueue] = {}
        self._synonyms: Mapping[str, str] = {}
        self._aliases: Mapping[str, Alias] = {}
        self._routes: dict[tuple[str, bytes, str], Route] = {}
        self._decided: dict[tuple[Decision, str, str, str], Route] = {}
        self.names = Names({}, {})
        # What `named_route` has decided before, without its frame: by model, `X-Backend`, and path or capability.
        self.known_route = self._routes.get
        self.replace(file, aliases)

    def replace(self, file: BackendsFile, aliases: Mapping[str, Alias]) -> None:
        """Takes over other backends and aliases. Those of the same name and address stay, with all that they know.

        Requests under way keep what they have; a backend that is gone ends with the last of them.
        """
        known = {(backend.name, backend.record.base_url): backend for backend in self.all_backends}
        self.backends = tuple(
            self._make(name, record, known.get((name, record.base_url))) for name, record in file.records.items()
        )
        gone = [backend for backend in known.values() if backend not in self.backends]
        for backend in gone:
            backend.pool.retire()
        self._leaving = tuple(backend for backend in gone if any(slots.inflight for slots in backend.all_slots))
        self._by_class = {}
        for backend in self.backends:
            self._by_class.setdefault(backend.record.backend_class, []).append(backend)
        self._synonyms = BUILTIN_EMBEDDER | file.legacy_mapping
        self._aliases = {
            name: replace(alias, backend=self._synonyms.get(alias.backend, alias.backend))
            for name, alias in aliases.items()
        }
        for name, alias in self._aliases.items():
            if alias.backend not in self._by_class:
                log.warning("alias '%s' has no backend: configure one of class '%s'", name, alias.backend)
        self._share_queues()
        self.refresh_names()
        self.on_change()

    @property
    def all_backends(self) -> tuple[Backend, ...]:
        """Also those that are in no record any more, while requests are under way on them."""
        return (*self.backends, *self._leaving)

    def _share_queues(self) -> None:
        """A queue is its class's for as long as somebody waits in it; who waits may go where the class now is."""
        queues: dict[tuple[str, str], FairQueue] = {}
        hosts: dict[tuple[str, str], list[Slots]] = {}
        for backend in self.all_backends:
            for slots in backend.all_slots:
                slots.queue = None
        for backend in self.backends:
            wanted = backend.record.queue
            for capability, slots in backend.slots.items():
                key = backend.record.backend_class, capability
                queue = queues.get(key, self._queues.get(key))
                if wanted is None and not queue:
                    continue
                if queue is None:
                    queue = FairQueue(0, 0)
                queue.max_waiting, queue.timeout = (wanted.max, wanted.timeout_sec) if wanted else (0, queue.timeout)
                slots.queue = queues[key] = queue
                hosts.setdefault(key, []).append(slots)
        for key, queue in (self._queues | queues).items():
            queue.move(key[0], hosts.get(key, ()))
        self._queues = queues

    def refresh_names(self) -> None:
        """To be called when a backend's `models` have changed."""
        settings = self.rules
        served = {
            backend_class: tuple(dict.fromkeys(model for backend in backends for model in backend.models))
            for backend_class, backends in self._by_class.items()
        }
        capable = {
            backend_class: frozenset(capability for backend in backends for capability in backend.slots)
            for backend_class, backends in self._by_class.items()
        }
        strong, fast = (
            {self._synonyms.get(name, name): model for name, model in rank.items() if model}
            for rank in models_by_class(settings)
        )
        self.names = Names(
            self._aliases,
            served,
            capable,
            strong,
            fast,
            self._synonyms,
            settings.default_backend,
            self._embedder,
        )
        self._routes.clear()
        self._decided.clear()

    def route(self, model: str, backend_header: bytes, capability: str, path: str = "") -> Route:
        """The route of a request of which the policy need not know more; raises ApiError as the two below."""
        named = self.named_route(model, backend_header, capability, path)
        return named if named is not None else self.policy_route(Facts(), model, capability, path)

    def named_route(self, model: str, backend_header: bytes, capability: str, path: str = "") -> Route | None:
        """The route of a request that names where it goes; decided once for each combination until the names change.

        None where it names nothing: `policy_route` has its route. `path` is that of the request, if it is not usual
        for its capability.
        Raises ApiError as `decide`; 400 when the class cannot do this, 503 when no backend is of the class.
        """
        key = (model, backend_header, path or capability)
        route = self._routes.get(key)
        if route is not None:
            return route
        if capability in ("embeddings", "rerank") and not backend_header and model.casefold() in NO_NAMES:
            decision: Decision | None = decide_embedder(self.names)
        else:
            decision = decide(model, backend_header.decode("latin-1"), capability, self.names)
        if decision is None:
            return None
        route = self._decide_once(decision, capability, model, path)
        if len(self._routes) >= ROUTES_MAX:
            self._routes.clear()
        self._routes[key] = route
        return route

    def policy_route(self, facts: Facts, model: str, capability: str, path: str = "") -> Route:
        """The route of a request that names nothing; `model` is how it says so.

        Raises ApiError as `decide_by_policy`, and as `named_route`.
        """
        return self._decide_once(decide_by_policy(facts, self.names, self.rules), capability, model, path)

    def tokenizer_of(self, alias: Alias) -> Backend | None:
        """A ready backend that can count tokens for the alias's model, None without one."""
        hosts = self._by_class.get(alias.backend, ())
        return next((one for one in hosts if one.protocol.tokens is not None and one.is_usable), None)

    def route_in_class(self, model: str, backend_header: bytes, capability: str, usual: str, path: str) -> Route:
        """The route of a request of a kind that has a class of its own, such as images; raises ApiError as `route`."""
        if len(model) > MODEL_MAX_CHARS:  # a form's field, which no schema has checked
            raise invalid_value("model", f"send at most {MODEL_MAX_CHARS} characters")
        decision = decide_in_class(model, backend_header.decode("latin-1"), capability, usual, self.names)
        return self._decide_once(decision, capability, model, path)

    def _decide_once(self, decision: Decision, capability: str, model: str, path: str) -> Route:
        key = (decision, capability, model, path)
        route = self._decided.get(key)
        if route is None:
            headers = _headers(decision)
            lines = b"".join(b"%b: %b\r\n" % header for header in headers)
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n" + lines
            rename = None if decision.model == model else Rename(model, decision.model)
            slots = self._slots(decision.backend_class, capability)
            fields = _log_fields(decision, path or VERSION + OPENAI_PATHS[capability])
            is_bounded = decision.alias is not None and decision.alias.limits and capability in BOUNDED
            limits = decision.alias if is_bounded else None
            route = Route(decision, capability, slots, headers, head, rename, fields, slots[0].queue, limits)
            if len(self._decided) >= ROUTES_MAX:
                self._decided.clear()
            self._decided[key] = route
        return route

    def take(self, route: Route, failed: Backend | None = None) -> Slots | None:
        """Takes a slot of the least-loaded usable backend but `failed`; who takes it calls its `release`.

        None where all slots are taken, or others wait for them already.
        Raises ApiError 503 when no backend is ready.
        """
        if route.queue is not None and len(route.queue):
            return None
        best: Slots | None = None
        for slots in route.slots:
            backend = slots.backend
            if (
                slots.inflight < slots.limit
                and (best is None or slots.inflight < best.inflight)
                and backend.ready
                and (not backend.circuit_open_until or backend.is_usable)
                and backend is not failed
            ):
                best = slots
        if best is None:
            # One whose circuit is open is better than none.
            best = next((one for one in route.slots if one.is_free and one.backend is not failed), None)
        if best is None:
            ready = [slots for slots in route.slots if slots.backend.ready and slots.backend is not failed]
            if not ready:
                raise not_ready(route.decision.backend_class)
            return None
        best.inflight += 1
        best.backend.last_model = route.decision.model
        return best

    def _slots(self, backend_class: str, capability: str) -> tuple[Slots, ...]:
        backends = self._by_class.get(backend_class)
        if backends is None:
            message = f"No backend of class '{backend_class}' is configured for {capability}"
            raise ApiError(503, message, code="backend_not_ready", headers=retry_after(RETRY_NOT_READY_SEC))
        slots = tuple(backend.slots[capability] for backend in backends if capability in backend.slots)
        if not slots:
            able = sorted({backend.record.backend_class for backend in self.backends if capability in backend.slots})
            hint = f"; these do: {', '.join(able)}" if able else ""
            message = f"Backend '{backend_class}' does not support {capability}{hint}"
            raise ApiError(400, message, param="model", code="capability_not_supported")
        return slots


def _headers(decision: Decision) -> tuple[tuple[bytes, bytes], ...]:
    model = decision.model
    if not (model.isascii() and model.isprintable()):
        model = quote(model, safe=_SAFE_IN_HEADER)
    return (
        (b"x-backend-used", decision.backend_class.encode()),
        (b"x-model-used", model.encode()),
        (b"x-router-reason", decision.reason.encode()),
    )


def _log_fields(decision: Decision, path: str) -> bytes:
    fields = {
        "method": "POST",
        "path": path,
        "op": path.removeprefix("/v1/").replace("/", "."),
        "backend_class": decision.backend_class,
        "upstream_model": decision.model,
        "router_reason": decision.reason,
    }
    return orjson.dumps(fields)[1:-1]
