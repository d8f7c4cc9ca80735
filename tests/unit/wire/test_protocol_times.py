"""How long each phase of a request may take, on a clock that a test moves on by hand."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import Mock

import pytest
import uvicorn
from gateway.wire.ending import LINGER_MAX_SEC
from gateway.wire.protocol import REQUEST_HEAD_MAX_SEC, Protocol
from uvicorn.server import ServerState

WHOLE = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nok"


class Connection:
    """A protocol; `mock` is its transport and its event loop, and `unsent` bytes wait in its buffer."""

    def __init__(self) -> None:
        self.now = 0.0
        self.unsent = 0
        self.timers: list[asyncio.TimerHandle] = []
        self.mock = mock = Mock()
        mock.get_debug.return_value = False
        mock.time = lambda: self.now
        mock.call_at = self._call_at
        mock.call_later = lambda delay, *callback: self._call_at(self.now + delay, *callback)
        mock.call_soon = lambda callback: callback()
        mock.create_task = lambda work: (work.close(), Mock())[1]
        mock.get_write_buffer_size = lambda: self.unsent
        mock.can_write_eof.return_value = False
        mock.get_extra_info.return_value = None
        mock.is_closing = lambda: mock.close.called or mock.abort.called
        config = uvicorn.Config(Mock(), http=Protocol, log_config=None, interface="asgi3")
        self.protocol = Protocol(config, ServerState(), {}, mock)
        self.protocol.connection_made(mock)

    def _call_at(self, due: float, callback: Any, *arguments: Any) -> asyncio.TimerHandle:
        self.timers.append(asyncio.TimerHandle(due, callback, arguments, self.mock))
        return self.timers[-1]

    def receive(self, data: bytes, *, answered: bool = False) -> None:
        self.protocol.data_received(data)
        if answered:
            self.protocol.cycle.response_complete = True

    def pass_time(self, seconds: float) -> None:
        """Runs what becomes due, in its order."""
        end = self.now + seconds
        while due := [timer for timer in self.timers if timer.when() <= end and not timer.cancelled()]:
            timer = min(due, key=asyncio.TimerHandle.when)
            self.timers.remove(timer)
            self.now = max(self.now, timer.when())
            timer._callback(*timer._args)  # type: ignore[attr-defined]  # so that its errors are the test's
        self.now = end


def test_each_head_has_the_whole_of_its_time() -> None:
    connection = Connection()
    for _ in range(3):  # the connection outlives it
        connection.receive(WHOLE, answered=True)
        connection.pass_time(2 * REQUEST_HEAD_MAX_SEC)
    connection.receive(WHOLE, answered=True)
    connection.pass_time(REQUEST_HEAD_MAX_SEC - 1)
    connection.receive(b"POST / HTTP/1.1\r\n")
    connection.pass_time(REQUEST_HEAD_MAX_SEC - 1)
    assert not connection.mock.close.called
    connection.receive(b"Content-Le")
    connection.pass_time(2 + LINGER_MAX_SEC)
    assert connection.mock.close.called


def begun() -> Connection:
    """One with more to send than its client takes."""
    connection = Connection()
    connection.receive(WHOLE)
    connection.unsent = 100_000
    return connection


def test_only_who_takes_nothing_is_cut() -> None:
    """Whoever has taken anything since the last look gets as much time again."""
    connection = begun()
    connection.protocol.pause_writing()
    for _ in range(3):
        connection.unsent -= 1
        connection.pass_time(Protocol.send_timeout)
        assert not connection.mock.abort.called
    connection.pass_time(Protocol.send_timeout)
    assert connection.mock.abort.called


def test_nobody_is_cut_once_writing_is_resumed() -> None:
    connection = begun()
    connection.protocol.pause_writing()
    connection.unsent = 1000
    connection.protocol.resume_writing()
    connection.pass_time(10 * Protocol.send_timeout)
    assert not connection.mock.abort.called


@pytest.mark.parametrize("is_paused", [False, True])
def test_what_is_left_at_the_end_has_its_time_too(is_paused: bool) -> None:
    """Less than stops a writer, or what is left of more: nobody but the event loop waits for it."""
    connection = begun()
    if is_paused:
        connection.protocol.pause_writing()
    connection.protocol.transport.close()
    connection.unsent = 1000
    if is_paused:
        connection.protocol.resume_writing()
    connection.pass_time(2 * Protocol.send_timeout)
    assert connection.mock.abort.called


@pytest.mark.parametrize(
    ("sent", "is_told", "is_closed"),
    [
        (b"", False, True),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX-Half", True, True),
        (WHOLE, False, False),
        (WHOLE + b"GET / HTTP/1.1\r\nX-Half", False, False),
    ],
    ids=["nothing", "half a head", "a whole request", "one and a half"],
)
def test_head_has_its_time_and_no_answer_under_way_is_disturbed(sent: bytes, is_told: bool, is_closed: bool) -> None:
    connection = Connection()
    connection.receive(sent) if sent else None
    connection.pass_time(REQUEST_HEAD_MAX_SEC + 1 + LINGER_MAX_SEC)
    written = b"".join(call.args[0] for call in connection.mock.write.call_args_list)
    assert (b"408 Request Timeout" in written, connection.mock.close.called) == (is_told, is_closed)
