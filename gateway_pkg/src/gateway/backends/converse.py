"""Sends the requests of a conversation with one backend; `protocols.steps` describes its steps."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, TypeVar

from gateway import background
from gateway.backends.protocols.base import AnswerError, ErrorStatus
from gateway.backends.protocols.steps import NOTHING, Abandoned, Ask, Reply, Step, Steps
from gateway.backends.slots import Backend
from gateway.wire.connection import OnAbort
from gateway.wire.errors import ConnectFailed, UpstreamClosed, UpstreamError

log = logging.getLogger(__name__)

FAREWELL_SEC = 5.0  # what an abandoned conversation may still take to stop its job
T = TypeVar("T")


_farewells: set[asyncio.Task[None]] = set()


async def converse(
    backend: Backend,
    steps: Steps[T],
    max_response_bytes: int,
    only_once: bool = False,
    on_abort: OnAbort | None = None,
) -> T:
    """Does what the steps ask and returns what they return.

    When this is cancelled, or the backend fails, the steps are abandoned: what they then ask is asked in the
    background, within FAREWELL_SEC. `only_once` is as the pool's. `on_abort` is called where the backend may not have
    ended its work.
    Raises ErrorStatus where the backend refuses, AnswerError where it answers something else, UpstreamError where it
    cannot be asked.
    """
    reply: Reply | None = None
    while True:
        try:
            step = next(steps) if reply is None else steps.send(reply)
        except StopIteration as end:
            result: T = end.value
            return result
        except ErrorStatus as error:
            if error.status == 422:  # FastAPI's servers' word for what OpenAI's API calls 400
                error.status = 400
            raise
        try:
            reply = await _do(backend, step, max_response_bytes, only_once)
        except BaseException as error:
            if reply is not None and isinstance(error, UpstreamError):
                error.sendings = 2  # what has begun here is not begun again elsewhere
            if on_abort is not None and not isinstance(error, ConnectFailed | UpstreamClosed):
                on_abort()
            _abandon(backend, steps, max_response_bytes)
            raise


async def settled() -> None:
    """Returns when no abandoned conversation asks anything more: to be awaited before the pools are closed."""
    while _farewells:
        await asyncio.wait(_farewells)


async def _do(backend: Backend, step: Step, max_response_bytes: int, only_once: bool = False) -> Reply:
    if not isinstance(step, Ask):
        await asyncio.sleep(step.seconds if step is not None else 0)
        return NOTHING
    headers = backend.auth_headers
    if step.body:
        headers += f"Content-Type: {step.content_type}\r\n".encode("latin-1")
    # Records of the earlier system name the server alone, others OpenAI's root.
    prefix = backend.origin.prefix
    target = prefix + (step.path.removeprefix("/v1") if prefix else step.path).encode("latin-1")
    response = await backend.pool.request(step.method.encode("ascii"), target, headers, step.body, only_once)
    return Reply(response.status, await response.read(max_response_bytes), response.header(b"retry-after"))


def _abandon(backend: Backend, steps: Steps[Any], max_response_bytes: int) -> None:
    try:
        step = steps.throw(Abandoned())
    except (Abandoned, StopIteration):
        return
    task = asyncio.create_task(_take_leave(backend, steps, step, max_response_bytes))
    _farewells.add(task)  # the loop itself keeps only weak references
    task.add_done_callback(_farewells.discard)


async def _take_leave(backend: Backend, steps: Steps[Any], step: Step, max_response_bytes: int) -> None:
    try:
        async with asyncio.timeout(FAREWELL_SEC):
            while True:
                step = steps.send(await _do(backend, step, max_response_bytes))
    except (Abandoned, StopIteration):
        pass
    except (AnswerError, UpstreamError, TimeoutError) as error:
        name = backend.record.backend_class
        log.warning("a job of backend '%s' was not cancelled: %s", name, str(error) or "no answer in time")
    except Exception:
        background.failed("abandoned_job")
    finally:
        steps.close()
