"""The store of responses by itself: what is read at once is bounded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gateway.response_store import ResponseStore
from gateway.storage import Database

from tests.gateway.scripted import Run


def test_no_more_items_are_read_than_can_be_used(run: Run, tmp_path: Path) -> None:
    def response(number: int) -> dict[str, Any]:
        return {"id": f"resp_{number}", "output": [{"id": f"msg_{number}", "text": "x" * 1_000}]}

    async def test() -> None:
        database = Database(tmp_path / "x.sqlite")
        await database.open()
        try:
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
        finally:
            await database.close()

    run(test)
