"""Probes the backends: are they alive and ready, and which models do they serve."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial

import httpx

from gateway import background
from gateway.backends.protocols import ollama
from gateway.backends.protocols.base import AnswerError
from gateway.backends.registry import Backend, Registry
from gateway.wire.stepwise import loads

log = logging.getLogger(__name__)

# A backend that is down is looked at this often, so that it is back soon after its restart.
RETRY_SEC = 1.0
# So that the first client already finds the models; only a host that hangs costs this much of the start.
FIRST_ROUND_SEC = 0.5
MODELS_MAX = 10_000
LOADED_MAX = 100
ANSWER_MAX_BYTES = 8 * 1024 * 1024

# Where a capability is that of models with names.
MODEL_CAPABILITIES = frozenset({"chat", "completions", "embeddings", "rerank"})


class _ProbeFailed(Exception):
    """A backend's answer is none."""


class Prober:
    """One task per backend of the registry, from `start` to `stop`."""

    def __init__(self, registry: Registry, client: httpx.AsyncClient, interval: float, timeout: float) -> None:
        """`interval` between two probes of a ready backend, `timeout` for each answer, both in seconds."""
        self._registry = registry
        self._client = client
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
        self._registry.on_change = _nothing
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        await self._client.aclose()

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
        try:
            await self._get(backend, paths.liveness)
            healthy = True
            if paths.readiness != paths.liveness:
                await self._get(backend, paths.readiness)
            await self._list_models(backend)
            ready = True
        except _ProbeFailed as failure:
            error = str(failure)
        except (httpx.HTTPError, ValueError, AnswerError) as failure:
            error = f"{type(failure).__name__}: {failure}"[:300]
        if ready != backend.ready or (ready and backend.last_check is None):
            log.log(
                logging.INFO if ready else logging.WARNING,
                "backend %s: %s",
                backend.name,
                "ready" if ready else error,
            )
        was_ready = backend.ready
        backend.healthy, backend.ready, backend.error, backend.last_check = healthy, ready, error, time.time()
        if ready and not was_ready:
            backend.wake()

    async def _list_models(self, backend: Backend) -> None:
        if backend.record.protocol == "ollama":
            models = ollama.models(await self._get(backend, ollama.MODELS_PATH))[:MODELS_MAX]
            backend.loaded = ollama.loaded(await self._get(backend, ollama.LOADED_PATH))[:LOADED_MAX]
        elif MODEL_CAPABILITIES & backend.slots.keys():
            models = _openai_models(await self._get(backend, backend.origin.prefix.decode() + "/models"))
        else:
            return
        if models != backend.models:
            backend.models = models
            self._registry.refresh_names()

    async def _get(self, backend: Backend, path: str) -> bytes:
        """The body of an answer of 200 to 299; raises _ProbeFailed, httpx.HTTPError."""
        url = httpx.URL(backend.record.base_url).join(path)
        headers = {"Accept-Encoding": "identity"}  # so that its bytes are what it costs
        if backend.record.api_key:
            headers["Authorization"] = f"Bearer {backend.record.api_key}"
        body = bytearray()
        try:
            # httpx's own timeouts would be for each piece, of which there may be any number.
            async with asyncio.timeout(self._timeout), self._client.stream("GET", url, headers=headers) as response:
                async for piece in response.aiter_raw():
                    body += piece
                    if len(body) > ANSWER_MAX_BYTES:
                        raise _ProbeFailed(f"{path} answered more than {ANSWER_MAX_BYTES} bytes")
        except TimeoutError:
            raise _ProbeFailed(f"{path} did not answer within {self._timeout:g} s") from None
        if not response.is_success:
            raise _ProbeFailed(f"{path} answered {response.status_code}")
        return bytes(body)


def _openai_models(body: bytes) -> tuple[str, ...]:
    content = loads(body)
    data = content.get("data") if isinstance(content, dict) else None
    if not isinstance(data, list):
        raise ValueError("/models has no list 'data'")
    return tuple(str(item["id"]) for item in data[:MODELS_MAX] if isinstance(item, dict) and "id" in item)


def _nothing() -> None:
    pass
