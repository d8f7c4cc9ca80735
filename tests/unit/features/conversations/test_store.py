"""The store of responses by itself: what is read at once is bounded, and so is all that is kept."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import orjson
import pytest
from gateway.features.conversations.store import ResponseStore
from gateway.storage import StorageError

from tests.support.databases import opened
from tests.support.waiting import until_async


def response(number: int) -> dict[str, Any]:
    return {"id": f"resp_{number}", "output": [{"id": f"msg_{number}", "text": "x" * 1_000}]}


async def test_no_more_items_are_read_than_can_be_used(tmp_path: Path) -> None:
    async with opened(tmp_path / "x.sqlite") as database:
        store = ResponseStore(database, ttl_sec=60, max_bytes=1_000_000)
        for number in range(9):
            await store.put("me", response(number), [{"id": f"in_{number}"}])
        wanted = {f"resp_{number}": {f"msg_{number}", f"in_{number}"} for number in range(9)}
        found = await store.items("me", wanted, 100_000)
        assert found.keys() == set().union(*wanted.values())
        assert found["in_0"].item == {"id": "in_0"}
        assert found["in_0"].bytes == len('{"id":"in_0"}')
        some = await store.items("me", wanted, 3_000)
        assert len(some) == 6
        assert sum(sized.bytes for sized in some.values()) > 3_000, "so that it is known to be too much"
        assert await store.items("other", wanted, 100_000) == {}


async def test_a_token_evicts_only_its_own_beyond_a_fair_share(tmp_path: Path) -> None:
    async with opened(tmp_path / "x.sqlite") as database:
        store = ResponseStore(database, 60, max_bytes=11_500)  # ten of them

        async def kept() -> dict[str, list[int]]:
            found: dict[str, list[int]] = {}
            for number in range(60):
                for owner in ("modest", "greedy", "third"):
                    if await store.response(owner, f"resp_{number}"):
                        found.setdefault(owner, []).append(number)
            return found

        for number in range(2):
            await store.put("modest", response(number), [])
        for number in range(2, 30):
            await store.put("greedy", response(number), [])
        assert await kept() == {"modest": [0, 1], "greedy": list(range(22, 30))}
        for number in range(30, 40):
            await store.put("third", response(number), [])
        found = await kept()
        assert found["modest"] == [0, 1]
        assert found["greedy"] == [26, 27, 28, 29]
        assert found["third"] == [36, 37, 38, 39]
        with pytest.raises(StorageError, match="share of RESPONSES_MAX_BYTES"):
            await store.put("modest", {"id": "resp_50", "output": [{"text": "x" * 10_000}]}, [])
        assert await kept() == found
        await store.delete("modest", "resp_0")
        sums = await database.read(lambda c: dict(c.execute("SELECT owner, bytes FROM responses_of_owners")))
        rows = await database.read(lambda c: dict(c.execute("SELECT owner, sum(bytes) FROM responses GROUP BY owner")))
        assert sums == rows


async def test_response_may_fill_the_store(tmp_path: Path) -> None:
    size = len(orjson.dumps(response(1)) + orjson.dumps({"items": []}))
    async with opened(tmp_path / "db.sqlite") as database:
        await ResponseStore(database, 60, max_bytes=size).put("me", response(1), [])
        with pytest.raises(StorageError, match="larger than RESPONSES_MAX_BYTES"):
            await ResponseStore(database, 60, max_bytes=size - 1).put("me", response(1), [])


async def test_oldest_go_also_where_the_newest_expire_sooner(tmp_path: Path) -> None:
    async with opened(tmp_path / "x.sqlite") as database:
        for number, ttl_sec in enumerate((600, 600, 60, 60)):
            await ResponseStore(database, ttl_sec, max_bytes=3_500).put("me", response(number), [])
        store = ResponseStore(database, 60, max_bytes=3_500)
        kept = [number for number in range(4) if await store.response("me", f"resp_{number}")]
        assert kept == [1, 2, 3]


async def test_a_store_that_cannot_write_says_so_until_it_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.features.conversations.store.SWEEP_EVERY_SEC", 0.01)
    async with opened(tmp_path / "x.sqlite") as database:
        store = ResponseStore(database, 60, 1_000)
        await database.write(lambda c: c.execute("ALTER TABLE responses RENAME TO elsewhere"))
        await store.start()
        await until_async(lambda: store.problem is not None)
        assert store.problem == "responses cannot be stored: no such table: responses"
        await database.write(lambda c: c.execute("ALTER TABLE elsewhere RENAME TO responses"))
        await until_async(lambda: store.problem is None)
        await store.stop()


async def test_what_has_expired_is_not_found_and_a_start_sweeps_it(tmp_path: Path) -> None:
    async with opened(tmp_path / "x.sqlite") as database:
        store = ResponseStore(database, ttl_sec=60, max_bytes=1_000_000)
        await store.put("me", response(1), [])
        await ResponseStore(database, ttl_sec=0, max_bytes=1_000_000).put("me", response(2), [])
        assert await store.response("me", "resp_2") is None
        await store.start()
        await asyncio.sleep(0)
        await database.write(lambda _: None)  # behind the sweep
        assert await database.read(lambda c: c.execute("SELECT id FROM responses").fetchall()) == [("resp_1",)]
        await store.stop()
