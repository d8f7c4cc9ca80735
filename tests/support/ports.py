"""Ports of loopback for servers that a test starts."""

from __future__ import annotations

import socket

NOBODYS = 9  # the discard service's: no one listens there, and the system gives it to no one


def free_ports(count: int) -> list[int]:
    """Ports that for the next minute the system gives to no one else.

    Each has served a connection that its server has closed, and so is in TIME_WAIT: only who asks for it by number,
    with SO_REUSEADDR or SO_REUSEPORT as servers do, can have it.
    """
    return [_used_port() for _ in range(count)]


def _used_port() -> int:
    with socket.socket() as listener:
        for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            listener.setsockopt(socket.SOL_SOCKET, option, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port: int = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            listener.accept()[0].close()  # first: TIME_WAIT stays with who closes first
            client.recv(1)
    return port
