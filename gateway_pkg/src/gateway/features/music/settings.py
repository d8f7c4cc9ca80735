"""The settings of music."""

from __future__ import annotations

from gateway.config.settings import URL_PATH, Section, setting


class MusicSettings(Section, heading="Music"):
    heartmula_base_url: str = setting("", "URL of a music server; makes a backend unless one is configured.")
    heartmula_timeout_sec: float = setting(
        120, "Longest time for a piece of music; at least 5 x its duration + 30.", gt=0
    )
    heartmula_generate_path: str = setting(
        "/v1/music/generations", "Path of the music server's route.", pattern=URL_PATH
    )
    music_backend_class: str = setting("heartmula_music", "Backend class for music.")
    music_wait_sec: float = setting(
        120, "How long a request waits for its music before the answer is a job to poll.", ge=0
    )
    music_job_ttl_sec: int = setting(7 * 86_400, "How long a piece of music and its job are kept.", ge=1)
    music_max_jobs: int = setting(32, "Most unfinished music jobs.", ge=1)
    music_max_jobs_per_token: int = setting(4, "Most unfinished music jobs of one token.", ge=1)
