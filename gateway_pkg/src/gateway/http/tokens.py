"""Who is calling: bearer tokens and addresses."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache
from hashlib import sha256

from gateway.http.errors import ApiError
from gateway.settings import Network

ACCEPTED_MAX = 1_000
CHALLENGE = ((b"www-authenticate", b"Bearer"),)


class Caller:
    """A token that is known. `name` stands for it in logs and metrics: the first 8 hex digits of its sha256."""

    __slots__ = ("name",)

    def __init__(self, token: str) -> None:
        self.name = sha256(token.encode()).hexdigest()[:8]


class Doorkeeper:
    """Knows the accepted tokens and addresses.

    Tokens are looked up by their sha256, headers that were accepted before by Python's own keyed hash: the time of
    neither look-up says anything about a token's characters.
    """

    def __init__(self, tokens: Iterable[str], networks: tuple[Network, ...] = ()) -> None:
        self._callers = {sha256(token.encode()).digest(): Caller(token) for token in tokens}
        self._accepted: dict[bytes, Caller] = {}
        self._networks = networks
        self._is_allowed = lru_cache(maxsize=4096)(self._in_networks)

    def check_address(self, client: tuple[str, int] | None) -> None:
        """Raises ApiError 403 unless the peer's address is in the allowlist (empty: all are)."""
        if self._networks and not (client and self._is_allowed(client[0])):
            raise ApiError(
                403,
                "Client IP not allowed: ask the operator to add it to IP_ALLOWLIST",
                code="ip_not_allowed",
            )

    def identify(self, authorization: bytes | None) -> Caller:
        """The caller named by an `Authorization` header; raises ApiError 401."""
        known = self._accepted.get(authorization) if authorization is not None else None
        if known is not None:
            return known
        if authorization is None or authorization[:7].lower() != b"bearer ":
            raise ApiError(
                401,
                "Missing bearer token: send the header 'Authorization: Bearer <token>'",
                code="missing_token",
                headers=CHALLENGE,
            )
        caller = self._callers.get(sha256(authorization[7:].strip()).digest())
        if caller is None:
            raise ApiError(401, "Invalid bearer token", code="invalid_token", headers=CHALLENGE)
        if len(self._accepted) >= ACCEPTED_MAX:
            self._accepted.clear()
        self._accepted[authorization] = caller
        return caller

    def _in_networks(self, host: str) -> bool:
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network for network in self._networks)
