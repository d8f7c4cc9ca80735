"""Audio that stays on its backend: passed on as it comes, whole or a range of it."""

from __future__ import annotations

import asyncio
import re

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.backends.failures import failure, refused, wrong_answer
from gateway.backends.protocols.base import AnswerError
from gateway.backends.protocols.wire_protocol import promised
from gateway.backends.slots import Backend
from gateway.errors import ApiError
from gateway.web.exchange import Exchange
from gateway.wire.errors import UpstreamError, UpstreamTimeout
from gateway.wire.http1 import Response as Answer

ERROR_MAX_BYTES = 64 * 1024
# Of RFC 9110; what is none of it is not passed on, as the RFC allows.
_RANGE = re.compile(rb"bytes=[0-9, -]{1,100}")
_IF_RANGE = re.compile(rb"[!-~ ]{1,200}")
_PASSED_HEADERS = (b"content-length", b"content-range", b"accept-ranges", b"etag", b"last-modified")


class ProxiedAudio(Response):
    """A backend's file as it comes, whole or a range of it."""

    def __init__(self, exchange: Exchange, backend: Backend, file: str, seconds: float) -> None:
        super().__init__()
        self._exchange = exchange
        self._backend = backend
        self._file = file
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises ApiError before the head is out; later the connection breaks off."""
        exchange = self._exchange
        exchange.cancel_on_disconnect()
        try:
            await self._pass_on(send)
        except asyncio.CancelledError:
            if not exchange.has_disconnected():
                raise
            exchange.client_disconnected()
        except UpstreamError as error:
            if not exchange.status:
                raise failure(error, self._backend) from error
            exchange.finished()  # the client does not leave: it is sent away
            await exchange.fail(failure(error, self._backend))
        except AnswerError as error:
            raise wrong_answer(error, self._backend) from error
        finally:
            exchange.finished()

    async def _pass_on(self, send: Send) -> None:
        answer = await self._ask()
        try:
            media = answer.header(b"content-type") or b""
            if answer.status == 404:
                raise ApiError(404, f"The backend no longer has the piece '{self._file}'", code="not_found")
            if answer.status not in (200, 206, 416):
                raise refused(answer.status, await answer.read(ERROR_MAX_BYTES), self._backend)
            if answer.status != 416 and not media.startswith(b"audio/"):
                raise AnswerError(f"content type '{media[:100].decode('latin-1')}' instead of audio")
            headers = [(name, value) for name, value in answer.headers if name in _PASSED_HEADERS]
            headers += [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"private")]
            if media.startswith(b"audio/"):
                headers.append((b"content-type", media))
            await send({"type": "http.response.start", "status": answer.status, "headers": headers})
            while chunk := await answer.next_chunk():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            answer.close()

    async def _ask(self) -> Answer:
        lines = self._backend.auth_headers
        for name, shape in ((b"range", _RANGE), (b"if-range", _IF_RANGE)):
            value = self._exchange.headers.get(name, b"")
            if shape.fullmatch(value):
                lines += b"%b: %b\r\n" % (name.title(), value)
        prefix = self._backend.origin.prefix.removesuffix(b"/v1")
        directory = promised(self._backend.protocol.music).audio_path.encode()
        try:
            async with asyncio.timeout(self._seconds):
                target = prefix + directory + self._file.encode()
                return await self._backend.pool.request(b"GET", target, lines)
        except TimeoutError:
            raise UpstreamTimeout(f"no audio within {self._seconds:g} s", "first_byte") from None
