"""Routes a request by the names in it, else by the routing policy; and checks that its caller may use the route."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

from gateway.backends.registry import Registry, Route
from gateway.backends.request import Request
from gateway.backends.tokenizer import count
from gateway.errors import ApiError
from gateway.routing.body import dump
from gateway.routing.policy import Facts, unknown_model, worth_counting


class Routes:
    """Decides the route of a request and remembers it in the request.

    All raise ApiError 400, 403, 404, 503: as the registry's routes, and as the caller's policy says.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._known = registry.known_route

    def known(self, exchange: Request, capability: str, model: str) -> Route | None:
        """As `chat`, but only what was decided before, and for a caller that may use all models: None for any other."""
        caller = exchange.caller
        if caller is not None and caller.policy.models_allowlist is None:
            exchange.route = self._known((model, exchange.headers.get(b"x-backend", b""), capability))
        return exchange.route

    async def chat(
        self, exchange: Request, capability: str, model: str, request: Mapping[str, Any], path: str = ""
    ) -> Route:
        """The route of a request of which the policy may want to know more.

        `request` is what the policy looks at where it has to decide; `path` that of the exchange, where it is not the
        capability's own. Raises also ClientDisconnected: the client disconnected while tokens were counted.
        """
        with self._known_to(exchange, model) as header:
            route = self._registry.named_route(model, header, capability, path)
        if route is None:
            # A completion has no messages: what it calls so is a field that only its backend may know.
            asked = request if capability == "chat" else {**request, "messages": None}
            facts = await self._counted(chat_facts(asked, exchange), exchange, asked)
            route = self._registry.policy_route(facts, model, capability, path)
        return self._allowed(exchange, route, model, request)

    def named(self, exchange: Request, capability: str, model: str, request: Mapping[str, Any]) -> Route:
        """The route of a request that the policy knows nothing of."""
        with self._known_to(exchange, model) as header:
            route = self._registry.route(model, header, capability)
        return self._allowed(exchange, route, model, request)

    def in_class(
        self,
        exchange: Request,
        capability: str,
        model: str,
        usual: str,
        request: Mapping[str, Any] = MappingProxyType({}),
    ) -> Route:
        """As `named`, for kinds of requests that have a class of backends of their own: `usual`."""
        with self._known_to(exchange, model) as header:
            route = self._registry.route_in_class(model, header, capability, usual, exchange.scope["path"])
        return self._allowed(exchange, route, model, request)

    @contextmanager
    def _known_to(self, exchange: Request, model: str) -> Iterator[bytes]:
        """Yields `X-Backend`. Where `model` is unknown, those that the 404 names are the caller's own."""
        try:
            yield exchange.headers.get(b"x-backend", b"")
        except ApiError as error:
            if error.status != 404 or exchange.caller is None:
                raise
            raise unknown_model(model, exchange.caller.known(self._registry.names)) from None

    async def _counted(self, facts: Facts, exchange: Request, request: Mapping[str, Any]) -> Facts:
        """The facts with the number of tokens, where that can change the decision and somebody can count them."""
        alias = worth_counting(facts, self._registry.names, self._registry.rules)
        backend = self._registry.tokenizer_of(alias) if alias is not None else None
        if alias is None or backend is None:
            return facts
        with exchange.until_disconnect():
            return facts._replace(tokens=await count(backend, alias.model, request))

    def _allowed(self, exchange: Request, route: Route, model: str, request: Mapping[str, Any]) -> Route:
        caller = exchange.caller
        if caller is not None and caller.policy.models_allowlist is not None:
            caller.check_model(model, route.decision, self._registry.names, request)
        exchange.route = route
        return route


def chat_facts(request: Mapping[str, Any], exchange: Request) -> Facts:
    """What the policy may ask about a chat or completion request."""
    texts = [message.get("content") for message in request.get("messages") or ()] or [request.get("prompt")]
    spoken = [message for message in request.get("messages") or () if message.get("role") == "user"]
    last = _text(spoken[-1].get("content")) if spoken else _text(request.get("prompt"))
    return Facts(
        exchange.headers.get(b"x-request-type", b"").decode("latin-1"),
        bool(request.get("tools")),
        sum(len(text) if isinstance(text, str) else len(dump({"": text})) for text in texts if text),
        last,
        len(dump({"": request.get("messages") or request.get("prompt")})),
    )


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else ()
    texts = (part.get("text") if isinstance(part, dict) else part for part in parts)
    return "\n".join(text for text in texts if isinstance(text, str))
