"""The caller's own jobs, and the audio of its pieces."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Request
from fastapi.responses import Response
from pydantic import BaseModel

from gateway.backends.call import Dispatcher
from gateway.backends.protocols.wire_protocol import AUDIO_FILE
from gateway.errors import ApiError
from gateway.features.music.jobs import Job, MusicJobs
from gateway.features.music.proxied import ProxiedAudio
from gateway.features.music.routes import OF_JOB, store_errors
from gateway.features.music.settings import MusicSettings
from gateway.web.exchange import caller_of, exchange_of

JOB_ID = Annotated[str, Path(pattern="^music-[0-9a-f]{24}$")]
FILE_NAME = Annotated[str, Path(pattern=f"^{AUDIO_FILE.pattern}$")]

NO_JOB: dict[int | str, dict[str, Any]] = {
    404: {"description": "The caller has no such job; jobs expire"},
    503: {"description": "The store cannot be read; the gateway's log says why"},
}
_AUDIO = {"audio/*": {"schema": {"type": "string", "format": "binary"}}}
AUDIO: dict[int | str, dict[str, Any]] = {
    200: {"description": "The audio", "content": _AUDIO},
    206: {"description": "A range of it", "content": _AUDIO},
    404: {"description": "The caller has no such piece; pieces expire"},
    416: {"description": "There is no such range", "content": {}},
    502: {"description": "The backend gave no valid answer"},
    503: {"description": "The backend is not ready, or the store cannot be read"},
    504: {"description": "The backend did not answer in time"},
}

RANGE = [
    {"name": name, "in": "header", "description": "As RFC 9110 has it", "schema": {"type": "string"}}
    for name in ("Range", "If-Range")
]


class MusicJob(BaseModel):
    """A piece in the making. `result` is what a request that waited would have been answered with."""

    id: str
    object: Literal["music.generation"] = "music.generation"
    status: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    created_at: int
    started_at: int | None
    finished_at: int | None
    expires_at: int
    result: dict[str, Any] | None
    error: dict[str, Any] | None


def make_router(dispatcher: Dispatcher, settings: MusicSettings, jobs: MusicJobs) -> APIRouter:
    """The caller's own jobs, and the audio of its pieces."""
    router = APIRouter(tags=["music"])

    @router.get(
        "/v1/music/generations/{job_id}",
        summary="Show a music job",
        responses={200: {"links": OF_JOB}, **NO_JOB},
    )
    async def get_job(job_id: JOB_ID, request: Request) -> MusicJob:
        return MusicJob(**(await _found(jobs, request, job_id)).told())

    @router.delete("/v1/music/generations/{job_id}", summary="Cancel a music job", responses=NO_JOB)
    async def cancel_job(job_id: JOB_ID, request: Request) -> MusicJob:
        job = await _found(jobs, request, job_id)
        if job.finished_at is None:
            await jobs.cancel(job)
        return MusicJob(**job.told())

    @router.get(
        "/ui/heartmula/audio/{file}",
        summary="Fetch the audio of a piece",
        responses=AUDIO,
        response_class=Response,
        openapi_extra={"parameters": RANGE},
    )
    async def get_audio(file: FILE_NAME, request: Request) -> Response:
        exchange = exchange_of(request)
        with store_errors():
            name = await jobs.backend_of(exchange.owner, file)
        backend = next((one for one in dispatcher.registry.backends if one.name == name), None)
        if backend is None:
            raise ApiError(404, f"There is no piece '{file}'; pieces expire", code="not_found")
        return ProxiedAudio(dispatcher, exchange, backend, file, settings.heartmula_timeout_sec)

    return router


async def _found(jobs: MusicJobs, request: Request, job_id: str) -> Job:
    with store_errors():
        job = await jobs.find(caller_of(request).key, job_id)
    if job is None:
        raise ApiError(404, f"There is no job '{job_id}'; finished jobs expire", code="not_found")
    return job
