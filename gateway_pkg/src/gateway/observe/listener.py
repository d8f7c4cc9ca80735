"""The second listener, on loopback and without a token: health, readiness, backends, metrics."""

from __future__ import annotations

import orjson
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.backends.registry import Registry
from gateway.errors import ApiError
from gateway.observe import health
from gateway.observe.metrics import CONTENT_TYPE, Metrics
from gateway.wire.protocol import EXTENSION

JSON = b"application/json"


def make_listener(registry: Registry, metrics: Metrics | None, problems: health.Problems) -> ASGIApp:
    """A plain ASGI app; `metrics` is None where METRICS_ENABLED is false."""

    def page(method: str, path: str) -> tuple[int, bytes, bytes]:
        if method not in ("GET", "HEAD"):
            return 405, JSON, ApiError(405, f"{path[:200]} takes GET", code="method_not_allowed").body()
        if path == "/health":
            return 200, JSON, b'{"ok":true}'
        if path == "/readyz":
            status, report = health.readiness(registry, problems())
            return status, JSON, orjson.dumps(report)
        if path == "/health/upstreams":
            states = health.upstreams(registry)
            ok = all(state["ready"] for state in states.values())
            return 200, JSON, orjson.dumps({"ok": ok, "upstreams": states})
        if path == "/metrics" and metrics is not None:
            return 200, CONTENT_TYPE, metrics.text()
        words = "This listener has /health, /readyz, /health/upstreams and /metrics"
        return 404, JSON, ApiError(404, words, code="not_found").body()

    async def app(scope: Scope, _: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        status, content_type, body = page(scope["method"], scope["path"])
        headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(body))]
        if status == 405:
            headers.append((b"allow", b"GET, HEAD"))
        scope["extensions"][EXTENSION].answer_begins()
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    return app
