"""A relay between the gateway and a backend that keeps every byte of what the backend answers."""

from __future__ import annotations

import http.client
import io
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tests.support.waiting import until


class _Bytes(io.BytesIO):
    """Bytes that http.client reads as it would a socket, one answer after the other."""

    def makefile(self, *_: object) -> _Bytes:
        return self

    def close(self) -> None:
        """Not after the first answer."""


@dataclass
class Recorder:
    """`url` is the backend's API as reached through the relay."""

    url: str = ""
    received: list[bytearray] = field(default_factory=list)  # of each connection

    def answer(self, mark: bytes) -> bytes:
        """The body of the one answer that holds `mark`, such as a completion's id, without its transfer coding."""
        return until(lambda: self._find(mark), f"no whole answer holds {mark!r}")

    def _find(self, mark: bytes) -> bytes | None:
        found = [body for received in self.received for body in _bodies(bytes(received)) if mark in body]
        assert len(found) < 2, f"several answers hold {mark!r}"
        return found[0] if found else None


def _bodies(received: bytes) -> Iterator[bytes]:
    source = _Bytes(received)
    while source.tell() < len(received):
        answer = http.client.HTTPResponse(source)  # type: ignore[arg-type]  # it asks for no more than makefile
        try:
            answer.begin()
            yield answer.read()
        except (http.client.HTTPException, ValueError):
            return  # not whole yet


class _Relay(socketserver.BaseRequestHandler):
    backend: tuple[str, int]
    recorder: Recorder

    def handle(self) -> None:
        received = bytearray()
        self.recorder.received.append(received)
        with suppress(OSError), socket.create_connection(self.backend) as server:
            upwards = threading.Thread(target=_pump, args=(self.request, server, bytearray()))
            upwards.start()
            _pump(server, self.request, received)
            upwards.join()


def _pump(source: socket.socket, sink: socket.socket, kept: bytearray) -> None:
    """Until either side ends; then both are told."""
    with suppress(OSError):
        while data := source.recv(65536):
            kept += data
            sink.sendall(data)
    for end in (source, sink):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextmanager
def recording(url: str) -> Iterator[Recorder]:
    """Relays to the server of `url` until the end of the block; who connects must have left by then."""
    parts = urlsplit(url)
    recorder = Recorder()
    relay = type("Relay", (_Relay,), {"backend": (parts.hostname, parts.port), "recorder": recorder})
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), relay) as server:
        recorder.url = f"http://127.0.0.1:{server.server_address[1]}{parts.path}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield recorder
        finally:
            server.shutdown()
            thread.join()
