"""What the gateway says of itself and its backends; shared by both listeners."""

from __future__ import annotations

from typing import Any

from gateway.routing.registry import Registry


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


def readiness(registry: Registry) -> tuple[int, dict[str, Any]]:
    """200 while every backend that is not optional is ready, else 503; and the report."""
    ok = all(backend.ready or backend.record.optional for backend in registry.backends)
    return (200 if ok else 503), {"ok": ok, "backends": upstreams(registry)}
