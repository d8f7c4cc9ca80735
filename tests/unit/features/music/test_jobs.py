"""Jobs against a real database, without a gateway: what is kept, what goes, how each end is told."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from gateway.errors import ApiError
from gateway.features.music.jobs import KEPT_PER_OWNER, Job, MusicJobs
from gateway.features.music.routes import wanted_wait
from gateway.storage import Database, StorageError

from tests.support.databases import opened


@asynccontextmanager
async def jobs_in(directory: Path, ttl_sec: int = 60) -> AsyncIterator[tuple[MusicJobs, Database]]:
    async with opened(directory / "gateway.sqlite") as database:
        jobs = MusicJobs(database, ttl_sec=ttl_sec, most=1_000, most_per_owner=1_000)
        try:
            await jobs.start()
            yield jobs, database
        finally:
            await jobs.stop()


async def quick(job: Job) -> None:
    job.backend, job.file, job.result = "m@0", f"{job.id}.wav", {"audio_url": job.id}


async def endless(job: Job) -> None:
    job.status = "running"
    await asyncio.Event().wait()


async def kept(jobs: MusicJobs, job: Job) -> Job:
    """As a client finds it."""
    found = await jobs.find(job.owner, job.id)
    assert found is not None
    return found


async def finished(jobs: MusicJobs, owner: str = "me") -> Job:
    job = jobs.begin(owner, quick)
    await job.task
    await jobs.keep(job)
    return job


async def test_the_oldest_of_an_owner_go(tmp_path: Path) -> None:
    async with jobs_in(tmp_path) as (jobs, _):
        running = jobs.begin("me", endless)
        await jobs.keep(running)
        others = await finished(jobs, "other")
        made = [await finished(jobs) for _ in range(KEPT_PER_OWNER + 2)]
        assert await jobs.find("me", made[1].id) is None
        assert await jobs.backend_of("me", str(made[1].file)) is None
        assert (await kept(jobs, made[2])).told() == made[2].told()
        assert await kept(jobs, running) is running, "what is under way stays"
        assert await kept(jobs, others)
        assert await jobs.find("me", others.id) is None


async def test_a_job_that_is_cancelled_several_times_ends_once(tmp_path: Path) -> None:
    async with jobs_in(tmp_path) as (jobs, _):
        job = jobs.begin("me", endless)
        await asyncio.sleep(0)
        await jobs.keep(job)
        await asyncio.gather(*(jobs.cancel(job) for _ in range(3)))
        done = await finished(jobs)
        await jobs.cancel(done)
        assert [(await kept(jobs, one)).status for one in (job, done)] == ["cancelled", "succeeded"]


async def test_a_job_cancelled_before_it_begins_is_not_kept(tmp_path: Path) -> None:
    async with jobs_in(tmp_path) as (jobs, _):
        job = jobs.begin("me", endless)
        await jobs.cancel(job)
        assert await jobs.find("me", job.id) is None


async def test_an_unexpected_exception_fails_the_job_with_a_500(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(job: Job) -> None:
        raise LookupError("a bug")

    async with jobs_in(tmp_path) as (jobs, _):
        job = jobs.begin("me", broken)
        await job.task
        assert job.failure is not None
        assert (job.status, job.failure.status, job.failure.code) == ("failed", 500, "internal_error")
        assert job.id in job.failure.message
    assert "a bug" in caplog.text


async def test_a_refusal_of_the_backend_is_the_error_of_the_job(tmp_path: Path) -> None:
    async def refused(job: Job) -> None:
        await asyncio.sleep(0)
        raise ApiError(422, "no such style", param="style")

    async with jobs_in(tmp_path) as (jobs, _):
        job = jobs.begin("me", refused)
        await jobs.keep(job)
        await job.task
        found = await kept(jobs, job)
        assert found.error is not None
        assert (found.status, found.error["message"], found.error["param"]) == ("failed", "no such style", "style")


async def test_a_stop_interrupts_the_job_and_its_error_says_so(tmp_path: Path) -> None:
    async with jobs_in(tmp_path) as (jobs, _):
        job = jobs.begin("me", endless)
        await jobs.keep(job)
    assert job.failure is not None
    assert (job.failure.status, job.failure.code) == (503, "interrupted")
    async with jobs_in(tmp_path) as (jobs, _):
        found = await kept(jobs, job)
        assert found.error is not None
        assert (found.status, found.error["code"]) == ("failed", "interrupted")


async def test_a_job_whose_end_cannot_be_stored_ends_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with jobs_in(tmp_path) as (jobs, database):
        go_on = asyncio.Event()

        async def waiting(job: Job) -> None:
            await go_on.wait()

        job = jobs.begin("me", waiting)
        await jobs.keep(job)
        await database.close()
        go_on.set()
        await job.task
        assert job.status == "succeeded"
        with pytest.raises(StorageError):
            await jobs.keep(job)
    assert "is not stored" in caplog.text


async def test_what_has_expired_goes_with_the_next_one(tmp_path: Path) -> None:
    async with jobs_in(tmp_path, ttl_sec=0) as (jobs, database):
        first, second = await finished(jobs), await finished(jobs)
        assert await jobs.find("me", first.id) is None
        assert await database.read(lambda c: c.execute("SELECT id FROM music_jobs").fetchall()) == [(second.id,)]


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        (b"", 120),
        (b"respond-async", 0),
        (b"wait=10", 10),
        (b"Respond-Async, wait=10", 10),
        (b"wait = 300", 120),
        (b"return=minimal; respond-async", 0),
        (b"wait=-1", 120),
        (b"wait=1e9", 120),
        (b"\xff", 120),
    ],
)
def test_how_long_a_client_wants_to_wait(prefer: bytes, seconds: float) -> None:
    assert wanted_wait(prefer, 120) == seconds
