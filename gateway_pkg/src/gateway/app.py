"""The factory: read it to see the whole app."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from difflib import get_close_matches
from functools import partial

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute, iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.routing import compile_path
from starlette.types import ASGIApp

from gateway import __version__
from gateway.access.policies import load_policies
from gateway.access.tokens import Authenticator
from gateway.access.usage import TokenUsage
from gateway.api import admin, pages
from gateway.api.docs import make_docs_router
from gateway.api.openapi import describe
from gateway.backends.call import Dispatcher
from gateway.backends.converse import settled
from gateway.backends.health import Prober
from gateway.backends.records import load_backends
from gateway.backends.registry import Registry
from gateway.backends.slots import backend_maker
from gateway.config.reload import Reloader, Source
from gateway.config.settings import Settings
from gateway.config.tls import client_context
from gateway.dialects import audio, rerank
from gateway.dialects import chat as hot
from gateway.dialects.messages import routes as messages
from gateway.dialects.responses import routes as responses
from gateway.errors import ApiError
from gateway.features.conversations.store import ResponseStore
from gateway.features.images import routes as images
from gateway.features.images.store import make_media_router
from gateway.features.music import routes as music
from gateway.observe.lag import LagSampler
from gateway.observe.linelog import LineLog
from gateway.observe.listener import make_listener
from gateway.observe.metrics import Metrics
from gateway.observe.record import Recorder
from gateway.routing.aliases import load_aliases
from gateway.storage import Database, locked
from gateway.web.endpoint import Endpoints
from gateway.web.middleware import Middleware
from gateway.wire.http1 import Timeouts

log = logging.getLogger(__name__)

# A step of the stop that takes longer is left: more than what is still said to backends has (FAREWELL_SEC).
STOP_STEP_SEC = 6.0
CUT_STEP_SEC = 0.5  # the same after a second signal


class App:
    """Everything that is served, built from the settings and the files that they name; nothing runs before `start`.

    `api` and `observability` are the ASGI apps of the two listeners.
    """

    api: ASGIApp
    observability: ASGIApp

    def __init__(self, settings: Settings) -> None:
        """Raises Refusal: a token or a file is not as it must be."""
        self.settings = settings
        self.tls = client_context(settings)
        self.usage = TokenUsage()
        policies = Source(
            str(settings.gateway_token_policies_path or "GATEWAY_TOKEN_POLICIES_JSON"), partial(load_policies, settings)
        )
        self.authenticator = Authenticator(
            settings.tokens(),
            settings.ip_allowlist,
            book=policies.content,
            proxies=settings.trust_proxy_cidrs,
            usage=self.usage,
        )
        timeouts = Timeouts(
            connect=settings.upstream_connect_timeout_sec,
            first_byte=settings.upstream_first_byte_timeout_sec,
            idle=settings.upstream_idle_timeout_sec,
        )
        backends = Source(str(settings.gateway_backends_path), partial(load_backends, settings))
        aliases = Source(
            "MODEL_ALIASES_JSON" if settings.model_aliases_json else str(settings.model_aliases_path),
            partial(load_aliases, settings),
        )
        self.registry = Registry(
            backends.content,
            aliases.content,
            settings,
            backend_maker(timeouts, self.tls),
        )

        def put_in_force() -> None:
            self.registry.replace(backends.content, aliases.content)
            self.authenticator.replace(policies.content)

        self.reloader = Reloader((backends, aliases, policies), put_in_force)
        self.database = Database(settings.gateway_db_path)
        self.music = music.make_jobs(self.database, settings)
        self.responses = ResponseStore(self.database, settings.responses_ttl_sec, settings.responses_max_bytes)
        self.tracer = None
        if settings.otel_exporter_otlp_endpoint:
            from gateway.observe.tracing import Tracer  # the SDK costs memory and a tenth of a second

            self.tracer = Tracer(
                settings.otel_exporter_otlp_endpoint, settings.otel_service_name, settings.otel_traces_sampler_arg
            )
        self.request_log = None
        if settings.request_log_enabled:
            self.request_log = LineLog(
                settings.request_log_path, settings.request_log_max_bytes, settings.request_log_keep
            )
        self.metrics = Metrics(self.registry, self.request_log, self.tracer)
        self.dispatcher = Dispatcher(self.registry, settings, self.tracer)
        self.images = images.make_store(settings)
        endpoints = self._endpoints()
        shown_metrics = self.metrics if settings.metrics_enabled else None
        recorder = Recorder({endpoint.path for endpoint, _ in endpoints}, self.metrics, self.request_log, self.tracer)
        self.api = Middleware(
            self._pages(endpoints, shown_metrics),
            endpoints,
            self.authenticator,
            settings,
            recorder.record,
            pages.OPEN_PATHS,
            pages.OPEN_DIRECTORIES,
        )
        self.observability = make_listener(self.registry, shown_metrics)
        self._running = AsyncExitStack()
        self._is_cut = False

    def _endpoints(self) -> Endpoints:
        """The POST routes that a backend works for."""
        return [
            *hot.make_endpoints(self.dispatcher),
            *audio.make_endpoints(self.dispatcher, self.settings),
            *images.make_endpoints(self.dispatcher, self.settings, self.images),
            *messages.make_endpoints(self.dispatcher),
            *music.make_endpoints(self.dispatcher, self.settings, self.music),
            *rerank.make_endpoints(self.dispatcher),
            *responses.make_endpoints(self.dispatcher, self.responses),
        ]

    def _pages(self, endpoints: Endpoints, shown_metrics: Metrics | None) -> FastAPI:
        """The other routes, and the page that describes all."""
        app = FastAPI(
            title="AI Appliance gateway",
            version=__version__,
            openapi_url=None,
            generate_unique_id_function=_name,
        )
        app.include_router(pages.make_router(self.registry, shown_metrics))
        app.include_router(admin.make_router(self.registry, self.authenticator, self.reloader))
        app.include_router(music.make_router(self.dispatcher, self.settings, self.music))
        app.include_router(responses.make_router(self.responses))
        app.include_router(make_docs_router(app))
        app.include_router(make_media_router(self.images, images.FILES, "image"))
        for error in (ApiError, HTTPException, RequestValidationError):
            app.add_exception_handler(error, _answer_error)
        describe(app, [endpoint for endpoint, _ in endpoints])
        pages_paths = (route.path or "" for route in iter_route_contexts(app.routes))
        app.state.paths = [*(endpoint.path for endpoint, _ in endpoints), *pages_paths]
        return app

    async def start(self) -> None:
        """Opens the database and looks at the backends; raises Refusal, and then nothing runs."""
        async with AsyncExitStack() as running:
            running.enter_context(locked(self.settings.gateway_db_path))
            await self._step(running, self.database.open, self.database.close)
            await self._step(running, lambda: self.usage.start(self.database), self.usage.stop)
            if self.request_log is not None:
                running.push_async_callback(self._ended, self.request_log.close)
            if self.tracer is not None:
                running.push_async_callback(self._ended, self.tracer.close)
            lag = LagSampler(self.metrics.loop_lag)
            lag.start()
            running.push_async_callback(self._ended, lag.stop)
            running.push_async_callback(self._ended, self._close_pools)
            running.push_async_callback(self._ended, settled)
            await self._step(running, self.music.start, self.music.stop)
            await self._step(running, self.responses.start, self.responses.stop)
            await self._step(running, self.images.start, self.images.stop)
            interval, timeout = self.settings.health_check_interval_sec, self.settings.health_check_timeout_sec
            prober = Prober(self.registry, self.tls, interval, timeout)
            await self._step(running, prober.start, prober.stop)
            self._running = running.pop_all()

    async def stop(self) -> None:
        """Ends what `start` began, in the opposite order; what does not end in its time is left."""
        await self._running.aclose()

    def cut(self) -> None:
        """From now on a stop waits for its steps no longer than CUT_STEP_SEC each."""
        self._is_cut = True

    async def _step(
        self, running: AsyncExitStack, start: Callable[[], Awaitable[None]], stop: Callable[[], Awaitable[None]]
    ) -> None:
        await start()
        running.push_async_callback(self._ended, stop)

    async def _ended(self, stop: Callable[[], Awaitable[None]]) -> None:
        step = asyncio.ensure_future(stop())
        loop = asyncio.get_running_loop()
        began = loop.time()
        while not step.done() and loop.time() - began < (CUT_STEP_SEC if self._is_cut else STOP_STEP_SEC):
            await asyncio.wait({step}, timeout=0.1)
        if step.done():
            step.result()
        else:
            step.cancel()
            name = getattr(stop, "__qualname__", stop)
            log.error("%s does not end within %.1f s and is left", name, loop.time() - began)

    async def _close_pools(self) -> None:
        await asyncio.gather(*(backend.pool.close() for backend in self.registry.all_backends))


def _name(route: APIRoute) -> str:
    return route.name


def _no_such_path(request: Request) -> str:
    path = request.scope["path"][:200]
    near = get_close_matches(path, request.app.state.paths, n=1)
    return f"There is no {path}; {f'did you mean {near[0]}?' if near else '/docs shows what there is'}"


def _methods(request: Request) -> str:
    """What a path takes, for `Allow`; Starlette tells those of the first route alone."""
    methods: set[str] = set()
    for route in iter_route_contexts(request.app.routes):
        if compile_path(route.path or "")[0].match(request.scope["path"]):
            methods |= route.methods or set()
    return ", ".join(sorted(methods))


async def _answer_error(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        error = ApiError(
            error.status_code,
            _no_such_path(request) if error.status_code == 404 else str(error.detail),
            code={404: "not_found", 405: "method_not_allowed"}.get(error.status_code),
            headers=((b"allow", _methods(request).encode()),) if error.status_code == 405 else (),
        )
    if isinstance(error, RequestValidationError):
        problem = error.errors()[0]
        error = ApiError(
            400, f"Invalid request: {problem['msg']}", param=".".join(map(str, problem["loc"][1:])) or None
        )
    if not isinstance(error, ApiError):
        raise error
    headers = {name.decode(): value.decode() for name, value in error.headers}
    return Response(error.body(), error.status, headers, "application/json")
