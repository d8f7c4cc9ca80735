"""How many tokens a prompt is, as the tokenizer of a backend that may get it says: llama.cpp's server has two routes.

`/chat/completions/input_tokens` applies the model's template and tells the number; a completion's prompt has no
template, and of its tokens there is only the list, at `/tokenize` below the server's root.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Mapping
from typing import Any

from gateway.backends.protocols.base import AnswerError, json_object
from gateway.backends.registry import Backend
from gateway.backends.usage import count_of
from gateway.routing.body import dump
from gateway.wire.errors import UpstreamError

log = logging.getLogger(__name__)

TIMEOUT_SEC = 2.0  # one core of a small machine counts 900 kB in 0.4 to 1.3 s
COUNTED_MAX_BYTES = 1_000_000
TOKEN_MAX_BYTES = 8  # in a list: seven digits, since no vocabulary has ten million, and a comma
_TOKENS = re.compile(rb'\s*\{\s*"tokens"\s*:\s*\[[\d,\s]*\]\s*\}\s*')


async def count(backend: Backend, model: str, request: Mapping[str, Any]) -> int | None:
    """The tokens of a chat's `messages`, else of a completion's `prompt`, on a backend of protocol `llamacpp`.

    None where that is not known within TIMEOUT_SEC, whatever the reason, or would be a body of more than
    COUNTED_MAX_BYTES. Takes no slot of the backend's: it costs no inference.
    """
    messages, prefix = request.get("messages"), backend.origin.prefix
    if messages:
        target = prefix + b"/chat/completions/input_tokens"
        body = dump({"model": model, "messages": messages})
    else:
        target = prefix.removesuffix(b"/v1") + b"/tokenize"
        body = dump({"model": model, "content": request.get("prompt"), "add_special": True})
    if len(body) > COUNTED_MAX_BYTES:
        return None
    try:
        async with asyncio.timeout(TIMEOUT_SEC):
            answer = await _ask(backend, target, body)
        return _told(answer) if messages else _listed(answer)
    except (AnswerError, UpstreamError, TimeoutError) as error:
        why = str(error) or f"no answer within {TIMEOUT_SEC:g} s"
        log.info("backend %s did not count a prompt's tokens, they are estimated: %s", backend.name, why)
        return None


async def _ask(backend: Backend, target: bytes, body: bytes) -> bytes:
    response = await backend.pool.request(b"POST", target, backend.request_headers, body)
    try:
        # No text has more tokens than bytes.
        answer = await response.read(TOKEN_MAX_BYTES * len(body))
    finally:
        response.close()
    if response.status != 200:
        raise AnswerError(f"status {response.status}")
    return answer


def _told(answer: bytes) -> int:
    tokens = count_of(json_object(answer).get("input_tokens"))
    if tokens is None:
        raise AnswerError("a count of tokens without input_tokens")
    return tokens


def _listed(answer: bytes) -> int:
    """Without parsing: a list of half a million numbers would hold the event loop for 60 ms."""
    if not _TOKENS.fullmatch(answer):
        raise AnswerError("no list of tokens")
    return answer.count(b",") + 1
