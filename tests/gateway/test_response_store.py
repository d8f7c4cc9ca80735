"""The store of responses by itself: what is read at once is bounded, and so is all that is kept."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from gateway.response_store import ResponseStore
from gateway.storage import Database

from tests.gateway.scripted import Run


def response(number: int) -> dict[str, Any]:
    return {"id": f"resp_{number}", "output": [{"id": f"msg_{number}", "text": "x" * 1_000}]}


@asynccontextmanager
async def opened(home: Path) -> AsyncIterator[Database]:
    database = Database(home / "x.sqlite")
    await database.open()
    try:
        yield database
    finally:
        await database.close()


def test_no_more_items_are_read_than_can_be_used(run: Run, tmp_path: Path) -> None:
    async def test() -> None:
        async with opened(tmp_path) as database:
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

    run(test)


def test_the_oldest_go_also_where_the_newest_expire_sooner(run: Run, tmp_path: Path) -> None:
    async def test() -> None:
        async with opened(tmp_path) as database:
            for number, ttl_sec in enumerate((600, 600, 60, 60)):
                await ResponseStore(database, ttl_sec, max_bytes=3_500).put("me", response(number), [])
            store = ResponseStore(database, 60, max_bytes=3_500)
            kept = [number for number in range(4) if await store.response("me", f"resp_{number}")]
            assert kept == [1, 2, 3]

    run(test)
