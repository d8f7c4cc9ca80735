"""From a request to the backend that works for it: route, limits, admission, one retry, and whose failure it was."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from time import perf_counter
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any

from gateway.backends.failures import failure, refused, told_in_200, wrong_answer
from gateway.backends.protocols.base import AnswerError, json_object, json_object_in_steps
from gateway.backends.registry import Registry, Route
from gateway.backends.slots import Slots
from gateway.backends.tokenizer import count
from gateway.backends.usage import usage_of
from gateway.config.settings import Settings
from gateway.errors import ApiError, overloaded
from gateway.routing.body import ask_for_usage, dump
from gateway.routing.caps import within_limits
from gateway.routing.policy import Facts, unknown_model, worth_counting
from gateway.web.exchange import ClientDisconnected, Exchange
from gateway.wire.errors import PoolExhausted, UpstreamError
from gateway.wire.http1 import ConnectFailed, Response, UpstreamClosed
from gateway.wire.sse import EventCutter, EventTooLong, UnsoundEvent, is_sound, read_events, split_events
from gateway.wire.stepwise import TURN_BYTES, LongTexts, run

if TYPE_CHECKING:
    from gateway.observe.tracing import Tracer  # imported only where traces are on

JSON_TYPE = b"application/json"
EVENTS_TYPE = b"text/event-stream"


class Admitted:
    """The part of a request in which a backend works for it.

    On the way out the slot is given back, and errors become what the client is told: ApiError.
    """

    __slots__ = ("_exchange",)

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        slots = self._exchange.slots
        if slots is None:
            return
        slots.release()
        if error is None:
            if slots.backend.circuit_failures:
                slots.backend.close_circuit()
        else:
            explain(error, slots)


def explain(error: BaseException, slots: Slots) -> None:
    """Raises what the client is told of a backend's failure; returns for any other error."""
    if isinstance(error, UpstreamError):
        raise failure(error, slots.backend) from error
    if isinstance(error, AnswerError):
        raise wrong_answer(error, slots.backend) from error


class Work(Admitted):
    """The same, ended by the client's leaving: ClientDisconnected."""

    __slots__ = ()

    def __enter__(self) -> None:
        self._exchange.cancel_on_disconnect()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exchange.finished()
        Admitted.__exit__(self, kind, error, trace)
        if isinstance(error, asyncio.CancelledError) and self._exchange.has_disconnected():
            raise ClientDisconnected from None


