"""Pieces of music in the making, and those that were made: each its caller's own, for a time.

A piece is made by a task that holds its slot of admission to the end. What outlives the request is in the database:
jobs that a client polls, and which backend has the file of a piece.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import apsw
import orjson

from gateway.access.callers import OWNED, keep_owner, of_owner, shown
from gateway.errors import ApiError, retry_after
from gateway.storage import Database, Migration, StorageError

log = logging.getLogger(__name__)

MIGRATIONS = (
    # Times are unix seconds; `file` is the name on the backend of what was made; `result` and `error` are JSON.
    Migration(
        """
        CREATE TABLE music_jobs (
            id TEXT PRIMARY KEY,
            owner TEXT NOT NULL,
            status TEXT NOT NULL,
            created_at INTEGER NOT NULL,
            started_at INTEGER,
            finished_at INTEGER,
            expires_at INTEGER NOT NULL,
            backend TEXT,
            file TEXT,
            result BLOB,
            error BLOB
        ) STRICT;
        CREATE INDEX music_jobs_expiry ON music_jobs (expires_at);
        CREATE INDEX music_jobs_files ON music_jobs (file, owner);
        CREATE INDEX music_jobs_owners ON music_jobs (owner, created_at);
        """,
        was=3,
    ),
    Migration(
        """
        CREATE TRIGGER music_jobs_removed AFTER DELETE ON music_jobs
            BEGIN DELETE FROM whole_owners WHERE id = old.id; END;
        """,
        was=5,
    ),
)
KEPT_PER_OWNER = 200
RETRY_SEC = 30
TOLD = ("id", "status", "created_at", "started_at", "finished_at", "expires_at", "result", "error")
COLUMNS = (*TOLD, "backend", "file")
UNFINISHED = ("queued", "running")
OWN = OWNED.format("music_jobs")
INSERT = f"INSERT INTO music_jobs ({', '.join(COLUMNS)}, owner) VALUES ({'?, ' * len(COLUMNS)}?)"  # noqa: S608  # constants
UPDATE = f"UPDATE music_jobs SET {' = ?, '.join(COLUMNS)} = ? WHERE id = ?"  # noqa: S608  # constants
FIND = f"""
    SELECT {", ".join(COLUMNS)} FROM music_jobs WHERE {{}} = :value AND {OWN} AND expires_at > :now
    ORDER BY created_at DESC, rowid DESC LIMIT 1
"""  # noqa: S608  # constants
DELETE_OLDEST = f"""
    DELETE FROM music_jobs WHERE {OWN} AND status NOT IN ('queued', 'running') AND id NOT IN
        (SELECT id FROM music_jobs WHERE {OWN} ORDER BY created_at DESC, rowid DESC LIMIT :kept)
"""  # noqa: S608  # constants

Make = Callable[["Job"], Awaitable[None]]


@dataclass
class Job:
    """One piece. Times are unix seconds; `result` is the client's answer, `error` the reason of a failure."""

    id: str
    owner: str
    created_at: int
    expires_at: int
    status: str = "queued"
    started_at: int | None = None
    finished_at: int | None = None
    backend: str | None = None
    file: str | None = None
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    failure: ApiError | None = None
    is_kept: bool = False
    task: asyncio.Task[None] = field(init=False, repr=False)

    def told(self) -> dict[str, Any]:
        """As the client sees it."""
        return {"object": "music.generation", **{name: getattr(self, name) for name in TOLD}}


