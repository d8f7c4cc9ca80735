"""The end of a connection whose client may still be sending: it gets to read its answer.

A connection that is closed while bytes of its client are unread is reset, and a reset takes away the answer that the
client has not read yet. Most clients send their whole body before they read.
"""

from __future__ import annotations

import asyncio

# What is still taken of a body after its answer: more than MAX_UPLOAD_BYTES has by default, with a form's framing.
LINGER_MAX_BYTES = 32 * 1024 * 1024
# 5 MB at 4 Mbit/s; nginx's lingering_time is 30.
LINGER_MAX_SEC = 10.0
# A client that sends nothing for one to two of these has sent all, or has stopped.
LINGER_QUIET_SEC = 2.0


class Ending(asyncio.Protocol):
    """Throws away what comes, without parsing it, until the client leaves or a bound is reached; then closes.

    `owner` is the protocol whose connection this was; it is told the connection's end.
    """

    def __init__(
        self, owner: asyncio.BaseProtocol, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._owner = owner
        self._transport = transport
        self._loop = loop
        self._bytes_left = LINGER_MAX_BYTES
        self._due = loop.time() + LINGER_MAX_SEC
        self._has_come = False
        self._timer = loop.call_later(LINGER_QUIET_SEC, self._check)
        if transport.can_write_eof():  # TLS cannot
            transport.write_eof()

    def data_received(self, data: bytes) -> None:
        self._has_come = True
        self._bytes_left -= len(data)
        if self._bytes_left < 0:
            self._end()

    def pause_writing(self) -> None:
        self._owner.pause_writing()

    def resume_writing(self) -> None:
        self._owner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self._owner.connection_lost(exc)

    def hurry(self) -> None:
        """The server stops: the next look is the last."""
        self._due = self._loop.time()

    def _check(self) -> None:
        if not self._has_come or self._loop.time() >= self._due:
            self._end()
        else:
            self._has_come = False
            self._timer = self._loop.call_later(LINGER_QUIET_SEC, self._check)

    def _end(self) -> None:
        self._timer.cancel()
        self._transport.close()
        # A TLS client is not waited for to agree to the end; one that takes its answer slowly has its own time.
        self._timer = self._loop.call_later(LINGER_QUIET_SEC, self._cut)

    def _cut(self) -> None:
        if not self._transport.get_write_buffer_size():
            self._transport.abort()
