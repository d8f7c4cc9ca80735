"""The settings of music."""

from __future__ import annotations

from pydantic import Field

from gateway.config.settings import URL_PATH, Section


class MusicSettings(Section, heading="Music"):
    heartmula_base_url: str = Field("", description="A music server; makes a backend when there is none.")
    heartmula_timeout_sec: float = Field(
        120, gt=0, description="Longest time for a piece of music, but at least 5 x its duration + 30."
    )
    heartmula_generate_path: str = Field(
        "/v1/music/generations", pattern=URL_PATH, description="Where music is asked for."
    )
    music_backend_class: str = Field("heartmula_music", description="Class of the backends that make music.")
    music_wait_sec: float = Field(
        120, ge=0, description="How long a request for music waits for it, before it is answered with a job to poll."
    )
    music_job_ttl_sec: int = Field(
        7 * 86_400, ge=1, description="How long a piece of music and its job can be fetched."
    )
    music_max_jobs: int = Field(32, ge=1, description="Pieces of music that are made or waited for at a time.")
    music_max_jobs_per_token: int = Field(4, ge=1, description="Those of them that may be of one token.")
