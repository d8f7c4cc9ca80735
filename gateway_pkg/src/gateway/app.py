"""The whole house: what is served, of what it is built, and in which order it starts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp

from gateway.access import callers
from gateway.access.policies import OF_FEATURES, load_policies
from gateway.access.settings import AccessSettings
from gateway.access.tokens import Authenticator
from gateway.access.usage import TokenUsage
from gateway.api.paths import OPEN_PATHS
from gateway.backends.call import Dispatcher
from gateway.backends.converse import settled
from gateway.backends.health import Prober
from gateway.backends.records import load_backends
from gateway.backends.registry import Registry
from gateway.backends.settings import BackendSettings, UpstreamSettings
from gateway.backends.slots import backend_maker
from gateway.backends.tls import client_context
from gateway.config.core import ListenerSettings, StorageSettings
from gateway.config.reload import Reloader, Source
from gateway.config.settings import Section, Settings, read_settings
from gateway.dialects.audio import Audio
from gateway.dialects.chat import Chat
from gateway.dialects.messages.routes import Messages
from gateway.dialects.rerank import Rerank
from gateway.dialects.responses.routes import Responses
from gateway.features.conversations.feature import Conversations
from gateway.features.face import Core, Feature
from gateway.features.images.feature import Images
from gateway.features.music.feature import Music
from gateway.observe.lag import LagSampler
from gateway.observe.linelog import LineLog
from gateway.observe.listener import make_listener
from gateway.observe.metrics import Metrics
from gateway.observe.record import Recorder
from gateway.observe.settings import ObserveSettings, TraceSettings
from gateway.routing.aliases import load_aliases
from gateway.routing.settings import EmbeddingsSettings, RoutingSettings
from gateway.steps import Steps
from gateway.storage import Database, Schema, locked
from gateway.web.later import Later
from gateway.web.middleware import Middleware
from gateway.web.settings import RequestSettings
from gateway.wire.http1 import Timeouts

if TYPE_CHECKING:
    from fastapi import FastAPI

# What is served, dialects among it; each may use those before it.
FEATURES: tuple[type[Feature], ...] = (Chat, Conversations, Responses, Messages, Images, Music, Audio, Rerank)


def sections(features: Sequence[type[Feature]] = FEATURES) -> Iterable[type[Section]]:
    """Those of the core and of the features, in the order of docs/settings.md."""
    own = [feature.section for feature in features if feature.section is not None]
    core = ListenerSettings, AccessSettings, RequestSettings, StorageSettings, BackendSettings, RoutingSettings
    return *core, EmbeddingsSettings, *own, TraceSettings, ObserveSettings, UpstreamSettings


def load_settings(env_file: Path | None = None, features: Sequence[type[Feature]] = FEATURES, **given: Any) -> Settings:
    """As `read_settings`, of which the rest is; raises Refusal."""
    return read_settings(sections(features), env_file, **given)


def schema(features: Sequence[type[Feature]] = FEATURES) -> Schema:
    """The database's migrations, by namespace."""
    return {callers.NAMESPACE: callers.MIGRATIONS} | {one.name: one.migrations for one in features if one.migrations}


