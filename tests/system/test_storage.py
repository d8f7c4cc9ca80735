"""The database: what was acknowledged is there, whatever happens; errors stay with whom they belong to."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import apsw
import pytest
from gateway import storage
from gateway.app import schema
from gateway.errors import Refusal
from gateway.storage import Database, Migration, Schema, StorageError

from tests.support.gateways import gateway, write_files
from tests.support.ports import free_ports
from tests.support.upstream import Upstream
from tests.support.waiting import PATIENCE_SEC

NOTES = "CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE) STRICT"
COUNTS = "CREATE TABLE counts (n INTEGER NOT NULL) STRICT"
# Writes numbers one by one and says each that is stored.
WRITER = """
import asyncio, sys
from pathlib import Path
from gateway.storage import Database, Migration

async def main():
    database = Database(Path(sys.argv[1]), {"test": [Migration(sys.argv[2])]})
    await database.open()
    number = int(sys.argv[3])
    async def write(number):
        await database.write(lambda c: c.execute("INSERT INTO notes VALUES (?, ?)", (number, "x" * 900 + str(number))))
        print(number, flush=True)
    while True:
        await asyncio.gather(*(write(number + i) for i in range(7)))
        number += 7

asyncio.run(main())
"""


def named(*migrations: str, min_reader: int = 1) -> Schema:
    """One namespace's; the last of them says which version can read it."""
    *first, last = migrations
    return {"test": (*(Migration(sql) for sql in first), Migration(last, min_reader=min_reader))}


@asynccontextmanager
async def opened(path: Path, *migrations: str, min_reader: int = 1) -> AsyncIterator[Database]:
    database = Database(path, named(*migrations or (NOTES,), min_reader=min_reader))
    await database.open()
    try:
        yield database
    finally:
        await database.close()


async def add(database: Database, *texts: str) -> None:
    def insert(connection: apsw.Connection) -> None:
        for text in texts:
            connection.execute("INSERT INTO notes (text) VALUES (?)", (text,))

    await database.write(insert)


async def texts(database: Database) -> list[str]:
    return await database.read(lambda connection: [row[0] for row in connection.execute("SELECT text FROM notes")])


async def test_what_is_written_is_read_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    async with opened(path) as database:
        assert await database.write(lambda connection: connection.execute(COUNTS).get) is None
        await add(database, "one")
        assert await texts(database) == ["one"]
    async with opened(path) as database:
        assert await texts(database) == ["one"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.sqlite"], "the log is not folded in"


@pytest.mark.parametrize(("most", "commits"), [(200, 1), (20, 3)])
async def test_writes_that_wait_share_a_transaction_and_keep_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int, commits: int
) -> None:
    monkeypatch.setattr(storage, "BATCH_MAX", most)
    commits_seen = 0

    def see() -> bool:
        nonlocal commits_seen
        commits_seen += 1
        return False  # go on

    async with opened(tmp_path / "x.sqlite") as database:
        begun, release = threading.Event(), threading.Event()

        def block(connection: apsw.Connection) -> None:
            begun.set()
            release.wait(PATIENCE_SEC)
            connection.set_commit_hook(see)

        blocked = asyncio.ensure_future(database.write(block))
        await asyncio.to_thread(begun.wait, PATIENCE_SEC)
        waiting = [asyncio.ensure_future(add(database, str(number))) for number in range(50)]
        await asyncio.sleep(0)
        release.set()
        await asyncio.gather(blocked, *waiting)
        assert await texts(database) == [str(number) for number in range(50)]
        assert commits_seen == 1 + commits


