"""Client addresses: allowlists, and the client behind a trusted proxy."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated

from pydantic import BeforeValidator
from pydantic_settings import NoDecode

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

REMEMBERED_MAX = 512  # addresses for each list, about 100 kB
HOPS_MAX = 32
HOP_CHARS = 64  # an IPv6 address with brackets, zone and port
# `[v6]` or `[v6]:port`, `a.b.c.d` or `a.b.c.d:port`, an IPv6 address.
_HOP = re.compile(r"\[([^]]*:[^]]*)\](?::[0-9]+)?|([^:]*)(?::[0-9]+)?|(.*:.*:.*)", re.DOTALL)


def split(value: object) -> object:
    """The parts of a text with commas; what is no text stays."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _networks(value: object) -> object:
    value = split(value)
    if not isinstance(value, list) or not all(isinstance(part, str) for part in value):
        raise ValueError("write addresses and CIDRs, as a list or with commas")
    return tuple(ipaddress.ip_network(part, strict=False) for part in value)


Networks = Annotated[tuple[Network, ...], NoDecode, BeforeValidator(_networks)]


class AddressList:
    """Addresses and CIDRs; caches its verdicts, since a client calls often."""

    __slots__ = ("allows", "networks")

    def __init__(self, networks: Sequence[Network]) -> None:
        self.networks = tuple(networks)
        self.allows = lru_cache(maxsize=REMEMBERED_MAX)(self._allows)

    def _allows(self, host: str) -> bool:
        address = parse_address(host)
        return address is not None and self.holds(address)

    def holds(self, address: Address) -> bool:
        return any(address in network for network in self.networks)


def parse_address(text: str) -> Address | None:
    """The address, or None for malformed text; an IPv4 address that is mapped into IPv6 becomes IPv4."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def client_address(peer: str, forwarded: Sequence[bytes], proxies: AddressList) -> str:
    """The client's address: the right-most address in the X-Forwarded-For lines that is not a trusted proxy.

    A proxy appends to what its client sent, so an address that the client wrote is never believed. The result is the
    peer when it is not a trusted proxy, or when an address is malformed; the left-most address when all are trusted.
    """
    if not forwarded or not proxies.allows(peer):
        return peer
    hops = b",".join(forwarded).rsplit(b",", HOPS_MAX)
    address = None
    for hop in reversed(hops[-HOPS_MAX:]):
        address = _parse_hop(hop)
        if address is None:
            return peer
        if not proxies.holds(address):
            return str(address)
    return peer if len(hops) > HOPS_MAX else str(address)


def _parse_hop(hop: bytes) -> Address | None:
    text = hop.decode("latin-1").strip(" \t")
    found = _HOP.fullmatch(text) if len(text) <= HOP_CHARS else None
    return parse_address(found[found.lastindex or 0]) if found is not None else None
