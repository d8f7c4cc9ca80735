"""Runs the two listeners in one event loop until a signal, then lets answers and streams end. SIGHUP reloads."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import os
import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import uvicorn
import uvloop
from starlette.types import ASGIApp

from gateway.app import App
from gateway.config.core import ListenerSettings
from gateway.config.settings import Settings
from gateway.errors import Refusal
from gateway.observe import logs
from gateway.observe.settings import ObserveSettings
from gateway.web.settings import RequestSettings
from gateway.wire.protocol import Protocol

log = logging.getLogger(__name__)

KEEP_ALIVE_SEC = 75
BACKLOG = 2048
# What a stop may take beyond GATEWAY_SHUTDOWN_TIMEOUT_SEC, and what after a second signal. The service manager kills
# one second after the first.
STOP_MAX_SEC = 9.0
CUT_MAX_SEC = 4.0


class _Server(uvicorn.Server):
    """uvicorn's, without its own signal handlers: one signal stops two servers, in order, and exits with 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def serve(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT; a second signal cuts what is still under way.

    Raises Refusal, with nothing opened: wrong configuration, or a port that is taken.
    """
    listener, observe, requests = settings[ListenerSettings], settings[ObserveSettings], settings[RequestSettings]
    logs.configure(listener.gateway_log_level)
    app = App(settings)
    with contextlib.ExitStack() as stack:
        api_socket = stack.enter_context(_listen(listener.gateway_host, listener.gateway_port, "GATEWAY"))
        observe_socket = None
        if observe.observability_enabled:
            observe_socket = stack.enter_context(
                _listen(observe.observability_host, observe.observability_port, "OBSERVABILITY")
            )
        patience = listener.gateway_shutdown_timeout_sec
        api = _Server(_config(app.api, requests, int(patience), **_certificate(listener)))
        observability = _Server(_config(app.observability, requests, 1))  # its answers are short
        # What is built by now lives as long as the process: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        stop = _Stop(app, api, observability, patience)
        stack.callback(stop.ended)
        uvloop.run(_run(app, api, api_socket, observability, observe_socket, stop))


async def _run(
    app: App,
    api: uvicorn.Server,
    api_socket: socket.socket,
    observability: uvicorn.Server,
    observe_socket: socket.socket | None,
    stop: _Stop,
) -> None:
    loop = asyncio.get_running_loop()
    signals = {signal.SIGTERM: stop, signal.SIGINT: stop, signal.SIGHUP: app.reloader.reload_soon}
    for number, act in signals.items():
        signal.signal(number, lambda *_, act=act: loop.call_soon_threadsafe(act))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # the console script holds it back until now
    await app.start()
    log.info("%s", addresses(app.settings[ListenerSettings], app.settings[ObserveSettings]))
    watching = None
    if observe_socket is not None:
        watching = loop.create_task(observability.serve(sockets=[observe_socket]))
    await api.serve(sockets=[api_socket])
    await _cut(api)
    if watching is not None:
        observability.should_exit = True
        await watching
    await app.stop()
    for number in signals:  # what comes now must not kill a process that is ending well: it would end with an error
        signal.signal(number, signal.SIG_IGN)


def addresses(listener: ListenerSettings, observe: ObserveSettings) -> str:
    """What the process log says when all listens."""
    scheme = "https" if listener.gateway_tls_cert_path else "http"
    said = f"the API is on {scheme}://{_shown(listener.gateway_host)}:{listener.gateway_port}"
    if observe.observability_enabled:
        host = _shown(observe.observability_host)
        said += f", health and metrics on http://{host}:{observe.observability_port}"
    return said


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host


class _Stop:
    """What a signal does: the first lets answers end, a second cuts; neither waits for ever."""

    def __init__(self, app: App, api: uvicorn.Server, observability: uvicorn.Server, patience: float) -> None:
        self._house = app
        self._patience = patience
        self._api = api
        self._observability = observability
        self._last_resort: threading.Timer | None = None

    def __call__(self) -> None:
        if not self._api.should_exit:
            log.info("stopping: a second signal closes running answers")
            self._api.should_exit = True
            self._leave_after(self._patience + STOP_MAX_SEC)
        elif not self._api.force_exit:
            log.info("stopping at once")
            self._api.force_exit = self._observability.force_exit = True
            self._house.cut()
            self._leave_after(CUT_MAX_SEC)

    def ended(self) -> None:
        if self._last_resort is not None:
            self._last_resort.cancel()

    def _leave_after(self, seconds: float) -> None:
        """By a thread: whatever holds the stop may hold the event loop, or be another thread."""
        self.ended()
        self._last_resort = threading.Timer(seconds, _leave)
        self._last_resort.daemon = True
        self._last_resort.start()


def _leave() -> None:
    log.error("the stop takes too long: exiting. Acknowledged data is stored")
    os._exit(0)


async def _cut(api: uvicorn.Server) -> None:
    """What uvicorn has left of requests: cancelled by it when their time was over, by this after a second signal."""
    tasks = set(api.server_state.tasks)
    if api.force_exit:
        for task in tasks:
            task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=1)


def _config(app: ASGIApp, settings: RequestSettings, patience: int, **tls: Path) -> uvicorn.Config:
    class Bounded(Protocol):
        body_timeout = settings.request_body_timeout_sec
        send_timeout = settings.response_send_timeout_sec

    return uvicorn.Config(
        app,
        http=Bounded,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SEC,
        timeout_graceful_shutdown=patience,
        **tls,  # type: ignore[arg-type]  # two keyword arguments of one type
    )


def _certificate(settings: ListenerSettings) -> dict[str, Path]:
    """What uvicorn is to be told of TLS, nothing when it is not wanted; raises Refusal for files that do not fit."""
    certificate, key = settings.gateway_tls_cert_path, settings.gateway_tls_key_path
    if certificate is None and key is None:
        return {}
    if certificate is None or key is None:
        raise Refusal("only one of GATEWAY_TLS_CERT_PATH and GATEWAY_TLS_KEY_PATH is set; set both, or neither")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except OSError as error:  # SSLError is one
        raise Refusal(
            f"GATEWAY_TLS_CERT_PATH {certificate} and GATEWAY_TLS_KEY_PATH {key} are not a certificate and its key "
            f"({error.strerror or error}); give two PEM files that the service may read"
        ) from None
    return {"ssl_certfile": certificate, "ssl_keyfile": key}


def _listen(host: str, port: int, prefix: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise Refusal(f"port {port} on {host} is taken; stop what listens there or set {prefix}_PORT") from None
        raise Refusal(
            f"cannot listen on {host} port {port} ({error.strerror}); set {prefix}_HOST or {prefix}_PORT"
        ) from None
