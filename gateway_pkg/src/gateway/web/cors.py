"""Which pages in a browser may call (CORS, in the words of the Fetch standard)."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from gateway.errors import ApiError
from gateway.web.exchange import Exchange

METHODS = b"GET, HEAD, POST, DELETE"
MAX_AGE_SEC = b"600"
_NAMES = re.compile(rb"[A-Za-z0-9, _-]{0,1000}")


def is_preflight(method: str, headers: Mapping[bytes, bytes]) -> bool:
    return method == "OPTIONS" and b"origin" in headers and b"access-control-request-method" in headers


class Cors:
    """`origins` are CORS_ALLOW_ORIGINS: `*` is any."""

    def __init__(self, origins: Collection[str]) -> None:
        self._any = "*" in origins
        self._origins = frozenset(origin.encode() for origin in origins)

    def allow(self, exchange: Exchange) -> None:
        """Lets the page that asks read the answer, where it may."""
        origin = exchange.headers.get(b"origin")
        if origin is not None and (self._any or origin in self._origins):
            exchange.own_headers += (
                (b"access-control-allow-origin", origin),
                (b"access-control-expose-headers", b"*"),
                (b"vary", b"Origin"),
            )

    async def answer_preflight(self, exchange: Exchange) -> None:
        """Answers without a token: a browser asks before it sends one. Raises ApiError 403 for another origin."""
        asked = exchange.headers
        self.allow(exchange)
        if not exchange.own_headers:
            shown = asked[b"origin"][:200].decode("latin-1")
            message = f"Pages of {shown} may not call: ask the operator to add the origin to CORS_ALLOW_ORIGINS"
            raise ApiError(403, message, code="origin_not_allowed")
        wanted = asked.get(b"access-control-request-headers", b"")
        allowed = [
            (b"access-control-allow-methods", METHODS),
            (b"access-control-allow-headers", wanted if _NAMES.fullmatch(wanted) else b"authorization, content-type"),
            (b"access-control-max-age", MAX_AGE_SEC),
        ]
        if asked.get(b"access-control-request-private-network") == b"true":
            allowed.append((b"access-control-allow-private-network", b"true"))
        await exchange.answer(200, b"", allowed)
