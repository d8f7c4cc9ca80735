"""The outermost ASGI app: request id, address, token, size, then the handler.

Deny by default: whatever is not an open path asks for a token, also paths that do not exist.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Callable, Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.access.tokens import Authenticator
from gateway.errors import ApiError, ClientDisconnected
from gateway.web.cors import Cors, is_preflight
from gateway.web.endpoint import Endpoints
from gateway.web.exchange import Exchange, request_id
from gateway.web.settings import RequestSettings

log = logging.getLogger(__name__)

REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


# Of these there is one, or a proxy before the gateway may have looked at another than it does.
SINGLE_HEADERS = frozenset(
    (b"api-key", b"authorization", b"content-encoding", b"content-type", b"x-api-key", b"x-backend", b"x-request-type")
)


def check_once(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Raises ApiError 400 for a header that decides something and is there with two values."""
    seen: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in SINGLE_HEADERS and seen.setdefault(name, value) != value:
            shown = name.decode()
            raise ApiError(400, f"The header '{shown}' is there twice: send it once", param=shown, code="conflict")


class Middleware:
    """Wraps the documented pages (`pages`, a FastAPI app) and answers the endpoints itself."""

    def __init__(
        self,
        pages: ASGIApp,
        endpoints: Endpoints,
        authenticator: Authenticator,
        settings: RequestSettings,
        record: Callable[[Exchange], None],
        open_paths: tuple[str, ...],
        open_directories: tuple[str, ...],
    ) -> None:
        self._pages = pages
        self._open_paths = open_paths
        self._open_directories = open_directories
        own, upload = (settings.max_request_bytes, "MAX_REQUEST_BYTES"), (settings.max_upload_bytes, "MAX_UPLOAD_BYTES")
        # With pictures and sounds, and without.
        is_one = settings.max_request_bytes_strict or settings.max_upload_bytes <= settings.max_request_bytes
        limits = {
            True: own + (own if is_one else upload),
            False: upload + upload,
        }
        self._cors = Cors(settings.cors_allow_origins)
        self._has_cors = bool(settings.cors_allow_origins)
        self._endpoints = {
            endpoint.path: (endpoint, handler, *limits[endpoint.form is None]) for endpoint, handler in endpoints
        }
        self._doorkeeper = authenticator
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
        headers = exchange.headers
        if b"x-request-id" in headers and REQUEST_ID.fullmatch(headers[b"x-request-id"]):
            exchange.request_id = headers[b"x-request-id"].decode()
        request_id.set(exchange.request_id)
        try:
            if len(headers) != len(scope["headers"]):
                check_once(scope["headers"])
            if is_preflight(scope["method"], headers):
                self._doorkeeper.check_address(scope)
                await self._cors.answer_preflight(exchange)
                return
            if self._has_cors:
                self._cors.allow(exchange)
            path = scope["path"]
            served = self._endpoints.get(path)
            if served is None:
                await self._page(exchange, path)
                return
            endpoint, handler, limit, limit_name, whole_limit, whole_name = served
            exchange.errors = endpoint.errors
            exchange.caller = caller = self._doorkeeper.identify(scope, headers)
            if caller.is_limited:
                caller.admit(exchange.started, uses_tokens=True)
                exchange.own_headers += caller.headers(exchange.started)
            if scope["method"] != "POST":
                allow = (b"allow", b"OPTIONS, POST")
                if scope["method"] != "OPTIONS":
                    raise ApiError(405, f"{path} takes POST", code="method_not_allowed", headers=(allow,))
                await exchange.answer(200, b"", [allow])
                return
            own = caller.policy.max_request_bytes
            if own is not None:
                limit, limit_name = whole_limit, whole_name = own, "max_request_bytes of the token's policy"
            exchange.limit, exchange.limit_name = limit, limit_name
            exchange.whole_limit, exchange.whole_name = whole_limit, whole_name
            await handler(exchange, endpoint)
        except ApiError as error:
            await exchange.fail(error)
        except ClientDisconnected:
            exchange.client_disconnected()
        except asyncio.CancelledError:
            # A stop waits no longer for this answer; half of it is not to look like all.
            exchange.abort_reason = "shutdown"
            await exchange.break_off()
        except Exception:
            # The last net: the client gets a well-formed 500, the log says why. Each one is a bug.
            log.exception("unexpected error")
            words = f"Internal error; the gateway's log has it under {exchange.request_id}"
            await exchange.fail(ApiError(500, words, code="internal_error"))
        finally:
            self._record(exchange)

    async def _page(self, exchange: Exchange, path: str) -> None:
        """Leaves the request to the documented pages; its caller is known but on open paths."""
        if path in self._open_paths or path.startswith(self._open_directories):
            self._doorkeeper.check_address(exchange.scope)
        else:
            exchange.caller = caller = self._doorkeeper.identify(exchange.scope, exchange.headers)
            caller.admit(exchange.started, uses_tokens=False)
            exchange.own_headers += caller.headers(exchange.started)
        exchange.scope["gateway.exchange"] = exchange
        # Who is asked for a head alone answers as to GET; the server leaves the body out.
        is_head = exchange.scope["method"] == "HEAD"
        scope = {**exchange.scope, "method": "GET"} if is_head else exchange.scope
        await self._pages(scope, exchange.receive, exchange.send)
