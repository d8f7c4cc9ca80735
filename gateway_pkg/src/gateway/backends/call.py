"""The one road to a backend: admission, sending, failover, timing, and the handling of failures.

A dialect or a feature says what to send and how to read it. What fails there raises UpstreamError or AnswerError.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Mapping
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, NamedTuple, Protocol, TypeVar

from gateway.backends.answers import Answer, read_json, refusal
from gateway.backends.converse import converse
from gateway.backends.failures import Effect, told
from gateway.backends.protocols.base import AnswerError
from gateway.backends.protocols.steps import Steps
from gateway.backends.protocols.wire_protocol import below
from gateway.backends.registry import Registry, Route
from gateway.backends.request import Request
from gateway.backends.routes import Routes
from gateway.backends.settings import UpstreamSettings
from gateway.backends.slots import Backend, Slots
from gateway.errors import ApiError, overloaded
from gateway.routing.body import ask_for_usage, dump
from gateway.routing.caps import within_limits
from gateway.wire.connection import Response
from gateway.wire.errors import ConnectFailed, PoolExhausted, UpstreamClosed, UpstreamError, UpstreamTimeout

T = TypeVar("T")
JSON_LINE = b"Content-Type: application/json\r\n"


class Tracer(Protocol):
    """Traces requests to backends; None when traces are off."""

    def begin(self, exchange: Request, backend: Backend, capability: str) -> bytes:
        """Call it before each request to a backend; returns header lines to send with the request."""
        ...


class Message(NamedTuple):
    """A request to a backend. `lines` are whole header lines beside those of authorization."""

    target: bytes
    body: bytes = b""
    lines: bytes = JSON_LINE
    method: bytes = b"POST"


def to_path(slots: Slots, path: str, body: bytes, lines: bytes = JSON_LINE) -> Message:
    """A message for one of OpenAI's routes; the backend's base_url may end in /v1."""
    prefix = slots.backend.origin.prefix
    return Message(prefix + below(prefix, path).encode(), body, lines)


def failed(error: UpstreamError | AnswerError, backend: Backend) -> ApiError:
    """Counts a failure and changes the backend's state; returns the client's error.

    Only a backend that refuses connections is out until a probe reaches it. A backend may close a connection
    because of the request; that only strains its circuit, so one bad request cannot take it out for all.
    """
    failure, answer = told(error, backend.record.backend_class)
    backend.count_failure(failure.kind)
    if failure.effect is Effect.AWAY:
        backend.fail(str(error))
    elif failure.effect is Effect.STRAINS:
        backend.strain_circuit()
    return answer


@asynccontextmanager
async def in_time(deadline: float, what: str) -> AsyncIterator[None]:
    """Raises UpstreamTimeout, which says `what` is missing, where the block lasts beyond `deadline` of the loop."""
    try:
        async with asyncio.timeout_at(deadline):
            yield
    except TimeoutError:
        raise UpstreamTimeout(what, "first_byte") from None


class Dispatcher:
    """What the handlers of all routes use to reach backends."""

    def __init__(self, registry: Registry, settings: UpstreamSettings, tracer: Tracer | None = None) -> None:
        self.registry = registry
        self.routes = Routes(registry)
        self.max_response_bytes = settings.upstream_max_response_bytes
        self.tracer = tracer

    @asynccontextmanager
    async def call(self, exchange: Request, route: Route, *, is_job: bool = False) -> AsyncIterator[Call]:
        """The part of a request in which a backend works for it: admission, and a slot until the end of the block.

        The client's disconnect ends it with ClientDisconnected, unless it `is_job`. Failures become ApiErrors.
        """
        with nullcontext() if is_job else exchange.until_disconnect():
            slots = await self.admit(exchange, route)
            call = Call(self, exchange, route, slots)
            try:
                yield call
                if call.slots.backend.circuit_failures:
                    call.slots.backend.close_circuit()
            except (UpstreamError, AnswerError) as error:
                raise failed(error, call.slots.backend) from error
            finally:
                call.close()

    @asynccontextmanager
    async def ask(self, exchange: Request, capability: str, request: dict[str, Any]) -> AsyncIterator[Answer]:
        """A chat-like request for a handler that translates it: `request` is OpenAI's, already checked.
        Raises ApiError for whatever keeps it from being answered, also from within the block.
        """
        model = request.get("model") or ""
        route = await self.routes.chat(exchange, capability, model, request, exchange.scope["path"])
        request = {**request, "model": route.decision.model}
        if route.limits is not None:
            request |= within_limits(route.limits, {**request, "model": model})
        exchange.has_tools = bool(request.get("tools"))
        async with self.call(exchange, route) as call:
            body = dump(request)
            response = await call.send(lambda slots: self.send(exchange, slots, request, body))
            yield Answer(exchange, call.slots, request, route.decision.model, response, self.max_response_bytes)

    @asynccontextmanager
    async def fetch(
        self, exchange: Request, backend: Backend, message: Message, seconds: float, passes: Container[int]
    ) -> AsyncIterator[Response]:
        """One request to this very backend, which costs it no slot: the answer, whose head comes within `seconds`.
        Raises ApiError where it fails, or answers with a status that is not in `passes`; also from within the block.
        """
        with exchange.until_disconnect():
            response: Response | None = None
            try:
                async with in_time(asyncio.get_running_loop().time() + seconds, f"no answer within {seconds:g} s"):
                    lines = backend.auth_headers + message.lines
                    response = await backend.pool.request(message.method, message.target, lines, message.body)
                if response.status not in passes:
                    raise await refusal(response, self.max_response_bytes)
                yield response
            except (UpstreamError, AnswerError) as error:
                raise failed(error, backend) from error
            finally:
                if response is not None:
                    response.close()

    async def admit(self, exchange: Request, route: Route) -> Slots:
        """A slot for the request, which gives it back; raises ApiError 429, 503."""
        slots = self.registry.take(route)
        if slots is None:
            slots = await self._wait(exchange, route)
        exchange.slots = slots
        return slots

    async def _wait(self, exchange: Request, route: Route) -> Slots:
        queue, caller = route.queue, exchange.caller
        if queue is None:
            raise overloaded(route.decision.backend_class)
        began = perf_counter()
        try:
            token, priority = (caller.key, caller.policy.priority) if caller is not None else ("", 0)
            return await queue.wait(route.slots, token, priority, route.decision.model)
        finally:
            exchange.queued_ms += (perf_counter() - began) * 1000

    async def other(
        self, exchange: Request, route: Route, slots: Slots, error: ConnectFailed | UpstreamClosed
    ) -> Slots:
        """A slot of another host instead of that which failed; raises the error itself, ApiError where none is free.

        No request goes out more than twice: neither where the first host was sent it again, nor by the other host.
        """
        if error.sent_first_byte or error.sendings > 1 or isinstance(error, PoolExhausted) or len(route.slots) == 1:
            try:
                raise error
            finally:
                del error  # its traceback holds this frame
        answer = failed(error, slots.backend)
        slots.release()
        exchange.slots = None
        try:
            other = self.registry.take(route, slots.backend) or await self._wait(exchange, route)
        except ApiError:
            try:
                raise answer from error
            finally:
                del answer, error
        exchange.slots = other
        exchange.retried = True
        return other

    def send(self, exchange: Request, slots: Slots, request: Mapping[str, Any], body: bytes) -> Awaitable[Response]:
        """A chat-like request: `body` to a backend that speaks OpenAI's protocol, `request` translated to any other.

        A stream tells its usage also where the client did not ask for it, if the backend can; see `asks_for_usage`.

        Raises UpstreamError; ApiError for what the other protocol cannot say.
        """
        backend = slots.backend
        if slots.adapter is not None:
            model = exchange.route.decision.model if exchange.route is not None else ""
            path, body = slots.adapter.request(slots.capability, request, model)
            return self.post(exchange, slots, Message(backend.origin.prefix + path, body))
        if request.get("stream") and backend.record.stream_usage and not asks_for_usage(request):
            body = ask_for_usage(body, request)
        if slots.change_body is not None:
            body = slots.change_body(request, body)
        if self.tracer is not None:
            return self.post(exchange, slots, Message(slots.target, body))
        return backend.pool.request(
            b"POST", slots.target, backend.request_headers, body, exchange.retried, slots.on_abort
        )

    def post(self, exchange: Request, slots: Slots, message: Message) -> Awaitable[Response]:
        """One request to the slots' backend; raises UpstreamError."""
        backend = slots.backend
        headers = backend.auth_headers + message.lines
        if self.tracer is not None:
            headers += self.tracer.begin(exchange, backend, slots.capability)
        return backend.pool.request(
            message.method, message.target, headers, message.body, exchange.retried, slots.on_abort
        )


