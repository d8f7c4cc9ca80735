"""Tokens without a name are told apart by their whole hash, also where the 8 digits that are shown are the same."""

from __future__ import annotations

import time
from collections.abc import Sized
from hashlib import sha256
from pathlib import Path

import pytest
from gateway.access.callers import is_hash, of_owner, shown
from gateway.access.limits import SlidingWindow
from gateway.access.tokens import Authenticator
from gateway.access.usage import DAY_SEC, TokenUsage
from gateway.errors import ApiError
from gateway.features.conversations.store import ResponseStore
from gateway.features.music.jobs import Job, MusicJobs

from tests.support.databases import opened
from tests.support.last_release import last_release_file

PAIR = ("test-token-of-a-pair-71532", "test-token-of-a-pair-103403")  # found by trying 100,000
ONE, OTHER = (sha256(token.encode()).hexdigest() for token in PAIR)
SHOWN = "725e7dd4"


def test_the_two_are_shown_as_one() -> None:
    assert ONE != OTHER
    assert shown(ONE) == shown(OTHER) == SHOWN
    assert is_hash(ONE)
    assert [shown(name) for name in ("name", SHOWN, ONE[:-1])] == ["name", SHOWN, ONE[:-1]]
    assert of_owner("name") == {"owner": "name", "shown": "name"}


def as_before(response_id: str, owner: str) -> tuple[str, tuple[object, ...]]:
    """How the release before inserts a response."""
    row = (response_id, owner, int(time.time()) + 60, 20, b'{"items":[]}', b'{"output":[]}')
    return "INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?)", row


FETCH_BEFORE = "SELECT bytes, input, response FROM responses WHERE id = ? AND owner = ? AND expires_at > ?"
JOB_BEFORE = (
    "INSERT INTO music_jobs (id, status, created_at, expires_at, backend, file, owner)"
    " VALUES (?, 'succeeded', 1, ?, 'b', ?, ?)"
)


async def test_rows_are_each_ones_own_and_those_of_the_release_before_stay(tmp_path: Path) -> None:
    later = int(time.time()) + 60
    with last_release_file(tmp_path / "gateway.sqlite") as connection:
        connection.execute(*as_before("resp_old", SHOWN))
        connection.execute(JOB_BEFORE, ("music-old", later, "old.mp3", SHOWN))
    async with opened(tmp_path / "gateway.sqlite") as database:
        store = ResponseStore(database, 60, 10_000)
        jobs = MusicJobs(database, ttl_sec=60, most=9, most_per_owner=9)
        await store.put(ONE, {"id": "resp_new", "output": []}, [])
        await jobs.keep(Job("music-new", ONE, 1, later, "succeeded", backend="b", file="new.mp3"))
        # Went back to the release before, and came again.
        await database.write(lambda c: c.execute(*as_before("resp_between", SHOWN)))
        found = await database.read(lambda c: c.execute(FETCH_BEFORE, ("resp_new", SHOWN, 1)).fetchall())
        assert len(found) == 1
        for owner, own in ((ONE, True), (OTHER, False)):
            for response_id, is_there in (("resp_old", True), ("resp_between", True), ("resp_new", own)):
                assert (await store.response(owner, response_id) is not None) == is_there
            assert (await store.find(owner, "resp_new") is not None) == own
            assert (await jobs.find(owner, "music-old")) is not None
            assert (await jobs.find(owner, "music-new") is not None) == own
            assert await jobs.backend_of(owner, "new.mp3") == ("b" if own else None)
        assert await store.response("named", "resp_old") is None
        assert not await store.delete(OTHER, "resp_new")
        assert await store.delete(ONE, "resp_new")
        await database.write(lambda c: c.execute("DELETE FROM music_jobs"))
        assert await database.read(lambda c: c.execute("SELECT count(*) FROM whole_owners").get) == 0


