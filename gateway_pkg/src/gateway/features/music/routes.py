"""Music: answered with the piece when it is made soon, else with a job to poll; and the audio of what was made.

Work is cancelled when its client leaves, until it has become a job: from then on `DELETE` cancels it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from functools import partial
from time import time
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, with_config
from typing_extensions import TypedDict

from gateway.backends.call import Dispatcher, in_time, to_path
from gateway.backends.protocols.wire_protocol import Music, promised
from gateway.backends.registry import Route
from gateway.backends.slots import Backend, Slots
from gateway.errors import ClientDisconnected, retry_after
from gateway.features.face import storage_errors
from gateway.features.music.jobs import Job, MusicJobs
from gateway.features.music.settings import MusicSettings
from gateway.routing.body import dump
from gateway.storage import StorageError
from gateway.web.endpoint import JSON_TYPE, Endpoint, parse
from gateway.web.exchange import JSON, Exchange
from gateway.web.fields import Array
from gateway.web.schemas import TEXT, Model, record

# What is refused at once is told at once, also to a client that does not want to wait.
LEAST_WAIT_SEC = 0.1
DURATION_MAX_SEC = 3600
POLL_SEC = 5
ANSWER_MAX_BYTES = 1024 * 1024
store_errors = partial(storage_errors, "The gateway cannot keep what it knows of this piece", retry_after(POLL_SEC))
PREFER_MAX_BYTES = 1_000  # that are read of the header


@with_config(ConfigDict(extra="allow", strict=True, allow_inf_nan=False))
class MusicRequest(TypedDict, total=False):
    """HeartMula's request; one of `prompt`, `lyrics`, `style` and `input` must be there."""

    prompt: Annotated[str | None, Field(examples=["a waltz"])]
    input: Annotated[str | None, Field(description="Another name of `prompt`.")]
    lyrics: str | None
    style: str | None
    tags: Annotated[str | Array[str] | None, Field(description="Comma-separated, or a list.")]
    duration: Annotated[float | None, Field(gt=0, le=DURATION_MAX_SEC, description="Seconds.")]
    temperature: Annotated[float | None, Field(ge=0)]
    top_k: Annotated[int | None, Field(ge=0)]
    top_p: Annotated[float | None, Field(ge=0, le=1)]
    model: Model | None


REQUEST: TypeAdapter[Any] = TypeAdapter(MusicRequest)
PIECE = record(
    {"id": TEXT, "status": TEXT, "duration": {"type": "number"}},
    audio_url=TEXT | {"description": "URL of the audio; it takes the same token."},
    _gateway={"type": "object"},
)
_ID = {"job_id": "$response.body#/id"}
OF_JOB: dict[str, Any] = {"cancel": {"operationId": "cancel_job", "parameters": _ID}}
LINKS: dict[str, Any] = {"poll": {"operationId": "get_job", "parameters": _ID}, **OF_JOB}
OPENAPI_EXTRA: dict[str, Any] = {
    "parameters": [
        {
            "name": "Prefer",
            "in": "header",
            "description": "RFC 7240's `respond-async` or `wait=<seconds>`: when to answer with a job.",
            "schema": TEXT,
        }
    ],
    "responses": {
        "202": {
            "description": "The job is accepted",
            "headers": {
                "Location": {"description": "The job's path", "required": True, "schema": TEXT},
                "Preference-Applied": {"required": True, "schema": {"const": "respond-async"}},
                "Retry-After": {"$ref": "#/components/headers/Retry-After"},
            },
            "links": LINKS,
        }
    },
}
GENERATIONS = Endpoint(
    "/v1/music/generations",
    "music",
    "Make a piece of music",
    REQUEST,
    answers={200: {JSON_TYPE: PIECE}, 202: {JSON_TYPE: {"$ref": "#/components/schemas/MusicJob"}}},
    tag="music",
    openapi_extra=OPENAPI_EXTRA,
)


