"""The backends as they are now: who lives, who is busy, who serves which model; and the slots of admission."""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping

from gateway.http.errors import ApiError, retry_after
from gateway.routing.aliases import Alias
from gateway.routing.backends import BackendRecord
from gateway.routing.policy import Names
from gateway.upstream.http1 import Origin, Pool, Timeouts

# Below a backend's base_url, by the operation's name.
PATHS = {
    "chat.completions": b"/chat/completions",
    "completions": b"/completions",
    "embeddings": b"/embeddings",
}
RETRY_NOT_READY_SEC = 30  # the earlier system's figures
RETRY_OVERLOADED_SEC = 5


class Backend:
    """One backend and its state. `inflight` counts the requests under way by capability."""

    __slots__ = (
        "error",
        "healthy",
        "inflight",
        "last_check",
        "models",
        "name",
        "on_failure",
        "pool",
        "ready",
        "record",
        "request_headers",
        "targets",
    )  # fmt: skip

    def __init__(self, name: str, record: BackendRecord, timeouts: Timeouts, tls: ssl.SSLContext | None) -> None:
        self.name = name
        self.record = record
        origin = Origin.parse(record.base_url)
        self.pool = Pool(origin, max_connections=record.max_connections, timeouts=timeouts, ssl_context=tls)
        self.targets = {op: origin.prefix + path for op, path in PATHS.items()}
        authorization = f"Authorization: Bearer {record.api_key}\r\n" if record.api_key else ""
        self.request_headers = f"{authorization}Content-Type: application/json\r\n".encode("ascii")
        self.models: tuple[str, ...] = ()
        # Until the first probe is back nothing is known, and a request is the best probe.
        self.healthy = self.ready = True
        self.error: str | None = None
        self.last_check: float | None = None
        self.inflight: dict[str, int] = dict.fromkeys(record.supported_capabilities, 0)
        self.on_failure = _nobody_listens

    def free_slots(self, capability: str) -> int | None:
        """Free slots of the capability, None where the record sets no limit."""
        limit = self.record.concurrency_limits.get(capability)  # type: ignore[call-overload]  # any str may be asked for
        return None if limit is None else limit - self.inflight[capability]

    def fail(self, error: str) -> None:
        """A request found that the backend cannot be reached; the prober looks at it until it can."""
        self.healthy = self.ready = False
        self.error = error
        self.on_failure()


class Registry:
    """All backends by class, and the names of the models that they serve."""

    def __init__(self, backends: Iterable[Backend], aliases: Mapping[str, Alias]) -> None:
        self.backends = tuple(backends)
        self._by_class: dict[str, list[Backend]] = {}
        for backend in self.backends:
            self._by_class.setdefault(backend.record.backend_class, []).append(backend)
        self._aliases = aliases
        self.names = Names(aliases, {})
        self.refresh_names()

    def refresh_names(self) -> None:
        """To be called when a backend's `models` have changed."""
        served = {
            backend_class: tuple(dict.fromkeys(model for backend in backends for model in backend.models))
            for backend_class, backends in self._by_class.items()
        }
        self.names = Names(self._aliases, served)

    def take(self, backend_class: str, capability: str) -> Backend:
        """Takes a slot on the least-loaded ready backend of a class; `give_back` must follow.

        Raises:
            ApiError: 503 none is ready, 400 the class cannot do this, 429 all slots are taken.
        """
        backends = self._by_class.get(backend_class)
        if backends is None:
            raise ApiError(503, f"No backend of class '{backend_class}' is configured", code="backend_not_ready")
        best: Backend | None = None
        ready = capable = False
        for backend in backends:
            load = backend.inflight.get(capability)
            if load is None:
                continue
            capable = True
            if not backend.ready:
                continue
            ready = True
            free = backend.free_slots(capability)
            if (free is None or free > 0) and (best is None or load < best.inflight[capability]):
                best = backend
        if best is None:
            raise self._refusal(backend_class, capability, capable, ready)
        best.inflight[capability] += 1
        return best

    @staticmethod
    def give_back(backend: Backend, capability: str) -> None:
        backend.inflight[capability] -= 1

    def _refusal(self, backend_class: str, capability: str, capable: bool, ready: bool) -> ApiError:
        if not capable:
            able = sorted({b.record.backend_class for b in self.backends if capability in b.inflight})
            hint = f"; these do: {', '.join(able)}" if able else ""
            return ApiError(
                400,
                f"Backend '{backend_class}' does not support {capability}{hint}",
                param="model",
                code="capability_not_supported",
            )
        if not ready:
            return not_ready(backend_class)
        return ApiError(
            429,
            f"Backend '{backend_class}' is at its limit of {capability} requests; try again",
            code="backend_overloaded",
            headers=retry_after(RETRY_OVERLOADED_SEC),
        )


def not_ready(backend_class: str) -> ApiError:
    return ApiError(
        503,
        f"Backend '{backend_class}' is not ready; its state is in /readyz",
        code="backend_not_ready",
        headers=retry_after(RETRY_NOT_READY_SEC),
    )


def _nobody_listens() -> None:
    pass
