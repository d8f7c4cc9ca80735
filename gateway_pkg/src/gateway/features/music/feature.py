"""Music: pieces that are made at once, or as a job that is polled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar

from gateway.features.face import Core, Feature
from gateway.features.music.jobs import MIGRATIONS, MusicJobs
from gateway.features.music.routes import GENERATIONS, MusicHandler
from gateway.features.music.settings import MusicSettings
from gateway.observe.metrics import Family, Samples
from gateway.web.settings import RequestSettings

if TYPE_CHECKING:
    from fastapi import APIRouter

JOBS = Family("gateway_music_jobs", "gauge", "Pieces of music that are made or wait for it.", ("status",))


class Music(Feature):
    name = "music"
    section = MusicSettings
    migrations = MIGRATIONS
    tags: ClassVar[Mapping[str, str]] = {"music": "Music: made at once, or as a job to poll"}
    families = (JOBS,)

    def __init__(self, core: Core) -> None:
        settings = self._settings = core.settings[MusicSettings]
        self._dispatcher = core.dispatcher
        self._jobs = MusicJobs(
            core.database,
            ttl_sec=settings.music_job_ttl_sec,
            most=settings.music_max_jobs,
            most_per_owner=settings.music_max_jobs_per_token,
        )
        public_base_url = core.settings[RequestSettings].public_base_url
        handler = MusicHandler(core.dispatcher, settings, self._jobs, public_base_url)
        self.endpoints = [(GENERATIONS, handler.generate)]
        self.parts = (self._jobs,)

    def router(self) -> APIRouter:
        from gateway.features.music.pages import make_router

        return make_router(self._dispatcher, self._settings, self._jobs)

    def samples(self) -> Iterable[tuple[Family, Samples]]:
        yield JOBS, [((status,), count) for status, count in self._jobs.counts().items()]