async def test_closing_it_ends_what_is_under_way(tmp_path: Path) -> None:
    database = Database(tmp_path / "x.sqlite", named(NOTES))
    await database.open()
    begun, may_write, may_read = threading.Barrier(3), threading.Event(), threading.Event()

    def write(_: apsw.Connection) -> None:
        begun.wait(PATIENCE_SEC)
        may_write.wait(PATIENCE_SEC)

    def read(connection: apsw.Connection) -> int:
        begun.wait(PATIENCE_SEC)
        may_read.wait(PATIENCE_SEC)
        return int(connection.execute("SELECT count(*) FROM notes").get)

    writing = asyncio.ensure_future(database.write(write))
    reading = asyncio.ensure_future(database.read(read))
    await asyncio.to_thread(begun.wait, PATIENCE_SEC)
    waiting = asyncio.ensure_future(add(database, "waits"))
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(database.close())
    await asyncio.sleep(0)
    try:
        may_write.set()
        await asyncio.gather(writing, waiting)
        await asyncio.wait((closing,), timeout=0.05)
        assert not closing.done()
        may_read.set()
        assert await reading == 1
        async with asyncio.timeout(PATIENCE_SEC):
            await closing
    finally:
        database._queue.put(None)  # a writer that has missed its end would keep the test's from coming
    for ask in (database.read, database.write):
        with pytest.raises(StorageError, match="closed"):
            await ask(lambda _: None)
    async with opened(tmp_path / "x.sqlite") as again:
        assert await texts(again) == ["waits"]


async def test_a_write_that_fails_undoes_itself_and_no_other(tmp_path: Path) -> None:
    class Mine(Exception):
        pass

    def fails(connection: apsw.Connection) -> None:
        connection.execute("INSERT INTO notes (text) VALUES ('lost')")
        raise Mine

    async with opened(tmp_path / "x.sqlite") as database:
        first, mine, twice, last = await asyncio.gather(
            add(database, "a"), database.write(fails), add(database, "b", "b"), add(database, "c"),
            return_exceptions=True,
        )  # fmt: skip
        assert first is None
        assert last is None
        assert isinstance(mine, Mine)
        assert isinstance(twice, StorageError)
        assert "UNIQUE" in str(twice)
        assert await texts(database) == ["a", "c"]


async def test_a_transaction_that_cannot_be_ended_is_undone(tmp_path: Path) -> None:
    def spoils(connection: apsw.Connection) -> None:
        connection.execute("INSERT INTO notes (text) VALUES ('lost')")
        connection.execute("RELEASE work")  # the writer's own savepoint

    async with opened(tmp_path / "x.sqlite") as database:
        with pytest.raises(StorageError, match="no such savepoint"):
            await database.write(spoils)
        await add(database, "next")
        assert await texts(database) == ["next"]


async def test_cancelled_before_it_began_it_is_not_done(tmp_path: Path) -> None:
    async with opened(tmp_path / "x.sqlite") as database:
        begun, release = threading.Event(), threading.Event()

        def block(_: apsw.Connection) -> None:
            begun.set()
            release.wait(PATIENCE_SEC)

        blocked = asyncio.ensure_future(database.write(block))
        await asyncio.to_thread(begun.wait, PATIENCE_SEC)
        waiting = asyncio.ensure_future(add(database, "no"))
        await asyncio.sleep(0)
        waiting.cancel()
        release.set()
        await blocked
        await add(database, "yes")
        assert await texts(database) == ["yes"]
        assert waiting.cancelled()


