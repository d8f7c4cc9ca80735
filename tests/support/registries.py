"""Registries of backends that nobody asks."""

from __future__ import annotations

from typing import Any

from gateway.backends.records import BackendRecord, BackendsFile
from gateway.backends.registry import Registry
from gateway.backends.slots import backend_maker
from gateway.routing.aliases import Alias
from gateway.routing.settings import EmbeddingsSettings, RoutingSettings
from gateway.wire.http1 import Timeouts

ALIASES = {"default": Alias("test", "m"), "lost": Alias("nowhere", "m")}
ROUTING = RoutingSettings.model_validate({}), EmbeddingsSettings.model_validate({})


def record(limit: int | None = None, **fields: Any) -> BackendRecord:
    given = {
        "class": "test",
        "base_url": "http://127.0.0.1:1/v1",
        "supported_capabilities": ["chat"],
        "concurrency_limits": {"chat": limit} if limit else {},
    }
    return BackendRecord.model_validate(given | fields)


def registry(**records: BackendRecord) -> Registry:
    make = backend_maker(Timeouts(), None)  # type: ignore[arg-type]  # no https here
    made = Registry(BackendsFile(records, {}), ALIASES, *ROUTING, make)
    for backend in made.backends:
        backend.models = ("m",)
    made.refresh_names()
    return made
