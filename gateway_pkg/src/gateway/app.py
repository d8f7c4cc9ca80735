"""The factory: read it to see the whole house."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from gateway import __version__
from gateway.api.docs import make_docs_router
from gateway.api.hot import HOT_ROUTES, HotHandler
from gateway.api.openapi import describe
from gateway.api.pages import make_router
from gateway.http.edge import Edge
from gateway.http.errors import ApiError
from gateway.http.tokens import Doorkeeper
from gateway.observe.linelog import LineLog
from gateway.observe.listener import make_listener
from gateway.observe.metrics import Metrics
from gateway.observe.record import Recorder
from gateway.routing.aliases import load_aliases
from gateway.routing.backends import load_backends
from gateway.routing.health import Prober
from gateway.routing.registry import Backend, Registry
from gateway.settings import Settings
from gateway.upstream.http1 import Timeouts
from gateway.upstream.tls import client_context


@dataclass(frozen=True)
class House:
    """What is served: the API, and the observability listener."""

    api: ASGIApp
    observability: ASGIApp


def build(settings: Settings) -> House:
    """Builds everything from the settings and the files that they name; nothing runs yet.

    Raises:
        Refusal: a token or a file is not as it must be.
    """
    doorkeeper = Doorkeeper(settings.tokens(), settings.ip_allowlist)
    tls = client_context(settings)
    registry = _registry(settings, tls)
    request_log = None
    if settings.request_log_enabled:
        request_log = LineLog(settings.request_log_path, settings.request_log_max_bytes, settings.request_log_keep)
    metrics = Metrics(registry, request_log)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        client = httpx.AsyncClient(timeout=settings.health_check_timeout_sec, verify=tls, trust_env=False)
        prober = Prober(registry, client, settings.health_check_interval_sec)
        await prober.start()
        yield
        await prober.stop()
        for backend in registry.backends:
            await backend.pool.close()
        if request_log is not None:
            await request_log.close()

    shown_metrics = metrics if settings.metrics_enabled else None
    pages = FastAPI(title="AI Appliance gateway", version=__version__, lifespan=lifespan, redoc_url=None, docs_url=None)
    pages.include_router(make_router(registry, shown_metrics))
    pages.include_router(make_docs_router(pages.title))
    pages.add_exception_handler(ApiError, _answer_error)
    pages.add_exception_handler(HTTPException, _answer_error)
    pages.add_exception_handler(RequestValidationError, _answer_error)
    describe(pages, HOT_ROUTES)
    hot_routes = {route.path: route for route in HOT_ROUTES}
    record = Recorder(hot_routes, metrics, request_log)
    hot = HotHandler(registry, settings)
    edge = Edge(pages, hot, hot_routes, doorkeeper, settings.max_request_bytes, record)
    return House(edge, make_listener(registry, shown_metrics))


def _registry(settings: Settings, tls: ssl.SSLContext) -> Registry:
    timeouts = Timeouts(
        connect=settings.upstream_connect_timeout_sec,
        first_byte=settings.upstream_first_byte_timeout_sec,
        idle=settings.upstream_idle_timeout_sec,
    )
    records = load_backends(settings.gateway_backends_path)
    backends = [Backend(name, record, timeouts, tls) for name, record in records.items()]
    # A gateway that nobody provisioned may have no aliases; a file that somebody named must be there.
    is_named = "model_aliases_path" in settings.model_fields_set
    has_aliases = is_named or settings.model_aliases_path.exists()
    return Registry(backends, load_aliases(settings.model_aliases_path) if has_aliases else {})


async def _answer_error(_: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        error = ApiError(
            error.status_code,
            str(error.detail),
            code={404: "not_found", 405: "method_not_allowed"}.get(error.status_code),
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
