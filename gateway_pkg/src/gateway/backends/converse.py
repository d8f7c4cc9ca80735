"""Talks of several requests with one backend: submit, poll, fetch.

What is said is a generator without I/O, so that it is tested byte by byte: it yields an Ask and is sent the Reply, or
yields a Pause and is sent an empty one. `converse` does the talking.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson

from gateway import background
from gateway.backends.failures import refused
from gateway.backends.protocols.base import AnswerError, written
from gateway.backends.registry import Backend
from gateway.wire.connection import HangUp
from gateway.wire.errors import ConnectFailed, UpstreamClosed, UpstreamError
from gateway.wire.stepwise import LongTexts, TooMuchJson, loads, parsed

log = logging.getLogger(__name__)

FAREWELL_SEC = 5.0  # what an abandoned conversation may still take to stop its job
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. `path` is below the backend's base_url."""

    method: str
    path: str
    body: bytes = b""
    content_type: str = "application/json"


@dataclass(frozen=True, slots=True)
class Pause:
    seconds: float


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer of any status, as it came."""

    status: int
    content_type: str
    body: bytes

    def content(self) -> bytes:
        """The body of a 2xx.

        Raises:
            Refused: another status.
        """
        if not 200 <= self.status < 300:
            raise Refused(self)
        return self.body

    def json(self) -> dict[str, Any]:
        """The JSON object of a 2xx.

        Raises:
            Refused: another status.
            AnswerError: the body is no JSON object.
        """
        return self._object(lambda body: (loads(body), {}))[0]

    def json_and_texts(self) -> tuple[dict[str, Any], LongTexts]:
        """The same with names instead of its long texts, and these by their names; raises as `json`."""
        return self._object(parsed)

    def _object(self, parse: Callable[[bytes], tuple[Any, LongTexts]]) -> tuple[dict[str, Any], LongTexts]:
        try:
            content, texts = parse(self.content())
        except TooMuchJson as error:
            raise AnswerError(error.msg) from None
        except orjson.JSONDecodeError:
            raise AnswerError(f"no JSON in an answer of type '{self.content_type[:100]}'") from None
        if not isinstance(content, dict):
            raise AnswerError("an answer that is no JSON object")
        written(content)  # a part of it is told to the client
        return content, texts


class Refused(Exception):
    """The backend said no."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.status)
        self.reply = reply


class Abandoned(Exception):
    """Thrown into the steps when nobody waits for their end any more; they may ask once more, to stop their job."""


Steps = Generator[Ask | Pause, Reply, T]
NOTHING = Reply(0, "", b"")


def paced(work: Generator[None, None, T]) -> Steps[T]:
    """What `work` returns; the event loop has its turn where it stops."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: T = end.value
            return result
        yield Pause(0)


_farewells: set[asyncio.Task[None]] = set()


async def converse(
    backend: Backend, steps: Steps[T], *, max_response_bytes: int, on_hang_up: HangUp | None = None
) -> T:
    """Does what the steps ask and returns what they return.

    When this is cancelled, or the backend fails, the steps are abandoned: what they then ask is asked in the
    background, within FAREWELL_SEC. `on_hang_up` is called where the backend may not have ended its work.

    Raises:
        ApiError: the backend refused.
        AnswerError: what it answered is no answer.
        UpstreamError: the backend could not be asked.
    """
    reply: Reply | None = None
    while True:
        try:
            step = next(steps) if reply is None else steps.send(reply)
        except StopIteration as end:
            result: T = end.value
            return result
        except Refused as error:
            # What OpenAI's API calls 400, FastAPI's servers call 422.
            status = 400 if error.reply.status == 422 else error.reply.status
            raise refused(status, error.reply.body, backend) from error
        try:
            reply = await _do(backend, step, max_response_bytes)
        except BaseException as error:
            if on_hang_up is not None and not isinstance(error, ConnectFailed | UpstreamClosed):
                on_hang_up()
            _abandon(backend, steps, max_response_bytes)
            raise


async def settled() -> None:
    """Returns when no abandoned conversation asks anything more: to be awaited before the pools are closed."""
    while _farewells:
        await asyncio.wait(_farewells)


async def _do(backend: Backend, step: Ask | Pause, max_response_bytes: int) -> Reply:
    if isinstance(step, Pause):
        await asyncio.sleep(step.seconds)
        return NOTHING
    headers = backend.auth_headers
    if step.body:
        headers += f"Content-Type: {step.content_type}\r\n".encode("latin-1")
    target = backend.pool.origin.prefix + step.path.encode("latin-1")
    response = await backend.pool.request(step.method.encode("ascii"), target, headers, step.body)
    try:
        body = await response.read(max_response_bytes)
    finally:
        response.close()
    return Reply(response.status, (response.header(b"content-type") or b"").decode("latin-1"), body)


def _abandon(backend: Backend, steps: Steps[Any], max_response_bytes: int) -> None:
    try:
        step = steps.throw(Abandoned())
    except (Abandoned, StopIteration):
        return
    task = asyncio.create_task(_take_leave(backend, steps, step, max_response_bytes))
    _farewells.add(task)  # the loop itself keeps only weak references
    task.add_done_callback(_farewells.discard)


async def _take_leave(backend: Backend, steps: Steps[Any], step: Ask | Pause, max_response_bytes: int) -> None:
    try:
        async with asyncio.timeout(FAREWELL_SEC):
            while True:
                step = steps.send(await _do(backend, step, max_response_bytes))
    except (Abandoned, StopIteration):
        pass
    except (AnswerError, Refused, UpstreamError, TimeoutError) as error:
        name = backend.record.backend_class
        log.warning("a job of backend '%s' could not be stopped: %s", name, str(error) or "no answer in time")
    except Exception:
        background.failed("abandoned_job")
    finally:
        steps.close()
