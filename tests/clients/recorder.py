"""A relay between the gateway and a backend that keeps every byte of what the backend answers."""

from __future__ import annotations

import asyncio
import http.client
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tests.support.upstream import Upstream, running
from tests.support.waiting import until


class _Bytes(io.BytesIO):
    """Bytes that http.client reads as it would a socket, one answer after the other."""

    def makefile(self, *_: object) -> _Bytes:
        return self

    def close(self) -> None:
        """Not after the first answer."""


@dataclass
class Recorder(Upstream):
    """Stands for the backend of the URL `behind`."""

    behind: str = ""
    received: list[bytearray] = field(default_factory=list)  # of each connection

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{urlsplit(self.behind).path}"

    def answer(self, mark: bytes) -> bytes:
        """The body of the one answer that holds `mark`, such as a completion's id, without its transfer coding."""
        return until(lambda: self._find(mark), f"no whole answer holds {mark!r}")

    def _find(self, mark: bytes) -> bytes | None:
        found = [body for received in self.received for body in _bodies(bytes(received)) if mark in body]
        assert len(found) < 2, f"several answers hold {mark!r}"
        return found[0] if found else None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.received.append(bytearray())
        backend = urlsplit(self.behind)
        its_reader, its_writer = await asyncio.open_connection(backend.hostname, backend.port)
        await asyncio.gather(_pump(reader, its_writer, bytearray()), _pump(its_reader, writer, self.received[-1]))


def _bodies(received: bytes) -> Iterator[bytes]:
    source = _Bytes(received)
    while source.tell() < len(received):
        answer = http.client.HTTPResponse(source)  # type: ignore[arg-type]  # it asks for no more than makefile
        try:
            answer.begin()
            yield answer.read()
        except (http.client.HTTPException, ValueError):
            return  # not whole yet


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, kept: bytearray) -> None:
    """Until either side ends; then the other one is told."""
    try:
        while data := await source.read(65536):
            kept += data
            sink.write(data)
            await sink.drain()
    except ConnectionError:
        pass
    finally:
        sink.close()


@contextmanager
def recording(url: str) -> Iterator[Recorder]:
    with running(Recorder(behind=url)) as recorder:
        yield recorder
