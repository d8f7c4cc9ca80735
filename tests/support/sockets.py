"""Requests on bare sockets, for tests that must see, or leave, a connection."""

import socket
from typing import Any

import httpx

from tests.support.gateways import TOKEN
from tests.support.waiting import PATIENCE_SEC


def send(port: int, path: str, json: Any = None, *, buffer: int | None = None, **fields: Any) -> socket.socket:
    """A connection on which a POST was sent and nothing was read.

    `json`, or else what `fields` name as httpx does, is the body; `buffer` is the size of the socket's receive
    buffer in bytes.
    """
    request = httpx.Request("POST", f"http://x{path}", json=json, **fields)
    body = request.read()
    lines = [f"{name}: {value}" for name, value in request.headers.items()]
    head = "\r\n".join([f"POST {path} HTTP/1.1", f"Authorization: Bearer {TOKEN}", *lines, "", ""])
    connection = connect(port, buffer)
    connection.sendall(head.encode() + body)
    return connection


def connect(port: int, buffer: int | None = None) -> socket.socket:
    """A connection to a port of loopback, on which nothing that is waited for can take for ever."""
    connection = socket.socket()
    if buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.settimeout(PATIENCE_SEC)
    connection.connect(("127.0.0.1", port))
    return connection


def read_until(connection: socket.socket, text: bytes, count: int = 1) -> bytes:
    """What came once `text` is in it `count` times; it may come in any pieces."""
    received = b""
    while received.count(text) < count:
        data = connection.recv(65536)
        assert data, received
        received += data
    return received


def read_to_end(connection: socket.socket) -> bytes:
    """All that comes until the connection is closed."""
    received = b""
    while data := connection.recv(65536):
        received += data
    return received