class App:
    """Everything that is served, built from the settings and the files that they name; nothing runs before `start`.

    `api` and `observability` are the ASGI apps of the two listeners.
    """

    api: ASGIApp
    observability: ASGIApp

    def __init__(self, settings: Settings, features: Sequence[type[Feature]] = FEATURES) -> None:
        """Raises Refusal: a token or a file is not as it must be."""
        self.settings = settings
        self.usage = TokenUsage()
        self.unenforced = OF_FEATURES.difference(*(feature.policy_keys for feature in features))
        self.reloader = Reloader()
        self.registry, self.authenticator = self._registry(), self._authenticator()
        self.database = Database(settings[StorageSettings].gateway_db_path, schema(features))
        self.tracer = None
        traces = settings[TraceSettings]
        if traces.otel_exporter_otlp_endpoint:
            from gateway.observe.tracing import Tracer  # the SDK costs memory and a tenth of a second

            self.tracer = Tracer(traces)
        self.dispatcher = Dispatcher(self.registry, settings[UpstreamSettings], self.tracer)
        self.features: dict[type[Feature], Feature] = {}
        core = Core(settings, self.dispatcher, self.database, self.reloader, self.features)
        for feature in features:
            self.features[feature] = feature(core)
        self.endpoints = [pair for feature in self.features.values() for pair in feature.endpoints]
        observe = settings[ObserveSettings]
        self.request_log = None
        if observe.request_log_enabled:
            self.request_log = LineLog(
                observe.request_log_path, observe.request_log_max_bytes, observe.request_log_keep
            )
        samples = [feature.samples for feature in self.features.values()]
        self.metrics = Metrics(self.registry, self.request_log, self.tracer, samples)
        self._shown_metrics = self.metrics if observe.metrics_enabled else None
        self.pages = Later(self._pages)
        paths = {endpoint.path for endpoint, _ in self.endpoints}
        recorder = Recorder(paths, self.metrics, self.request_log, self.tracer)
        self.api = Middleware(
            self.pages,
            self.endpoints,
            self.authenticator,
            settings[RequestSettings],
            recorder.record,
            OPEN_PATHS,
            self._open_directories(),
        )
        self.observability = make_listener(self.registry, self._shown_metrics, self.problems)
        self._steps = Steps()

    def _authenticator(self) -> Authenticator:
        own = self.settings[AccessSettings]
        policies = Source(
            str(own.gateway_token_policies_path or "GATEWAY_TOKEN_POLICIES_JSON"),
            partial(load_policies, own, self.unenforced),
        )
        authenticator = Authenticator(
            own.tokens(), own.ip_allowlist, book=policies.content, proxies=own.trust_proxy_cidrs, usage=self.usage
        )
        self.reloader.follow(lambda: authenticator.replace(policies.content), policies)
        return authenticator

    def _registry(self) -> Registry:
        settings = self.settings
        own, upstream = settings[RoutingSettings], settings[UpstreamSettings]
        backends = Source(str(settings[BackendSettings].gateway_backends_path), partial(load_backends, settings))
        aliases = Source(
            "MODEL_ALIASES_JSON" if own.model_aliases_json else str(own.model_aliases_path),
            partial(load_aliases, own),
        )
        timeouts = Timeouts(
            connect=upstream.upstream_connect_timeout_sec,
            first_byte=upstream.upstream_first_byte_timeout_sec,
            idle=upstream.upstream_idle_timeout_sec,
        )
        tls = cache(partial(client_context, upstream))  # all of the system's certificates, where a backend has https
        if upstream.backend_ca_bundle or upstream.backend_client_cert:
            tls()
        maker = backend_maker(timeouts, tls)
        registry = Registry(backends.content, aliases.content, own, settings[EmbeddingsSettings], maker)
        self.reloader.follow(lambda: registry.replace(backends.content, aliases.content), backends, aliases)
        return registry

    def _pages(self) -> FastAPI:
        from gateway.api import admin, pages
        from gateway.api.site import make_site

        features = self.features.values()
        routers = [
            pages.make_router(self.registry, self._shown_metrics, self.problems),
            admin.make_router(self.registry, self.authenticator, self.reloader, self.problems, self.unenforced),
            *(router for feature in features if (router := feature.router()) is not None),
        ]
        tags = {tag: about for feature in features for tag, about in feature.tags.items()}
        return make_site(routers, [endpoint for endpoint, _ in self.endpoints], tags, self._open_directories())

    def _open_directories(self) -> tuple[str, ...]:
        return tuple(directory for feature in self.features for directory in feature.open_directories)

    def problems(self) -> dict[str, str]:
        """Why features cannot do all of their work, by their name."""
        found = {feature.name: feature.problem() for feature in self.features.values()}
        return {name: problem for name, problem in found.items() if problem is not None}

    async def start(self) -> None:
        """Opens the database and looks at the backends; raises Refusal, and then nothing runs."""
        try:
            await self._start(self._steps)
        except BaseException:
            await self.stop()
            raise

    async def _start(self, steps: Steps) -> None:
        steps.enter_context(locked(self.settings[StorageSettings].gateway_db_path))
        await steps.run(self.database.open, self.database.close)
        await steps.run(partial(self.usage.start, self.database), self.usage.stop)
        if self.request_log is not None:
            steps.at_stop(self.request_log.close)
        if self.tracer is not None:
            steps.at_stop(self.tracer.close)
        lag = LagSampler(self.metrics.loop_lag)
        await steps.run(lag.start, lag.stop)
        steps.at_stop(self._close_pools)
        steps.at_stop(settled)
        for part in (part for feature in self.features.values() for part in feature.parts):
            await steps.run(part.start, part.stop)
        times = self.settings[UpstreamSettings]
        prober = Prober(self.registry, times.health_check_interval_sec, times.health_check_timeout_sec)
        await steps.run(prober.start, prober.stop)

    async def stop(self) -> None:
        """Ends what `start` began, in reverse order; abandons a step that exceeds its time."""
        await self._steps.aclose()

    def cut(self) -> None:
        """From now on a stop waits only briefly for each of its steps."""
        self._steps.is_cut = True

    async def _close_pools(self) -> None:
        await asyncio.gather(*(backend.pool.close() for backend in self.registry.all_backends))
