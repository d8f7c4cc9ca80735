"""Connect to an origin, racing the two address families of a name that has both: uvloop has no happy eyeballs."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable

from gateway.wire.connection import Connection
from gateway.wire.origin import Origin, is_address

SECOND_FAMILY_AFTER = 0.25  # seconds; RFC 8305 section 5


async def dial(origin: Origin, factory: Callable[[], Connection], tls: ssl.SSLContext | None) -> Connection:
    """A connection made by `factory`. Raises OSError, of which ssl.SSLError is one."""
    if is_address(origin.host):
        return await _dial_family(origin, factory, tls, socket.AF_UNSPEC)
    first, *others = await _families(origin)
    if not others:
        return await _dial_family(origin, factory, tls, first)
    loop = asyncio.get_running_loop()
    attempts = [loop.create_task(_dial_family(origin, factory, tls, first))]
    winner: asyncio.Task[Connection] | None = None
    try:
        await asyncio.wait(attempts, timeout=SECOND_FAMILY_AFTER)
        if not _is_connected(attempts[0]):
            attempts.append(loop.create_task(_dial_family(origin, factory, tls, others[0])))
        pending = set(attempts)
        while pending and not any(map(_is_connected, attempts)):
            _, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        winner = next(filter(_is_connected, attempts), attempts[0])
        return winner.result()
    finally:
        for attempt in attempts:
            if not attempt.done():
                attempt.cancel()
            elif attempt is not winner and _is_connected(attempt):
                attempt.result().drop()


async def _families(origin: Origin) -> list[int]:
    """The address families of a name, in the system's order of preference."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(int(family) for family, *_ in found))


async def _dial_family(
    origin: Origin, factory: Callable[[], Connection], tls: ssl.SSLContext | None, family: int
) -> Connection:
    loop = asyncio.get_running_loop()
    connection = factory()
    try:
        transport, _ = await loop.create_connection(lambda: connection, origin.host, origin.port, family=family)
        if tls is not None:
            if transport.is_closing():
                raise ConnectionResetError("closed before the TLS handshake")
            # In a step of its own: what uvloop has begun of a handshake within create_connection outlives a cancel.
            secured = await loop.start_tls(transport, connection, tls, server_hostname=origin.host)
            connection.secured(secured)
    except BaseException:
        connection.pool.abandon(connection)
        raise
    return connection


def _is_connected(attempt: asyncio.Task[Connection]) -> bool:
    return attempt.done() and not attempt.cancelled() and attempt.exception() is None