class Dispatcher:
    """What the handlers of all routes use to reach backends."""

    def __init__(self, registry: Registry, settings: Settings, tracer: Tracer | None = None) -> None:
        self.registry = registry
        self.max_response_bytes = settings.upstream_max_response_bytes
        self.tracer = tracer
        self._known = registry.known_route

    def known_route(self, exchange: Exchange, capability: str, model: str, request: Mapping[str, Any]) -> Route | None:
        """As `chat_route`, but only what was decided before: None for any other."""
        route = self._known((model, exchange.headers.get(b"x-backend", b""), capability))
        return self._allowed(exchange, route, model, request) if route is not None else None

    async def chat_route(
        self, exchange: Exchange, capability: str, model: str, request: Mapping[str, Any], path: str = ""
    ) -> Route:
        """Decides where the request goes, and remembers it in the exchange.

        `request` is what the policy looks at where it has to decide; `path` that of the exchange, where it is not the
        capability's own.

        Raises:
            ApiError: 400, 403, 404, 503, as the registry's routes, and as the caller's policy says.
            ClientDisconnected: the client left while tokens were counted.
        """
        header = exchange.headers.get(b"x-backend", b"")
        with self._known_to(exchange, model):
            route = self.registry.named_route(model, header, capability, path)
        if route is None:
            # A completion has no messages: what it calls so is a field that only its backend may know.
            asked = request if capability == "chat" else {**request, "messages": None}
            facts = await self._counted(chat_facts(asked, exchange), exchange, asked)
            route = self.registry.policy_route(facts, model, capability, path)
        return self._allowed(exchange, route, model, request)

    @contextmanager
    def _known_to(self, exchange: Exchange, model: str) -> Iterator[None]:
        """Where `model` is unknown, those that the 404 names are the caller's own."""
        try:
            yield
        except ApiError as error:
            if error.status != 404 or exchange.caller is None:
                raise
            raise unknown_model(model, exchange.caller.known(self.registry.names)) from None

    async def _counted(self, facts: Facts, exchange: Exchange, request: Mapping[str, Any]) -> Facts:
        """The facts with the number of tokens, where that can change the decision and somebody can count them."""
        alias = worth_counting(facts, self.registry.names, self.registry.rules)
        backend = self.registry.tokenizer_of(alias) if alias is not None else None
        if alias is None or backend is None:
            return facts
        with Work(exchange):
            return facts._replace(tokens=await count(backend, alias.model, request))

    def route(self, exchange: Exchange, capability: str, model: str, request: Mapping[str, Any]) -> Route:
        """As `chat_route`, for requests that the policy knows nothing of."""
        header = exchange.headers.get(b"x-backend", b"")
        with self._known_to(exchange, model):
            route = self.registry.route(model, header, capability)
        return self._allowed(exchange, route, model, request)

    def route_in_class(
        self,
        exchange: Exchange,
        capability: str,
        model: str,
        usual: str,
        request: Mapping[str, Any] = MappingProxyType({}),
    ) -> Route:
        """As `route`, for kinds of requests that have a class of backends of their own: `usual`."""
        header = exchange.headers.get(b"x-backend", b"")
        with self._known_to(exchange, model):
            route = self.registry.route_in_class(model, header, capability, usual, exchange.scope["path"])
        return self._allowed(exchange, route, model, request)

    def _allowed(self, exchange: Exchange, route: Route, model: str, request: Mapping[str, Any]) -> Route:
        caller = exchange.caller
        if caller is not None and caller.policy.models_allowlist is not None:
            caller.check_model(model, route.decision, self.registry.names, request)
        exchange.route = route
        return route

    async def admit(self, exchange: Exchange, route: Route) -> Slots:
        """A slot for the request; within Work, which gives it back. Raises ApiError 429, 503."""
        slots = self.registry.take(route)
        if slots is None:
            slots = await self._wait(exchange, route)
        exchange.slots = slots
        return slots

    async def _wait(self, exchange: Exchange, route: Route) -> Slots:
        queue, caller = route.queue, exchange.caller
        if queue is None:
            raise overloaded(route.decision.backend_class)
        began = perf_counter()
        try:
            return await queue.wait(
                route.slots,
                caller.key if caller is not None else "",
                caller.policy.priority if caller is not None else 0,
                route.decision.model,
            )
        finally:
            exchange.queued_ms += (perf_counter() - began) * 1000

    async def ask(
        self, exchange: Exchange, route: Route, slots: Slots, post: Callable[[Slots], Awaitable[Response]]
    ) -> tuple[Slots, Response]:
        """What `post` returns. A connection that fails before the answer's first byte is tried once on another host of
        the class; the slots are that host's then.

        Raises UpstreamError, ApiError.
        """
        try:
            return slots, await post(slots)
        except (ConnectFailed, UpstreamClosed) as error:
            slots = await self.other(exchange, route, slots, error)
        return slots, await post(slots)

    async def other(
        self, exchange: Exchange, route: Route, slots: Slots, error: ConnectFailed | UpstreamClosed
    ) -> Slots:
        """A slot of another host instead of that which failed; raises the error itself, ApiError where none is free.

        No request goes out more than twice: neither where the first host was sent it again, nor by the other host.
        """
        if error.sent_first_byte or error.sendings > 1 or isinstance(error, PoolExhausted) or len(route.slots) == 1:
            try:
                raise error
            finally:
                del error  # its traceback holds this frame
        told = failure(error, slots.backend)
        slots.release()
        exchange.slots = None
        try:
            other = self.registry.take(route, slots.backend) or await self._wait(exchange, route)
        except ApiError:
            try:
                raise told from error
            finally:
                del told, error
        exchange.slots = other
        exchange.retried = True
        return other

    def send(self, exchange: Exchange, slots: Slots, request: Mapping[str, Any], body: bytes) -> Awaitable[Response]:
        """A chat-like request: `body` to a backend that speaks OpenAI's protocol, `request` translated to any other.

        A stream tells its usage also where the client did not ask for it, if the backend can; see `asks_for_usage`.

        Raises UpstreamError; ApiError for what the other protocol cannot say.
        """
        backend = slots.backend
        if slots.adapter is not None:
            path, body = slots.adapter.request(slots.capability, request, _model(exchange))
            return self.post(exchange, slots, backend.origin.prefix + path, backend.request_headers, body)
        if request.get("stream") and backend.record.stream_usage and not asks_for_usage(request):
            body = ask_for_usage(body, request)
        body = as_understood(slots, request, body)
        if self.tracer is not None:
            return self.post(exchange, slots, slots.target, backend.request_headers, body)
        return backend.pool.request(
            b"POST", slots.target, backend.request_headers, body, exchange.retried, slots.on_hang_up
        )

    def post(self, exchange: Exchange, slots: Slots, target: bytes, headers: bytes, body: bytes) -> Awaitable[Response]:
        """One request to the slots' backend, traced; raises UpstreamError."""
        if self.tracer is not None:
            headers += self.tracer.begin(exchange, slots.backend, slots.capability)
        return slots.backend.pool.request(b"POST", target, headers, body, exchange.retried, slots.on_hang_up)

    @asynccontextmanager
    async def slot(self, exchange: Exchange, route: Route) -> AsyncIterator[Slots]:
        """Admission alone, for protocols of other kinds than chat; within it UpstreamErrors become ApiErrors."""
        with Work(exchange):
            slots = await self.admit(exchange, route)
            began = perf_counter()
            try:
                yield slots
            finally:
                exchange.upstream_ms = (perf_counter() - began) * 1000

    @asynccontextmanager
    async def chat(self, exchange: Exchange, request: dict[str, Any]) -> AsyncIterator[Call]:
        """A chat completion for a handler that translates it: `request` is OpenAI's, already checked.

        Raises:
            ApiError: whatever keeps it from being answered, also from within the block.
        """
        async with self._call(exchange, "chat", request) as call:
            yield call

    @asynccontextmanager
    async def embeddings(self, exchange: Exchange, request: dict[str, Any]) -> AsyncIterator[Call]:
        """Embeddings, as `chat`."""
        async with self._call(exchange, "embeddings", request) as call:
            yield call

    @asynccontextmanager
    async def _call(self, exchange: Exchange, capability: str, request: dict[str, Any]) -> AsyncIterator[Call]:
        model = request.get("model") or ""
        route = await self.chat_route(exchange, capability, model, request, exchange.scope["path"])
        request = {**request, "model": route.decision.model}
        if route.limits is not None:
            request |= within_limits(route.limits, {**request, "model": model})
        exchange.has_tools = bool(request.get("tools"))
        with Work(exchange):
            slots = await self.admit(exchange, route)
            began = perf_counter()
            body = dump(request)
            response: Response | None = None
            try:
                slots, response = await self.ask(
                    exchange, route, slots, lambda slots: self.send(exchange, slots, request, body)
                )
                if response.status != 200:
                    raise refused(response.status, await response.read(self.max_response_bytes), slots.backend)
                yield Call(exchange, slots, request, response, self.max_response_bytes)
            finally:
                if response is not None:
                    response.close()
                exchange.upstream_ms = (perf_counter() - began) * 1000


