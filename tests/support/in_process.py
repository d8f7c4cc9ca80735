"""The whole gateway within a test's own process, in front of a backend that answers from a table.

Thousands of requests a second: nothing is forked, and no socket is between client and gateway. Backends are asked over
real ones.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import uvloop
import yaml
from gateway.app import FEATURES, App, load_settings
from gateway.features.face import Feature
from gateway.wire.protocol import EXTENSION, NAMED_HEADERS

from tests.support.gateways import TOKEN
from tests.support.waiting import PATIENCE_SEC, until_async

Ending = Literal["keep", "close", "reset"]  # of the connection, behind an answer
Answer = Callable[[str, str, bytes], bytes]  # a whole HTTP answer, for method, path and body
CHATTING = ["chat", "completions", "embeddings"]
# By class: protocol, what follows the host in base_url, capabilities.
BACKENDS: Mapping[str, tuple[str, str, list[str]]] = {
    "open": ("openai", "/v1", [*CHATTING, "rerank", "images", "tts", "transcription"]),
    "llamacpp": ("llamacpp", "/v1", [*CHATTING, "rerank"]),
    "ollama": ("ollama", "", CHATTING),
    "embedder": ("openai", "/v1", ["embeddings"]),
    "nexa": ("nexa", "/v1", ["rerank", "images"]),
    "a1111": ("a1111", "", ["images"]),
    "comfyui": ("comfyui", "", ["images"]),
    "invokeai": ("invokeai", "", ["images"]),
    "heartmula": ("heartmula", "", ["music"]),
}
CAPS = {"max_tokens_cap": 5, "temperature_cap": 0.5}
NAMED = ("open", "llamacpp", "ollama", "embedder")
ALIASES: Mapping[str, Any] = {
    **{f"{name}-plain": {"backend": name, "model": "m"} for name in NAMED},
    **{f"{name}-capped": {"backend": name, "model": "m", **CAPS} for name in NAMED},
    "no-tools": {"backend": "open", "model": "m", "tools": False, **CAPS},
    "default": {"backend": "open", "model": "m"},
    "fast": {"backend": "ollama", "model": "m"},
    "long": {"backend": "llamacpp", "model": "m", "context": 8},
}


class _Connection(asyncio.Protocol):
    def __init__(self, double: Double) -> None:
        self._double = double
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, end, rest = self._data.partition(b"\r\n\r\n")
        _, has_length, length = head.lower().partition(b"content-length: ")
        size = int(length.partition(b"\r\n")[0]) if has_length else 0
        if end and len(rest) >= size:
            self._data = b""
            method, path, _ = head.partition(b"\r\n")[0].decode().split(" ")
            self._double.seen.append((path, rest))
            self._transport.write(self._double.answer(method, path, rest))
            if self._double.ending == "close":
                self._transport.close()
            elif self._double.ending == "reset":
                self._transport.abort()


class Double:
    """The one server that all backends are; `seen` are path and body of what it was asked."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.ending: Ending = "keep"
        self.seen: list[tuple[str, bytes]] = []


