"""The outermost ASGI app: request id, address, token, size, then the handler.

Deny by default: whatever is not in `OPEN_PATHS` asks for a token, also paths that do not exist.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Callable, Mapping

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.api import docs
from gateway.api.hot import HotRoute
from gateway.http.errors import ApiError
from gateway.http.exchange import ClientGone, Exchange, too_large
from gateway.http.tokens import Doorkeeper

log = logging.getLogger(__name__)

OPEN_PATHS = ("/health", "/readyz", "/openapi.json", *docs.PATHS)
LENGTH_DIGITS = 18

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
        record: Callable[[Exchange], None],
    ) -> None:
        self._pages = pages
        self._hot = hot
        self._routes = routes
        self._doorkeeper = doorkeeper
        self._max_request_bytes = max_request_bytes
        self._limit_digits = len(str(max_request_bytes))
        self._record = record
        # 24 hex digits: 12 random ones a process, then a counter that has 12 from the start. Unique, not secret.
        self._id_prefix = f"req-{os.urandom(6).hex()}"
        self._last_id = 1 << 44

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._pages(scope, receive, send)
            return
        self._last_id += 1
        exchange = Exchange(scope, receive, send, self._id_prefix + hex(self._last_id)[2:])
        try:
            self._doorkeeper.check_address(scope["client"])
            path = scope["path"]
            if path not in OPEN_PATHS:
                exchange.caller = self._doorkeeper.identify(exchange.headers.get(b"authorization")).name
            self._check_length(exchange.headers.get(b"content-length"))
            hot = self._routes.get(path)
            if hot is None:
                await self._pages(scope, receive, exchange.send)
            elif scope["method"] == "POST":
                await self._hot(exchange, hot)
            else:
                raise ApiError(405, f"{path} takes POST", code="method_not_allowed", headers=((b"allow", b"POST"),))
        except ApiError as error:
            await exchange.fail(error)
        except ClientGone:
            exchange.client_left()
        except Exception:
            # The last net: the client gets a well-formed 500, the log says why. Each one is a bug.
            log.exception("unexpected error", extra={"request_id": exchange.request_id})
            words = f"Internal error; the log has it under {exchange.request_id}"
            await exchange.fail(ApiError(500, words, code="internal_error"))
        finally:
            self._record(exchange)

    def _check_length(self, length: bytes | None) -> None:
        # Most lengths have too few digits to be too large, and need not be read.
        if length is None or len(length) < self._limit_digits:
            return
        if len(length) > LENGTH_DIGITS or int(length) > self._max_request_bytes:
            raise too_large(self._max_request_bytes, "MAX_REQUEST_BYTES")
