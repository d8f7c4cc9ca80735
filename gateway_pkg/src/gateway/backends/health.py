"""Probes the backends: are they alive and ready, and which models do they serve."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial

from gateway import background
from gateway.backends.protocols.base import AnswerError
from gateway.backends.protocols.wire_protocol import Listing
from gateway.backends.registry import Registry
from gateway.backends.slots import Backend
from gateway.wire.errors import ProtocolViolation, UpstreamError
from gateway.wire.http1 import Pool, Timeouts

log = logging.getLogger(__name__)

# A backend that is down is looked at this often, so that it is back soon after its restart.
RETRY_SEC = 1.0
# The start waits so long for the first probes, so that the first client finds the models.
FIRST_ROUND_SEC = 0.5
MODELS_MAX = 10_000
LOADED_MAX = 100
ANSWER_MAX_BYTES = 8 * 1024 * 1024
ERROR_MAX_CHARS = 300

# Where a capability is that of models with names.
MODEL_CAPABILITIES = frozenset({"chat", "completions", "embeddings", "rerank"})


class Prober:
    """One task per backend of the registry, from `start` to `stop`."""

    def __init__(self, registry: Registry, interval: float, timeout: float) -> None:
        """`interval` between two probes of a ready backend, `timeout` for each answer, both in seconds."""
        self._registry = registry
        self._interval = interval
        self._timeout = timeout
        self._tasks: dict[Backend, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Returns when each backend has answered or refused its first probe, or FIRST_ROUND_SEC have passed."""
        probed = self._follow()
        self._registry.on_change = self._follow
        if probed:
            await asyncio.wait(probed, timeout=FIRST_ROUND_SEC)

    async def stop(self) -> None:
        self._registry.on_change = lambda: None
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _follow(self) -> list[asyncio.Future[None]]:
        """Watches the backends that the registry has now, and no others."""
        for backend in self._tasks.keys() - set(self._registry.backends):
            self._tasks.pop(backend).cancel()
        probed = []
        for backend in self._registry.backends:
            if backend in self._tasks:
                continue
            wake = asyncio.Event()
            backend.on_failure = wake.set
            probed.append(asyncio.get_running_loop().create_future())
            self._tasks[backend] = background.start(
                "prober", partial(self._watch, backend, wake, probed[-1]), f"probe {backend.name}"
            )
        return probed

    async def _watch(self, backend: Backend, wake: asyncio.Event, probed: asyncio.Future[None]) -> None:
        while True:
            wake.clear()
            await self._probe(backend)
            if not probed.done():
                probed.set_result(None)
            pause = self._interval if backend.ready else min(RETRY_SEC, self._interval)
            try:
                async with asyncio.timeout(pause):
                    await wake.wait()
                # A request saw a failure: give the service manager a moment before the probe.
                await asyncio.sleep(min(RETRY_SEC, self._interval) / 4)
            except TimeoutError:
                pass

    async def _probe(self, backend: Backend) -> None:
        healthy = ready = False
        error: str | None = None
        paths = backend.record.health
        # A connection for this probe alone: the pool of requests may be full, and waits for no probe.
        late = 2 * self._timeout  # `_get` tells of a timeout first
        timeouts = Timeouts(connect=late, first_byte=late, idle=late)
        pool = Pool(backend.origin, max_connections=1, timeouts=timeouts, ssl_context=backend.pool.tls)
        try:
            await self._get(pool, backend, paths.liveness)
            healthy = True
            if paths.readiness != paths.liveness:
                await self._get(pool, backend, paths.readiness)
            await self._list_models(pool, backend)
            ready = True
        except AnswerError as failure:
            error = str(failure)[:ERROR_MAX_CHARS]
        except (UpstreamError, ValueError) as failure:
            error = f"{type(failure).__name__}: {failure}"[:ERROR_MAX_CHARS]
        finally:
            await pool.close()
        if ready != backend.ready or (ready and backend.last_check is None):
            log.log(logging.INFO if ready else logging.WARNING, "backend %s: %s", backend.name, error or "ready")
        was_ready = backend.ready
        backend.healthy, backend.ready, backend.error, backend.last_check = healthy, ready, error, time.time()
        if ready and not was_ready:
            backend.wake()

    async def _list_models(self, pool: Pool, backend: Backend) -> None:
        protocol = backend.protocol
        if protocol.models is None or not MODEL_CAPABILITIES & backend.slots.keys():
            return
        models = await self._names(pool, backend, protocol.models, MODELS_MAX)
        if protocol.loaded is not None:
            backend.loaded = await self._names(pool, backend, protocol.loaded, LOADED_MAX)
        if models != backend.models:
            backend.models = models
            self._registry.refresh_names()

    async def _names(self, pool: Pool, backend: Backend, listing: Listing, most: int) -> tuple[str, ...]:
        path = backend.origin.prefix.decode() + listing.path
        return listing.read(await self._get(pool, backend, path))[:most]

    async def _get(self, pool: Pool, backend: Backend, path: str) -> bytes:
        """The body of an answer of 200 to 299; raises AnswerError, UpstreamError."""
        headers = b"Accept-Encoding: identity\r\n" + backend.auth_headers  # so that its bytes are what it costs
        try:
            async with asyncio.timeout(self._timeout):
                response = await pool.request(b"GET", path.encode(), headers)
                body = await response.read(ANSWER_MAX_BYTES)
        except TimeoutError:
            raise AnswerError(f"{path} did not answer within {self._timeout:g} s") from None
        except ProtocolViolation as error:
            raise AnswerError(f"{path}: {error}") from None
        if 300 <= response.status < 400:
            raise AnswerError(f"{path} answered {response.status}, and no redirect is followed: correct the path")
        if not 200 <= response.status < 300:
            raise AnswerError(f"{path} answered {response.status}")
        return body