class Call:
    """An answer under way, as OpenAI's whatever the backend speaks."""

    def __init__(
        self, exchange: Exchange, slots: Slots, request: Mapping[str, Any], response: Response, limit: int
    ) -> None:
        self.slots = slots
        self._exchange = exchange
        self._request = request
        self._response = response
        self._limit = limit

    async def completion(self) -> dict[str, Any]:
        """The whole answer; raises UpstreamError, AnswerError."""
        body = await self._response.read(self._limit)
        adapter = self.slots.adapter
        if adapter is not None:
            content = adapter.answer(self.slots.capability, self._request, self._request["model"], body)
        else:
            content = json_object(body)
            told_in_200(content, self.slots.backend)
        self._exchange.usage = usage_of(content.get("usage"))
        return content

    async def embeddings(self) -> tuple[dict[str, Any], LongTexts]:
        """The whole answer, as `json_object_in_steps` has it; raises UpstreamError, AnswerError."""
        body = await self._response.read(self._limit)
        adapter = self.slots.adapter
        if adapter is not None:
            content, lists = await run(adapter.embeddings(self._request, self._request["model"], body))
        else:
            content, lists = await run(json_object_in_steps(body))
            told_in_200(content, self.slots.backend)
        self._exchange.usage = usage_of(content.get("usage"))
        return content, lists

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The chunks of a stream, the usage in one of the last; raises UpstreamError, AnswerError, ApiError."""
        content_type = self._response.header(b"content-type") or b""
        if self.slots.adapter is None and content_type.startswith(JSON_TYPE):
            # A backend that does not stream has answered whole.
            yield as_chunk(await self.completion())
            return
        if self.slots.adapter is None and not content_type.startswith(EVENTS_TYPE):
            raise AnswerError(f"content type '{content_type[:100].decode('latin-1')}' instead of events")
        try:
            async for events in self._events():
                for chunk in read_events(events):
                    told_in_200(chunk, self.slots.backend)
                    self._exchange.usage = usage_of(chunk.get("usage")) or self._exchange.usage
                    yield chunk
        except UnsoundEvent:
            raise AnswerError("it sent an event that is no JSON object") from None

    async def _events(self) -> AsyncIterator[bytes]:
        """Whole events, those of TURN_BYTES at a time; the event loop has its turn between them."""
        adapter = self.slots.adapter
        if adapter is not None:
            request = {**self._request, "stream_options": {"include_usage": True}}
            translator = adapter.stream(self.slots.capability, request, self._request["model"])
            data = b""
            try:
                while data := data[TURN_BYTES:] or await self._response.next_chunk():
                    events = translator.feed(data[:TURN_BYTES])
                    self._response.is_over = translator.is_done
                    yield b"".join(events)
                    if len(data) > TURN_BYTES:
                        await asyncio.sleep(0)
            except UpstreamError:
                if not translator.is_done:
                    raise
            yield b"".join(translator.end())
            return
        cutter, data = EventCutter(), b""
        try:
            while data := data[TURN_BYTES:] or await self._response.next_chunk():
                whole = cutter.feed(data[:TURN_BYTES])
                self._response.is_over = cutter.is_done
                yield whole
                if len(data) > TURN_BYTES:
                    await asyncio.sleep(0)
        except UpstreamError:
            if not cutter.is_done:
                raise
        except EventTooLong:
            raise AnswerError("it sent an event without end") from None
        rest = cutter.rest()
        check_end(self._response, cutter)
        if rest:
            yield rest


def asks_for_usage(request: Mapping[str, Any]) -> bool:
    """Whether a stream's client wants the event with its usage."""
    return bool((request.get("stream_options") or {}).get("include_usage"))