class MusicJobs:
    """`start` before all else, `stop` before the database is closed. Bounded: ApiError 429 beyond."""

    def __init__(self, database: Database, *, ttl_sec: int, most: int, most_per_owner: int) -> None:
        self._database = database
        self._ttl_sec = ttl_sec
        self._most = most
        self._most_per_owner = most_per_owner
        self._jobs: dict[str, Job] = {}  # those that are not finished
        self._is_stopping = False

    async def start(self) -> None:
        """Whatever an earlier process left unfinished has failed; raises StorageError."""
        error = orjson.dumps(_error(_interrupted()))

        def interrupt(connection: apsw.Connection) -> None:
            connection.execute(
                "UPDATE music_jobs SET status = 'failed', finished_at = ?, error = ? WHERE status IN (?, ?)",
                (int(time.time()), error, *UNFINISHED),
            )

        await self._database.write(interrupt)

    async def stop(self) -> None:
        self._is_stopping = True
        for job in tuple(self._jobs.values()):
            await self.cancel(job)

    def counts(self) -> dict[str, int]:
        """How many are unfinished, by status."""
        return {status: sum(job.status == status for job in self._jobs.values()) for status in UNFINISHED}

    def begin(self, owner: str, make: Make) -> Job:
        """Starts a job: `make` sets `status` to running when it has a slot, and the result at the end.

        Raises ApiError 429: the caller or all callers have too many unfinished ones.
        """
        own = sum(job.owner == owner for job in self._jobs.values())
        for count, most, whose in (
            (own, self._most_per_owner, "this token (MUSIC_MAX_JOBS_PER_TOKEN)"),
            (len(self._jobs), self._most, "the gateway (MUSIC_MAX_JOBS)"),
        ):
            if count >= most:
                message = f"{count} unfinished jobs are the limit of {whose}; wait for one, or cancel one"
                raise ApiError(429, message, code="too_many_jobs", headers=retry_after(RETRY_SEC))
        now = int(time.time())
        job = Job(f"music-{secrets.token_hex(12)}", owner, now, now + self._ttl_sec)
        self._jobs[job.id] = job
        job.task = asyncio.create_task(self._run(job, make), name=job.id)
        job.task.add_done_callback(lambda _: self._jobs.pop(job.id))
        return job

    async def cancel(self, job: Job) -> None:
        """Ends a job's work; returns when that has ended, and is stored where the job is."""
        if job.finished_at is None:
            job.task.cancel()
        await asyncio.wait((job.task,))

    async def keep(self, job: Job) -> None:
        """Stores a job, and from now on how it goes on; the oldest of its owner's go. Raises StorageError."""
        job.is_kept = True
        row, now = (*_row(job), shown(job.owner)), int(time.time())

        def insert(connection: apsw.Connection) -> None:
            keep_owner(connection, job.id, job.owner)
            connection.execute("DELETE FROM music_jobs WHERE expires_at <= ?", (now,))
            connection.execute(INSERT, row)
            connection.execute(DELETE_OLDEST, {**of_owner(job.owner), "kept": KEPT_PER_OWNER})

        await self._database.write(insert)

    async def find(self, owner: str, job_id: str) -> Job | None:
        """The owner's job of this id, None without one; raises StorageError."""
        job = self._jobs.get(job_id)
        if job is not None:
            return job if job.owner == owner and job.is_kept else None
        return await self._find("id", owner, job_id)

    async def backend_of(self, owner: str, file: str) -> str | None:
        """The name of the backend that has a piece of the owner's, None where no such piece is; raises StorageError."""
        job = await self._find("file", owner, file)
        return job.backend if job is not None else None

    async def _find(self, column: str, owner: str, value: str) -> Job | None:
        def fetch(connection: apsw.Connection) -> Job | None:
            given = {**of_owner(owner), "value": value, "now": int(time.time())}
            row = connection.execute(FIND.format(column), given).fetchone()
            return _job(owner, row) if row is not None else None

        return await self._database.read(fetch)

    async def _run(self, job: Job, make: Make) -> None:
        try:
            await make(job)
            job.status = "succeeded"
        except ApiError as error:
            job.status, job.failure = "failed", error
        except asyncio.CancelledError:
            job.status = "failed" if self._is_stopping else "cancelled"
            job.failure = _interrupted() if self._is_stopping else None
        except Exception:
            # The last net, as for requests: each one is a bug.
            log.exception("unexpected error in job %s", job.id)
            message = f"Internal error; the gateway's log has it under {job.id}"
            job.status, job.failure = "failed", ApiError(500, message, code="internal_error")
        job.error = _error(job.failure) if job.failure is not None else None
        job.finished_at = int(time.time())
        await self.update(job)

    async def update(self, job: Job) -> None:
        """Stores what has changed about a job that is kept; a failure to do so is logged, and costs nothing else."""
        if not job.is_kept:
            return
        row = (*_row(job), job.id)
        try:
            await self._database.write(lambda connection: connection.execute(UPDATE, row))
        except StorageError as error:
            log.error("the state of job %s (%s) is not stored: %s", job.id, job.status, error)


def _row(job: Job) -> tuple[Any, ...]:
    values = (getattr(job, name) for name in COLUMNS)
    return tuple(orjson.dumps(value) if isinstance(value, dict) else value for value in values)


def _job(owner: str, row: tuple[Any, ...]) -> Job:
    values = (orjson.loads(value) if isinstance(value, bytes) else value for value in row)
    return Job(owner=owner, is_kept=True, **dict(zip(COLUMNS, values, strict=True)))


def _interrupted() -> ApiError:
    return ApiError(503, "The gateway stopped before the piece was finished; ask for it again", code="interrupted")


def _error(error: ApiError) -> dict[str, Any]:
    content: dict[str, Any] = orjson.loads(error.body())["error"]
    return content
