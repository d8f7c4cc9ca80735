"""The outermost ASGI app: request id, address, token, size, then the handler; and the record of each request.

Deny by default: whatever is not in `OPEN_PATHS` asks for a token, also paths that do not exist.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping

import orjson
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.api.hot import HotRoute
from gateway.http.errors import ApiError
from gateway.http.exchange import ClientGone, Exchange, too_large
from gateway.http.tokens import Doorkeeper
from gateway.observe.linelog import LineLog
from gateway.observe.metrics import Metrics

log = logging.getLogger(__name__)

OPEN_PATHS = ("/health", "/readyz", "/docs", "/openapi.json")
CLIENT_GONE = 499  # nginx's number for it; never sent, only recorded
LOGGED_CHARS = 20_000

Hot = Callable[[Exchange, HotRoute], Awaitable[None]]


class Edge:
    """Wraps the documented pages (`pages`, a FastAPI app) and answers the hot routes itself."""

    def __init__(
        self,
        pages: ASGIApp,
        hot: Hot,
        routes: Mapping[str, HotRoute],
        doorkeeper: Doorkeeper,
        max_request_bytes: int,
        metrics: Metrics,
        request_log: LineLog | None,
    ) -> None:
        self._pages = pages
        self._hot = hot
        self._routes = routes
        self._doorkeeper = doorkeeper
        self._max_request_bytes = max_request_bytes
        self._metrics = metrics
        self._request_log = request_log
        # 24 hex digits: 12 random ones a process, then a counter. Unique, not secret.
        self._id_prefix = f"req-{os.urandom(6).hex()}"
        self._requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._pages(scope, receive, send)
            return
        self._requests += 1
        exchange = Exchange(scope, receive, send, f"{self._id_prefix}{self._requests:012x}")
        try:
            await self._answer(exchange, scope, receive)
        finally:
            exchange.finish()
            self._record(exchange, scope)

    async def _answer(self, exchange: Exchange, scope: Scope, receive: Receive) -> None:
        try:
            try:
                await self._dispatch(exchange, scope, receive)
            except ApiError as error:
                await exchange.fail(error)
        except asyncio.CancelledError:
            if not exchange.was_left():
                raise
            self._client_left(exchange)
        except ClientGone:
            self._client_left(exchange)
        except Exception:
            # The last net: the client gets a well-formed 500, the log says why. Each one is a bug.
            log.exception("unexpected error", extra={"request_id": exchange.request_id})
            await exchange.fail(
                ApiError(500, f"Internal error; the log has it under {exchange.request_id}", code="internal_error")
            )

    async def _dispatch(self, exchange: Exchange, scope: Scope, receive: Receive) -> None:
        self._doorkeeper.check_address(exchange.client)
        path = exchange.path
        if path not in OPEN_PATHS:
            exchange.caller = self._doorkeeper.identify(exchange.headers.get(b"authorization")).name
        length = exchange.headers.get(b"content-length")
        if length is not None and (len(length) > 18 or int(length) > self._max_request_bytes):
            raise too_large(self._max_request_bytes, "MAX_REQUEST_BYTES")
        route = self._routes.get(path)
        if route is None:
            await self._pages(scope, receive, exchange.send)
        elif exchange.method != "POST":
            raise ApiError(405, f"{path} takes POST", code="method_not_allowed", headers=((b"allow", b"POST"),))
        else:
            await self._hot(exchange, route)

    def _client_left(self, exchange: Exchange) -> None:
        exchange.abort_reason = "client_disconnected"
        if not exchange.status:
            exchange.status = CLIENT_GONE

    def _record(self, exchange: Exchange, scope: Scope) -> None:
        ended = time.perf_counter()
        duration_ms = (ended - exchange.started) * 1000
        path = exchange.path if exchange.path in self._routes else _route_of(scope)
        self._metrics.request(path, exchange.status, duration_ms)
        if exchange.abort_reason is not None:
            self._metrics.aborted_stream(exchange.abort_reason)
        entry: dict[str, object] = {
            "ts": round(time.time(), 3),
            "request_id": exchange.request_id,
            "method": exchange.method,
            "path": exchange.path[:LOGGED_CHARS],
            "status": exchange.status,
            "stream": exchange.streamed,
            "duration_ms": round(duration_ms, 3),
            "token": exchange.caller,
            **exchange.facts,
        }
        if exchange.streamed:
            first_byte_ms = None
            if exchange.first_byte_at:
                first_byte_ms = round((exchange.first_byte_at - exchange.started) * 1000, 3)
                self._metrics.first_byte(path, first_byte_ms)
            entry |= {
                "chunks_out": exchange.chunks_out,
                "bytes_out": exchange.bytes_out,
                "ttft_ms": first_byte_ms,
            }
        if exchange.streamed or exchange.abort_reason:
            entry["abort_reason"] = exchange.abort_reason
        if self._request_log is not None:
            self._request_log.write(orjson.dumps(entry, option=orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE))


def _route_of(scope: Scope) -> str:
    """The template of the route that answered, so that paths from outside make no series of their own."""
    return getattr(scope.get("route"), "path", "other")
