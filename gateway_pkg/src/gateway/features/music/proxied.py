"""Audio that stays on its backend: passed on as it comes, whole or a range of it."""

from __future__ import annotations

import re

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.backends.call import Dispatcher, Message
from gateway.backends.failures import wrong_type
from gateway.backends.protocols.wire_protocol import promised
from gateway.backends.slots import Backend
from gateway.errors import ApiError, ClientDisconnected
from gateway.web.exchange import Exchange

PASSES = (200, 206, 404, 416)
# As RFC 9110 has them; whatever has another form is not passed on, as the RFC allows.
_RANGE = re.compile(rb"bytes=[0-9, -]{1,100}")
_IF_RANGE = re.compile(rb"[!-~ ]{1,200}")
_PASSED_HEADERS = (b"content-length", b"content-range", b"accept-ranges", b"etag", b"last-modified")


class ProxiedAudio(Response):
    """A backend's file as it comes, whole or a range of it; its head comes within `seconds`."""

    def __init__(self, dispatcher: Dispatcher, exchange: Exchange, backend: Backend, file: str, seconds: float) -> None:
        super().__init__()
        self._dispatcher = dispatcher
        self._exchange = exchange
        self._backend = backend
        self._file = file
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises ApiError before the head is out; later the connection breaks off."""
        exchange = self._exchange
        try:
            await self._pass_on(send)
        except ClientDisconnected:
            exchange.client_disconnected()
        except ApiError as error:
            if not exchange.status:
                raise
            await exchange.fail(error)

    async def _pass_on(self, send: Send) -> None:
        message = self._message()
        async with self._dispatcher.fetch(self._exchange, self._backend, message, self._seconds, PASSES) as answer:
            media = answer.header(b"content-type") or b""
            if answer.status == 404:
                raise ApiError(404, f"The backend no longer has the piece '{self._file}'", code="not_found")
            if answer.status != 416 and not media.startswith(b"audio/"):
                raise wrong_type(media, "audio")
            headers = [(name, value) for name, value in answer.headers if name in _PASSED_HEADERS]
            headers += [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"private")]
            if media.startswith(b"audio/"):
                headers.append((b"content-type", media))
            await send({"type": "http.response.start", "status": answer.status, "headers": headers})
            while chunk := await answer.next_chunk():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

    def _message(self) -> Message:
        lines = b""
        for name, shape in ((b"range", _RANGE), (b"if-range", _IF_RANGE)):
            value = self._exchange.headers.get(name, b"")
            if shape.fullmatch(value):
                lines += b"%b: %b\r\n" % (name.title(), value)
        prefix = self._backend.origin.prefix.removesuffix(b"/v1")
        path = promised(self._backend.protocol.music).audio_path + self._file
        return Message(prefix + path.encode(), lines=lines, method=b"GET")
