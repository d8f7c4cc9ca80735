"""Health of the gateway and its backends; shared by both listeners."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gateway.backends.registry import Registry

Problems = Callable[[], Mapping[str, str]]


def upstreams(registry: Registry) -> dict[str, Any]:
    """State of each backend by name; `last_check` in Unix seconds, None before the first."""
    return {
        backend.name: {
            "healthy": backend.healthy,
            "ready": backend.ready,
            "optional": backend.record.optional,
            "last_check": backend.last_check,
            "error": backend.error,
        }
        for backend in registry.backends
    }


def readiness(registry: Registry, problems: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
    """200 while each class that is not optional has a ready backend, else 503; and the report.

    `problems` are those of features, by name: they are told, and leave the gateway ready.
    """
    needed = {one.record.backend_class for one in registry.backends if not one.record.optional}
    ok = needed <= {one.record.backend_class for one in registry.backends if one.ready}
    return (200 if ok else 503), {"ok": ok, "backends": upstreams(registry), "problems": problems}
