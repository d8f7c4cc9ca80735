"""How many tokens a prompt is, as the tokenizer of a backend that may get it says."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from gateway.backends.protocols.base import AnswerError
from gateway.backends.protocols.wire_protocol import promised
from gateway.backends.slots import Backend
from gateway.wire.errors import UpstreamError

log = logging.getLogger(__name__)

TIMEOUT_SEC = 2.0  # one core of a small machine counts 900 kB in 0.4 to 1.3 s
COUNTED_MAX_BYTES = 1_000_000
TOKEN_MAX_BYTES = 8  # seven digits, as no vocabulary has ten million, and a comma; a text has no more tokens than bytes


async def count(backend: Backend, model: str, request: Mapping[str, Any]) -> int | None:
    """The tokens of a chat's `messages`, else of a completion's `prompt`, on a backend whose protocol counts them.

    None where that is not known within TIMEOUT_SEC, whatever the reason, or would be a body of more than
    COUNTED_MAX_BYTES. Takes no slot of the backend's: it costs no inference.
    """
    counting = promised(backend.protocol.tokens)
    target, body = counting.request(model, request, backend.origin.prefix)
    if len(body) > COUNTED_MAX_BYTES:
        return None
    try:
        async with asyncio.timeout(TIMEOUT_SEC):
            response = await backend.pool.request(b"POST", target, backend.request_headers, body)
            answer = await response.read(TOKEN_MAX_BYTES * len(body))
        if response.status != 200:
            raise AnswerError(f"status {response.status}")
        return counting.read(request, answer)
    except (AnswerError, UpstreamError, TimeoutError) as error:
        why = str(error) or f"no answer within {TIMEOUT_SEC:g} s"
        log.info("backend %s did not count a prompt's tokens; the gateway estimates them: %s", backend.name, why)
        return None
