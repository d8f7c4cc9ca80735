"""How many tokens a conversation is, told by the backend's own tokenizer and template."""

from __future__ import annotations

from typing import Any

from gateway.backends.call import Dispatcher, Message, as_understood
from gateway.backends.protocols.base import AnswerError, ErrorStatus, json_object
from gateway.backends.registry import Route
from gateway.backends.slots import Slots
from gateway.errors import ApiError
from gateway.routing.body import dump
from gateway.web.exchange import Exchange

# What a server answers that does not know the path: it has no tokenizer to ask.
CANNOT_COUNT = (404, 405, 501)


async def input_tokens(dispatcher: Dispatcher, exchange: Exchange, chat: dict[str, Any]) -> int:
    """The tokens of a chat's input; raises ApiError, 400 where the backend cannot count."""
    path = exchange.scope["path"]
    route = await dispatcher.routes.chat(exchange, "chat", chat.get("model") or "", chat, path)
    asked = dump({**chat, "model": route.decision.model})

    def say(slots: Slots) -> Message:
        path = slots.protocol.chat_tokens_path
        if not path:
            raise _cannot_count(route)
        return Message(slots.target + path.encode(), as_understood(slots, chat, asked))

    async with dispatcher.call(exchange, route) as call:
        try:
            response = await call.ask(say)
        except ErrorStatus as error:
            if error.status in CANNOT_COUNT:
                raise _cannot_count(route) from None
            raise
        counted = json_object(await call.read_json(response)).get("input_tokens")
        if not isinstance(counted, int):
            raise AnswerError("a count of tokens without input_tokens")
        return counted


def _cannot_count(route: Route) -> ApiError:
    return ApiError(
        400,
        f"Backend '{route.decision.backend_class}' has no route to count tokens; read the usage of an answer instead",
        param="model",
        code="capability_not_supported",
    )