class MusicHandler:
    """Begins pieces, and waits for them for as long as the client and the settings want."""

    def __init__(self, dispatcher: Dispatcher, settings: MusicSettings, jobs: MusicJobs, public_base_url: str) -> None:
        self._dispatcher = dispatcher
        self._settings = settings
        self._jobs = jobs
        self._public_base_url = public_base_url.rstrip("/")

    async def generate(self, exchange: Exchange, endpoint: Endpoint) -> None:
        """Raises ApiError, ClientDisconnected."""
        request = parse(await exchange.body(), REQUEST)
        settings = self._settings
        model = request.get("model") or ""
        route = self._dispatcher.routes.in_class(exchange, "music", model, settings.music_backend_class, request)
        wanted = _music(route.slots[0]).request(request, route.decision.model)
        job = self._jobs.begin(exchange.owner, lambda job: self._make(job, exchange, route, wanted))
        wait = wanted_wait(exchange.headers.get(b"prefer", b""), settings.music_wait_sec)
        await self._wait(exchange, job, max(wait, LEAST_WAIT_SEC))
        if job.failure is not None:
            raise job.failure
        with store_errors():
            try:
                await self._jobs.keep(job)
            except StorageError:
                await self._jobs.cancel(job)
                raise
        if job.result is not None:
            await exchange.answer(200, dump(job.result), [JSON])
        else:
            location = (b"location", f"{endpoint.path}/{job.id}".encode())
            applied = (b"preference-applied", b"respond-async")
            await exchange.answer(202, dump(job.told()), [JSON, location, applied, *retry_after(POLL_SEC)])

    async def _wait(self, exchange: Exchange, job: Job, seconds: float) -> None:
        try:
            with exchange.until_disconnect():
                await asyncio.wait((job.task,), timeout=seconds)
        except (asyncio.CancelledError, ClientDisconnected):
            await self._jobs.cancel(job)
            raise

    async def _make(self, job: Job, exchange: Exchange, route: Route, wanted: Mapping[str, Any]) -> None:
        """The job's own task: admission, the request, and what the client is told of the answer."""
        path, body = self._settings.heartmula_generate_path, dump(wanted)
        urls = f"{self._public_base_url or exchange.base_url}/ui/heartmula/audio"
        limit = _music(route.slots[0]).time_limit(wanted, self._settings.heartmula_timeout_sec)
        async with self._dispatcher.call(exchange, route, is_job=True) as call:
            job.status, job.started_at = "running", int(time())
            await self._jobs.update(job)
            async with in_time(asyncio.get_running_loop().time() + limit, f"no music within {limit:g} s"):
                response = await call.ask(lambda slots: to_path(slots, path, body))
                content = _music(call.slots).read(await response.read(ANSWER_MAX_BYTES))
            job.backend, job.file = call.slots.backend.name, _music(call.slots).file(content)
            job.result = self._told(call.slots.backend, content, f"{urls}/{job.file}", path, call.ms)

    @staticmethod
    def _told(backend: Backend, content: Mapping[str, Any], url: str, path: str, latency_ms: float) -> dict[str, Any]:
        """The server's answer, its audio where the client can fetch it."""
        return {
            **content,
            "audio_url": url,
            "_gateway": {
                "backend": backend.name,
                "backend_class": backend.record.backend_class,
                "upstream_base_url": backend.record.base_url,
                "upstream_path": path,
                "upstream_latency_ms": round(latency_ms, 1),
                "upstream_audio_url": content["audio_url"],
            },
        }


def _music(slots: Slots) -> Music:
    return promised(slots.protocol.music)


def wanted_wait(prefer: bytes, most: float) -> float:
    """Seconds to wait for a piece: as `Prefer: wait=…` says, none with `respond-async` alone, at most `most`."""
    wishes = [wish.strip().lower().replace(b" ", b"") for wish in re.split(rb"[,;]", prefer[:PREFER_MAX_BYTES])]
    for wish in wishes:
        if found := re.fullmatch(rb'wait="?(\d{1,9})"?', wish):
            return min(float(found[1]), most)
    return 0.0 if b"respond-async" in wishes else most
