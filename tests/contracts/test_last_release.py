"""The last release and this one over one database file: each reads and writes what the other has stored."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import apsw
import pytest
from gateway.app import FEATURES, schema
from gateway.features.music.feature import Music
from gateway.storage import Database

from tests.support.last_release import last_release_code, last_release_file
from tests.support.waiting import PATIENCE_SEC

LAST = """
from gateway.http.limits import SlidingWindow
from gateway.music import Job, MusicJobs
from gateway.response_store import ResponseStore
from gateway.storage import Database
from gateway.usage import TokenUsage
schema = tuple
"""
THIS = """
from gateway.access.limits import SlidingWindow
from gateway.access.usage import TokenUsage
from gateway.app import schema
from gateway.features.conversations.store import ResponseStore
from gateway.features.music.jobs import Job, MusicJobs
from gateway.storage import Database
"""
# Says what it finds of all that the names stand for, and stores one more of each.
WORK = """
import asyncio, json, sys
from pathlib import Path

async def main(path, name, *asked):
    database = Database(Path(path), *filter(None, [schema()]))
    await database.open()
    store = ResponseStore(database, 10**9, 10_000)
    jobs = MusicJobs(database, ttl_sec=10**9, most=9, most_per_owner=9)
    usage = TokenUsage(lambda: 20_000.5 * 86_400, lambda: 1_000.0)
    usage.windows = {"bot": SlidingWindow(99)}
    await jobs.start()
    await usage.start(database)
    found = {
        "responses": [one for one in asked if await store.find("bot", f"resp_{one}")],
        "pieces": [one for one in asked if await jobs.backend_of("bot", f"{one}.mp3")],
        "tokens": usage.today("bot"),
        "requests": usage.windows["bot"].used(1_000.0),
    }
    await store.put("bot", {"id": f"resp_{name}", "output": []}, [{"id": "in"}])
    await jobs.keep(Job(f"music-{name}", "bot", 1, 10**10, "succeeded", backend="b", file=f"{name}.mp3"))
    usage.spend("bot", 100)
    usage.windows["bot"].take(1_000.0)
    await usage.stop()
    await database.close()
    print(json.dumps(found))

asyncio.run(main(*sys.argv[1:]))
"""


def run(release: str, path: Path, name: str, *asked: str, code: Path | None = None) -> dict[str, Any]:
    environment = os.environ | ({"PYTHONPATH": str(code)} if code is not None else {})
    command = [sys.executable, "-c", release + WORK, str(path), name, *asked]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_SEC, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def counted(number: int, *names: str) -> dict[str, Any]:
    return {"responses": [*names], "pieces": [*names], "tokens": 100 * number, "requests": number}


def columns(connection: apsw.Connection) -> set[tuple[str, str]]:
    """Each table's name with each of its columns."""
    return set(connection.execute("SELECT t.name, c.name FROM sqlite_schema t, pragma_table_info(t.name) c"))


def test_this_release_opens_a_file_of_the_last(tmp_path: Path) -> None:
    path = tmp_path / "gateway.sqlite"
    with last_release_file(path):
        pass
    assert run(THIS, path, "new", "bot") == counted(1, "bot")
    assert run(THIS, path, "newer", "bot", "new") == counted(2, "bot", "new")
    connection = apsw.Connection(str(path))
    versions = dict(connection.execute("SELECT name, version FROM schema_namespaces"))
    assert versions == {"earlier": 4} | {name: len(migrations) for name, migrations in schema().items()}
    sums = connection.execute("SELECT owner, bytes FROM responses_of_owners").fetchall()
    assert sums == connection.execute("SELECT owner, sum(bytes) FROM responses GROUP BY owner").fetchall()
    connection.close()


def test_a_feature_may_come_later_to_a_file_of_the_last_release(tmp_path: Path) -> None:
    path = tmp_path / "gateway.sqlite"
    with last_release_file(path):
        pass

    async def open_without_music() -> None:
        database = Database(path, schema([feature for feature in FEATURES if feature is not Music]))
        await database.open()
        await database.close()

    asyncio.run(open_without_music())
    assert run(THIS, path, "new", "bot") == counted(1, "bot")


@pytest.mark.parametrize("made_by", ["this", "last"])
def test_the_last_release_opens_a_file_of_this_one_and_back(tmp_path: Path, made_by: str) -> None:
    code, path, number = last_release_code(tmp_path), tmp_path / "gateway.sqlite", 0
    if code is None:  # a shallow clone: then what the last release reads must at least be there
        run(THIS, path, "this")
        with last_release_file(tmp_path / "last.sqlite") as last:
            assert columns(last) <= columns(apsw.Connection(str(path)))
        return
    if made_by == "last":
        run(LAST, path, "first", code=code)
        number = 1
    names = ["first", "this"][1 - number :]
    assert run(THIS, path, "this", *names) == counted(number, *names[:-1])
    assert run(LAST, path, "last", *names, code=code) == counted(number + 1, *names)
    assert run(THIS, path, "again", *names, "last") == counted(number + 2, *names, "last")
    assert run(LAST, path, "end", *names, "last", "again", code=code) == counted(number + 3, *names, "last", "again")