def as_understood(slots: Slots, request: Mapping[str, Any], body: bytes) -> bytes:
    """The body for a backend without an adapter, in the words of its protocol."""
    return body if slots.change_body is None else slots.change_body(request, body)


def check_end(response: Response, cutter: EventCutter) -> None:
    """At the clean end of a stream; raises UpstreamClosed where nothing tells that this is all of it."""
    if cutter.is_done:
        return
    if not cutter.last or response.ends_unframed or not all(map(is_sound, split_events(cutter.last))):
        raise UpstreamClosed("the stream ended without its terminator", sent_first_byte=True)


def _model(exchange: Exchange) -> str:
    return exchange.route.decision.model if exchange.route is not None else ""


def chat_facts(request: Mapping[str, Any], exchange: Exchange) -> Facts:
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


def as_chunk(completion: dict[str, Any]) -> dict[str, Any]:
    """A whole chat completion as the one chunk of a stream; raises AnswerError."""
    try:
        choices = [_as_delta(choice) for choice in completion.get("choices") or ()]
    except (AttributeError, TypeError):
        raise AnswerError("it sent choices that are none") from None
    return {**completion, "object": "chat.completion.chunk", "choices": choices}


def _as_delta(choice: dict[str, Any]) -> dict[str, Any]:
    message = choice.pop("message", None) or {}
    calls = [{"index": index, **call} for index, call in enumerate(message.get("tool_calls") or ())]
    return {**choice, "delta": {**message, "tool_calls": calls} if calls else message}