async def test_what_waits_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "PENDING_MAX", 3)
    async with opened(tmp_path / "x.sqlite") as database:
        release = threading.Event()
        waiting = [asyncio.ensure_future(database.write(lambda _: release.wait(PATIENCE_SEC))) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(StorageError, match="behind by 3 writes"):
            await add(database, "too many")
        release.set()
        await asyncio.gather(*waiting)
        await add(database, "again")


async def test_readers_cannot_write_and_see_one_state(tmp_path: Path) -> None:
    async with opened(tmp_path / "x.sqlite") as database:
        with pytest.raises(StorageError, match="readonly"):
            await database.read(lambda connection: connection.execute("INSERT INTO notes (text) VALUES ('x')"))
        counted, written = threading.Event(), threading.Event()

        def twice(connection: apsw.Connection) -> tuple[int, int]:
            before = connection.execute("SELECT count(*) FROM notes").get
            counted.set()
            written.wait(PATIENCE_SEC)
            return before, connection.execute("SELECT count(*) FROM notes").get

        reading = asyncio.ensure_future(database.read(twice))
        await asyncio.to_thread(counted.wait, PATIENCE_SEC)
        await add(database, "between")
        written.set()
        assert await reading == (0, 0)
        assert await texts(database) == ["between"]


async def test_a_full_disk_fails_the_write_and_heals(tmp_path: Path) -> None:
    async with opened(tmp_path / "x.sqlite") as database:
        pages = await database.write(lambda c: c.pragma("max_page_count", c.pragma("page_count") + 2))
        assert pages
        with pytest.raises(StorageError, match="full"):
            await add(database, "x" * 100_000)
        await add(database, "small")
        await database.write(lambda connection: connection.pragma("max_page_count", 1_000_000))
        await add(database, "x" * 100_000)
        assert [len(text) for text in await texts(database)] == [5, 100_000]


def test_killed_in_a_loop_it_has_all_that_was_acknowledged(tmp_path: Path) -> None:
    path, said = tmp_path / "x.sqlite", set[int]()
    for round_ in range(5):
        arguments = [sys.executable, "-c", WRITER, str(path), NOTES, str(round_ * 100_000)]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for _ in range(5 + 37 * round_):
                said.add(int(process.stdout.readline()))
            process.send_signal(signal.SIGKILL)
            said |= {int(line) for line in process.stdout if line.endswith("\n")}
    connection = apsw.Connection(str(path))
    stored = {row[0] for row in connection.execute("SELECT id FROM notes")}
    assert said <= stored
    assert len(said) >= 5 * 5
    assert connection.pragma("integrity_check") == "ok"
    connection.close()


def disk(*command: str | Path) -> None:
    subprocess.run(command, check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="a small tmpfs needs root")
async def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    await asyncio.to_thread(disk, "mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place)
    try:
        async with opened(place / "x.sqlite") as database:
            await add(database, "before")
            with pytest.raises(StorageError, match=r"full|disk I/O"):
                for number in range(100):
                    await add(database, f"{number}" + "z" * 20_000)
            assert "before" in await texts(database)
    finally:
        await asyncio.to_thread(disk, "umount", place)


async def test_log_cut_anywhere_opens_with_whole_commits_alone(tmp_path: Path) -> None:
    """A power cut leaves some of the log's last pages out: a copy cut there has a prefix of the commits."""
    path, copy, frame, seen = tmp_path / "x.sqlite", tmp_path / "cut.sqlite", 4096 + 24, set[int]()
    expected = [text for n in range(6) for text in (f"{n} " + "y" * 3_000, f"{n} more")]
    async with opened(path) as database:
        for number in range(0, 12, 2):
            await add(database, *expected[number : number + 2])
        log, main = path.with_name("x.sqlite-wal").read_bytes(), path.read_bytes()
    for end in range(32, len(log) + 1, frame):
        copy.write_bytes(main)
        copy.with_name("cut.sqlite-wal").write_bytes(log[: end + frame // 2])
        copy.with_name("cut.sqlite-shm").unlink(missing_ok=True)
        with closing(apsw.Connection(str(copy))) as connection:
            if connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'notes'").get:
                rows = [row[0] for row in connection.execute("SELECT text FROM notes")]
                assert rows == expected[: len(rows)]
                seen.add(len(rows))
    assert seen >= set(range(0, 13, 2))


async def test_migrates_after_a_backup_and_goes_back(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    async with opened(path, NOTES) as database:
        await add(database, "old")
    path.with_name("x.sqlite.before-test-2.part").touch()  # of a start that was killed meanwhile
    async with opened(path, NOTES, COUNTS) as database:
        await database.write(lambda connection: connection.execute("INSERT INTO counts VALUES (7)"))
        assert await texts(database) == ["old"]
    async with opened(path, NOTES) as database:  # the release before
        await add(database, "older")
    async with opened(path, NOTES, COUNTS) as database:
        assert await database.read(lambda connection: connection.execute("SELECT n FROM counts").get) == 7
        assert await texts(database) == ["old", "older"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["x.sqlite", "x.sqlite.before-test-2"]
    assert stat.S_IMODE((tmp_path / "x.sqlite.before-test-2").stat().st_mode) == 0o600
    backup = apsw.Connection(str(tmp_path / "x.sqlite.before-test-2"))
    assert backup.execute("SELECT version FROM schema_namespaces WHERE name = 'test'").get == 1
    assert backup.execute("SELECT text FROM notes").get == "old"
    backup.close()


async def test_a_migration_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    async with opened(path, NOTES) as database:
        await add(database, "kept")
    with pytest.raises(Refusal, match="near"):
        await Database(path, named(NOTES, f"{COUNTS}; NONSENSE")).open()
    async with opened(path, NOTES) as database:
        assert await texts(database) == ["kept"]
        tables = await database.read(
            lambda c: [row[0] for row in c.execute("SELECT name FROM sqlite_schema WHERE name = 'counts'")]
        )
        assert tables == []
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["x.sqlite", "x.sqlite.before-test-2"]


async def test_refuses_a_database_that_it_cannot_follow(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    async with opened(path, NOTES, COUNTS, min_reader=2):
        pass
    with pytest.raises(Refusal, match="schema 2 of test, for releases that know schema 2 or newer; this"):
        await Database(path, named(NOTES)).open()


@pytest.mark.parametrize("what", ["no directory", "text", "foreign", "directory"])
async def test_refuses_what_is_not_its_database(tmp_path: Path, what: str) -> None:
    path = tmp_path / "x.sqlite"
    if what == "no directory":
        path = tmp_path / "missing" / "x.sqlite"
    elif what == "text":
        path.write_text("not a database " * 100)
    elif what == "foreign":
        connection = apsw.Connection(str(path))
        connection.execute("CREATE TABLE theirs (x)")
        connection.close()
    else:
        path.mkdir()
    with pytest.raises(Refusal, match="GATEWAY_DB_PATH") as refusal:
        await Database(path, schema()).open()
    assert str(path) in str(refusal.value)


def test_two_processes_may_open_a_new_file_at_once(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys; from pathlib import Path\n"
        "from gateway.app import schema; from gateway.storage import Database\n"
        "async def main():\n"
        "    database = Database(Path(sys.argv[1]), schema()); await database.open(); await database.close()\n"
        "asyncio.run(main())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "x.sqlite")]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        _, errors = process.communicate(timeout=PATIENCE_SEC)
        assert process.returncode == 0, errors
    connection = apsw.Connection(str(tmp_path / "x.sqlite"))
    versions = dict(connection.execute("SELECT name, version FROM schema_namespaces"))
    assert versions == {"earlier": 0} | {name: len(migrations) for name, migrations in schema().items()}
    connection.close()


HOLDER = """
import os, sys, time
from pathlib import Path
from gateway.storage import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_database_has_one_process_until_that_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    (tmp_path / "x.sqlite.lock").write_text("1234567\n")  # of a process that was killed
    command = [sys.executable, "-c", HOLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(Refusal) as refusal, storage.locked(path):
            pass
        (line,) = refusal.value.problems
        assert f"process {holder.pid};" in line
        assert f"kill {holder.pid}" in line
        assert "--data-dir DIR" in line
        holder.kill()
    for _ in range(2):
        with storage.locked(path):
            assert (tmp_path / "x.sqlite.lock").read_text() == f"{os.getpid()}\n"
    assert stat.S_IMODE((tmp_path / "x.sqlite.lock").stat().st_mode) == 0o644  # as it was here; else 0600


def test_a_second_gateway_refuses_to_start(tmp_path: Path, backend: Upstream, refused: Callable[..., str]) -> None:
    write_files(tmp_path, backend.url)
    with gateway(tmp_path) as running:
        port, observe_port = free_ports(2)
        said = refused(GATEWAY_PORT=str(port), OBSERVABILITY_PORT=str(observe_port))
        (line,) = [line for line in said.splitlines() if line.startswith("gateway: ")]
        assert f"process {running.process.pid};" in line
        assert running.chat("fast").status_code == 200
    with gateway(tmp_path) as running:
        assert running.chat("fast").status_code == 200