async def test_each_evicts_its_own(tmp_path: Path) -> None:
    async with opened(tmp_path / "gateway.sqlite") as database:
        store = ResponseStore(database, 60, 4 * 60)
        await database.write(lambda c: c.execute(*as_before("resp_old", SHOWN)))
        await store.put(ONE, {"id": "resp_one", "output": []}, [])
        for number in range(9):
            await store.put(OTHER, {"id": f"resp_{number}", "output": []}, [])
        assert await store.response(ONE, "resp_one") is not None
        assert await store.response(ONE, "resp_old") is not None
        assert await store.response(OTHER, "resp_8") is not None
        sums = await database.read(lambda c: dict(c.execute("SELECT owner, bytes FROM responses_of_owners")))
        assert sums.keys() == {ONE, OTHER, SHOWN}
        total = await database.read(lambda c: c.execute("SELECT bytes FROM responses_total").get)
        assert sum(sums.values()) == total


async def test_counts_are_each_ones_own_in_both_releases(tmp_path: Path) -> None:
    now, day = 20_000.5 * DAY_SEC, 20_000
    slot = int(now * 4) - 8

    async def process(tokens: dict[str, int], requests: dict[str, int], *spends: str) -> None:
        async with opened(tmp_path / "gateway.sqlite") as database:
            usage = TokenUsage(lambda: now, lambda: 1_000.0)
            usage.windows = {ONE: SlidingWindow(99), OTHER: SlidingWindow(99)}
            await usage.start(database)
            assert {key: usage.today(key) for key in (ONE, OTHER)} == tokens
            assert {key: window.used(1_000.0) for key, window in usage.windows.items()} == requests
            for key in spends:
                usage.spend(key, 100)
                usage.windows[key].take(1_000.0)
            await usage.stop()

    async def release_before() -> tuple[int, int]:
        """Spends 7 in one request; what it has counted before that."""
        async with opened(tmp_path / "gateway.sqlite") as database:
            seen = await database.read(
                lambda c: (
                    c.execute("SELECT tokens FROM token_usage WHERE caller = ?", (SHOWN,)).get,
                    c.execute("SELECT sum(requests) FROM request_counts WHERE caller = ?", (SHOWN,)).get,
                )
            )
            add = "INSERT INTO token_usage VALUES (?, ?, 7) ON CONFLICT DO UPDATE SET tokens = tokens + excluded.tokens"
            await database.write(lambda c: c.execute(add, (day, SHOWN)))
            add = "INSERT INTO request_counts VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET requests = excluded.requests"
            await database.write(lambda c: c.execute(add, (SHOWN, slot, 1)))
            return seen

    await process({ONE: 0, OTHER: 0}, {ONE: 0, OTHER: 0}, ONE, ONE, OTHER)
    await process({ONE: 200, OTHER: 100}, {ONE: 2, OTHER: 1}, ONE)
    assert await release_before() == (400, 4)
    # What nobody can tell whose it is counts for both.
    await process({ONE: 307, OTHER: 107}, {ONE: 4, OTHER: 2}, OTHER)
    await process({ONE: 307, OTHER: 207}, {ONE: 4, OTHER: 3})


@pytest.mark.parametrize("header", [b"authorization", b"x-api-key"])
def test_nothing_is_kept_of_unknown_tokens(header: bytes) -> None:
    authenticator = Authenticator([PAIR[0]])
    begin = b"Bearer " if header == b"authorization" else b""

    def identify(token: str) -> None:
        authenticator.identify({"client": ("127.0.0.1", 1), "headers": []}, {header: begin + token.encode()})

    identify(PAIR[0])
    kept = [len(one) for one in vars(authenticator).values() if isinstance(one, Sized)]
    for number in range(1_000):
        with pytest.raises(ApiError, match="Invalid bearer token"):
            identify(f"unknown-{number}")
    assert kept == [len(one) for one in vars(authenticator).values() if isinstance(one, Sized)]