def http(body: bytes, status: int = 200, content_type: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


@dataclass
class Told:
    """What the client was answered; `is_cut` where its connection was."""

    status: int = 0
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""
    is_complete: bool = False
    is_cut: bool = False


class _Client:
    """What the server's protocol is to an exchange."""

    body_timeout = PATIENCE_SEC
    on_disconnect: Callable[[], object] | None = None

    def __init__(self, body: bytes) -> None:
        self.task = asyncio.current_task()
        self.transport = self
        self.told = Told()
        self._body: bytes | None = body

    def take_body(self) -> bytes | None:
        body, self._body = self._body, None
        return body

    def write_answer(self, head: bytes, lines: bytes, body: bytes) -> bool:
        return False

    def answer_begins(self) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def abort(self) -> None:
        self.told.is_cut = True

    async def receive(self) -> dict[str, Any]:
        body = self.take_body()
        return {"type": "http.disconnect"} if body is None else {"type": "http.request", "body": body}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.told.status, self.told.headers = message["status"], dict(message["headers"])
        else:
            self.told.body += message.get("body", b"")
            self.told.is_complete = not message.get("more_body", False)


class _Alarms(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.told: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(self.format(record))


class InProcess:
    """`alarms` are the errors that were logged or left to the event loop."""

    def __init__(self, app: App, double: Double) -> None:
        self.app = app
        self.double = double
        self.alarms = _Alarms()

    async def post(self, path: str, body: bytes, headers: Sequence[tuple[bytes, bytes]] = ()) -> Told:
        return await self.ask("POST", path, body, headers)

    async def ask(self, method: str, path: str, body: bytes, headers: Sequence[tuple[bytes, bytes]] = ()) -> Told:
        client = _Client(body)
        sent = [(b"authorization", b"Bearer " + TOKEN.encode()), *headers]
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": b"",
            "client": ("127.0.0.1", 1),
            "headers": sent,
            NAMED_HEADERS: dict(sent),
            "extensions": {EXTENSION: client},
        }
        try:
            async with asyncio.timeout(PATIENCE_SEC):
                await self.app.api(scope, client.receive, client.send)
        except TimeoutError:
            self.alarms.told.append(f"no end within {PATIENCE_SEC:g} s")
        return client.told

    def settle(self) -> int:
        """Forgets what backends did wrong; tells how many of their slots are still taken."""
        for backend in self.app.registry.backends:
            backend.close_circuit()
            backend.healthy = backend.ready = True
        self.double.seen.clear()
        return sum(slots.inflight for one in self.app.registry.backends for slots in one.slots.values())


@asynccontextmanager
async def in_process(
    home: Path,
    answer: Answer,
    backends: Mapping[str, tuple[str, str, list[str]]] = BACKENDS,
    features: Sequence[type[Feature]] = FEATURES,
    record: Mapping[str, Any] = {},
    **settings: Any,
) -> AsyncIterator[InProcess]:
    loop = asyncio.get_running_loop()
    double = Double(answer)
    server = await loop.create_server(lambda: _Connection(double), "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    records = {
        f"{name}@here": {
            "class": name,
            "protocol": protocol,
            "base_url": url + prefix,
            "supported_capabilities": capabilities,
            **record,
        }
        for name, (protocol, prefix, capabilities) in backends.items()
    }
    (home / "backends.yaml").write_text(yaml.safe_dump({"backends": records}))
    given = {
        "gateway_bearer_token": TOKEN,
        "gateway_backends_path": home / "backends.yaml",
        "model_aliases_json": json.dumps(ALIASES),
        "gateway_db_path": home / "gateway.sqlite",
        "ui_image_dir": home / "images",
        "request_log_path": home / "requests.jsonl",
        "router_enable_policy": True,
        "router_enable_request_type": True,
        "health_check_interval_sec": 3600,
        "images_backend_class": "open",
        "images_http_timeout_sec": 0.2,
        "tts_backend_class": "open",
        "transcription_backend_class": "open",
        "music_backend_class": "heartmula",
        **settings,
    }
    app = App(load_settings(None, features, **given), features)
    await app.start()
    await until_async(lambda: all(one.last_check is not None for one in app.registry.backends))  # and probed no more
    gateway = InProcess(app, double)
    logging.getLogger().addHandler(gateway.alarms)
    loop.set_exception_handler(lambda _, context: gateway.alarms.told.append(repr(context)))
    try:
        yield gateway
    finally:
        logging.getLogger().removeHandler(gateway.alarms)
        async with asyncio.timeout(PATIENCE_SEC):  # a stop that waits for ever is a bug, too
            await app.stop()
        server.close()


@contextmanager
def shared(home: Path, answer: Answer, *options: Any, **settings: Any) -> Iterator[tuple[asyncio.Runner, InProcess]]:
    """One for tests that are no coroutines, and the runner of its event loop."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        opened = in_process(home, answer, *options, **settings)
        yield runner, runner.run(opened.__aenter__())
        runner.run(opened.__aexit__(None, None, None))