@dataclass(slots=True, eq=False)
class Call:
    """A request at work: `slots` are those of the backend that works for it. See `Dispatcher.call`."""

    _dispatcher: Dispatcher
    _exchange: Request
    _route: Route
    slots: Slots
    _response: Response | None = None
    _began: float = field(default_factory=perf_counter)

    @property
    def ms(self) -> float:
        """Milliseconds since the backend was first asked."""
        return (perf_counter() - self._began) * 1000

    def close(self) -> None:
        """Ends the answer and gives the slot back."""
        if self._response is not None:
            self._response.close()
        if self._exchange.slots is not None:
            self._exchange.slots.release()
        self._exchange.upstream_ms = self.ms

    async def ask(self, say: Callable[[Slots], Message]) -> Response:
        """The answer to what `say` says, once its head is there.

        Raises UpstreamError; ErrorStatus where its status is not 200; ApiError where no other host is free.
        """
        return await self.send(lambda slots: self._dispatcher.post(self._exchange, slots, say(slots)))

    async def read_json(self, response: Response) -> bytes:
        """The whole body of an answer that is JSON."""
        return await read_json(response, self._dispatcher.max_response_bytes)

    async def send(self, send: Callable[[Slots], Awaitable[Response]]) -> Response:
        """As `ask`, for what sends by itself."""
        response = self._response = await self._on_one_host(send)
        if response.status != 200:
            raise await refusal(response, self._dispatcher.max_response_bytes)
        return response

    async def converse(self, steps: Callable[[Slots], Steps[T]]) -> T:
        """What the steps return; raises UpstreamError, AnswerError, ApiError where no host is free."""
        limit, exchange = self._dispatcher.max_response_bytes, self._exchange
        return await self._on_one_host(
            lambda slots: converse(slots.backend, steps(slots), limit, exchange.retried, slots.on_abort)
        )

    async def _on_one_host(self, work: Callable[[Slots], Awaitable[T]]) -> T:
        """What `work` returns. Where the connection fails before the answer's first byte, it is tried once on another
        host of the class; the slots are that host's then.
        """
        try:
            return await work(self.slots)
        except (ConnectFailed, UpstreamClosed) as error:
            self.slots = await self._dispatcher.other(self._exchange, self._route, self.slots, error)
        return await work(self.slots)


def asks_for_usage(request: Mapping[str, Any]) -> bool:
    """Whether a stream's client wants the event with its usage."""
    return bool((request.get("stream_options") or {}).get("include_usage"))


def as_understood(slots: Slots, request: Mapping[str, Any], body: bytes) -> bytes:
    """The body for a backend without an adapter, in the words of its protocol."""
    return body if slots.change_body is None else slots.change_body(request, body)
