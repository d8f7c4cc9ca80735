"""The gateway's SQLite database: one thread writes in batches, others read beside it; migrations only add.

What `Database.write` has returned is on the disk (WAL, synchronous=FULL). Nothing here runs on the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeVar

import apsw

from gateway import background
from gateway.errors import Refusal

log = logging.getLogger(__name__)
T = TypeVar("T")

# One a schema version, in order; one that a release has shipped is never edited. Each must leave a database that the
# release before can still read and write: new tables, indexes, and columns with a default, nothing else.
MIGRATIONS = (
    # 1: /v1/responses. Times are unix seconds; `input` and `response` JSON; `bytes` what both are long.
    """
    CREATE TABLE responses (
        id TEXT PRIMARY KEY,
        owner TEXT NOT NULL,
        expires_at INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        input BLOB NOT NULL,
        response BLOB NOT NULL
    ) STRICT;
    CREATE INDEX responses_expiry ON responses (expires_at);
    CREATE TABLE responses_total (bytes INTEGER NOT NULL) STRICT;
    INSERT INTO responses_total VALUES (0);
    CREATE TRIGGER responses_added AFTER INSERT ON responses
        BEGIN UPDATE responses_total SET bytes = bytes + new.bytes; END;
    CREATE TRIGGER responses_removed AFTER DELETE ON responses
        BEGIN UPDATE responses_total SET bytes = bytes - old.bytes; END;
    """,
    # 2: tokens that each caller has used on a day (UTC, days since 1970).
    """
    CREATE TABLE token_usage (
        day INTEGER NOT NULL,
        caller TEXT NOT NULL,
        tokens INTEGER NOT NULL,
        PRIMARY KEY (day, caller)
    ) STRICT, WITHOUT ROWID;
    """,
    # 3: /v1/music/generations. Times are unix seconds; `file` is the name on the backend of what was made; `result`
    # and `error` are JSON.
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
    # 4: requests that each caller has made of late, by quarter seconds since 1970.
    """
    CREATE TABLE request_counts (
        caller TEXT NOT NULL,
        slot INTEGER NOT NULL,
        requests INTEGER NOT NULL,
        PRIMARY KEY (caller, slot)
    ) STRICT, WITHOUT ROWID;
    """,
    # 5: whose the responses and jobs of tokens without a name are, by the whole hash: `owner` has 8 digits of it, for
    # the releases before, whose own rows are not here. And how many bytes of responses each owner has.
    """
    CREATE TABLE whole_owners (id TEXT PRIMARY KEY, owner TEXT NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TRIGGER music_jobs_removed AFTER DELETE ON music_jobs
        BEGIN DELETE FROM whole_owners WHERE id = old.id; END;
    CREATE INDEX responses_owners ON responses (owner);
    CREATE TABLE responses_of_owners (owner TEXT PRIMARY KEY, bytes INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    INSERT INTO responses_of_owners SELECT owner, sum(bytes) FROM responses GROUP BY owner;
    CREATE TRIGGER responses_added_to_owner AFTER INSERT ON responses BEGIN
        INSERT INTO responses_of_owners
            VALUES (coalesce((SELECT owner FROM whole_owners WHERE id = new.id), new.owner), new.bytes)
            ON CONFLICT (owner) DO UPDATE SET bytes = bytes + excluded.bytes;
    END;
    CREATE TRIGGER responses_removed_from_owner AFTER DELETE ON responses BEGIN
        UPDATE responses_of_owners SET bytes = bytes - old.bytes
            WHERE owner = coalesce((SELECT owner FROM whole_owners WHERE id = old.id), old.owner);
        DELETE FROM responses_of_owners WHERE bytes <= 0;
        DELETE FROM whole_owners WHERE id = old.id;
    END;
    """,
)
# The oldest schema whose release can work with a database that has all of the above.
MIN_READER = 1

BATCH_MAX = 200
PENDING_MAX = 1_000
READERS = 2
BUSY_TIMEOUT_MS = 5_000  # another process, such as a backup, may hold the file for a moment
WAL_MAX_BYTES = 64 * 1024 * 1024
ANOTHER_FILE = "name another file by GATEWAY_DB_PATH"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the database `path` for this process alone, by a lock on a file beside it, until the end of the block.

    The system gives the lock back when the process ends, however it ends.

    Raises:
        Refusal: another gateway has it, or there is no such directory.
    """
    lock = path.with_name(f"{path.name}.lock")
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise Refusal(
            f"the database {path} cannot be opened ({error.strerror}); make its directory, or {ANOTHER_FILE}"
        ) from None
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = file.read(20).decode("ascii", "replace").strip()
            raise Refusal(
                f"the database {path} is in use by another gateway, process {holder or 'unknown'}; stop that one "
                f"(kill {holder or 'PID'}), or give this one a directory of its own (--data-dir DIR)"
            ) from None
        except OSError as error:
            raise Refusal(f"{lock} cannot be locked ({error.strerror}); {ANOTHER_FILE}") from None
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
            file.truncate()
            file.write(b"%d\n" % os.getpid())
        yield


class StorageError(Exception):
    """The database cannot be read or written now: the disk is full or broken, the file damaged, too much waits."""


class _Write(NamedTuple):
    work: Callable[[apsw.Connection], Any]
    done: asyncio.Future[Any]


class _Outcome(NamedTuple):
    result: Any = None
    error: Exception | None = None


class Database:
    """One database file. `open` before all else, `close` at the end, both on the loop that asks."""

    def __init__(self, path: Path, migrations: Sequence[str] = MIGRATIONS, min_reader: int = MIN_READER) -> None:
        self._path = path
        self._migrations = migrations
        self._min_reader = min_reader
        self._queue: SimpleQueue[_Write | None] = SimpleQueue()
        self._pending = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._writer: threading.Thread | None = None
        self._readers: ThreadPoolExecutor | None = None
        self._local = threading.local()
        self._reading: list[apsw.Connection] = []

    async def open(self) -> None:
        """Creates the file, or brings it to this schema after a backup beside it.

        Raises:
            Refusal: there is no such directory, the file is not ours, or of a release that this one cannot follow.
        """
        self._loop = asyncio.get_running_loop()
        connection = await asyncio.to_thread(_open, self._path, self._migrations, self._min_reader)
        self._writer = threading.Thread(target=self._write_batches, args=(connection,), name="database-writer")
        self._writer.start()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="database-reader")

    async def close(self) -> None:
        """Ends what is under way; a database that never opened is closed already."""
        writer, self._writer = self._writer, None
        readers, self._readers = self._readers, None
        if writer is None or readers is None:
            return
        self._queue.put(None)
        await asyncio.to_thread(writer.join)
        await asyncio.to_thread(readers.shutdown)
        for connection in self._reading:
            connection.close()
        self._reading.clear()

    async def write(self, work: Callable[[apsw.Connection], T]) -> T:
        """What `work` returns, once it is on the disk. It runs in a transaction that it shares with others.

        An exception of `work` undoes what it did, and is raised here. Cancelling this stops what has not begun; what
        has may be done all the same.

        Raises:
            StorageError: it is not stored.
        """
        if self._writer is None or self._loop is None:
            raise StorageError(f"the database {self._path} is closed")
        if self._pending >= PENDING_MAX:
            raise StorageError(f"the database {self._path} is behind by {PENDING_MAX} writes; its disk is too slow")
        done: asyncio.Future[T] = self._loop.create_future()
        self._pending += 1
        self._queue.put(_Write(work, done))
        return await done

    async def read(self, work: Callable[[apsw.Connection], T]) -> T:
        """What `work` returns, on a connection that cannot write and sees one state of the database throughout.

        Raises:
            StorageError: it cannot be read.
        """
        if self._readers is None:
            raise StorageError(f"the database {self._path} is closed")
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, work)

    def _read(self, work: Callable[[apsw.Connection], T]) -> T:
        try:
            connection = getattr(self._local, "connection", None)
            if connection is None:
                connection = self._local.connection = _connect(self._path)
                self._reading.append(connection)
                connection.execute("PRAGMA query_only = ON")
            connection.execute("BEGIN")
            try:
                return work(connection)
            finally:
                connection.execute("ROLLBACK")
        except apsw.Error as error:
            raise StorageError(f"the database {self._path} cannot be read: {error}") from error

    def _write_batches(self, connection: apsw.Connection) -> None:
        assert self._loop is not None  # noqa: S101  # open has set it
        while batch := self._next_batch():
            try:
                outcomes = self._commit(connection, batch)
            except Exception as error:  # who waits for these must not wait for ever, nor those who come
                background.failed("database_writer")
                outcomes = [_Outcome(error=self._explained(error))] * len(batch)
                time.sleep(background.RESTART_SEC)
            self._loop.call_soon_threadsafe(self._deliver, batch, outcomes)
        connection.close()

    def _next_batch(self) -> list[_Write]:
        """Waits for a write and takes those that wait with it; empty when the database is to be closed."""
        batch: list[_Write] = []
        write = self._queue.get()
        while write is not None:
            batch.append(write)
            if len(batch) == BATCH_MAX:
                return batch
            try:
                write = self._queue.get_nowait()
            except Empty:
                return batch
        if batch:
            self._queue.put(None)
        return batch

    def _commit(self, connection: apsw.Connection, batch: Sequence[_Write]) -> list[_Outcome]:
        try:
            connection.execute("BEGIN IMMEDIATE")
            outcomes = [self._attempt(connection, write) for write in batch]
            connection.execute("COMMIT")
        except Exception as error:
            # Some errors, a full disk among them, take the whole transaction with them.
            with contextlib.suppress(apsw.Error):
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            return [_Outcome(error=self._explained(error))] * len(batch)
        return outcomes

    def _attempt(self, connection: apsw.Connection, write: _Write) -> _Outcome:
        if write.done.cancelled():
            return _Outcome()
        connection.execute("SAVEPOINT work")
        try:
            outcome = _Outcome(write.work(connection))
        except Exception as error:
            if not connection.in_transaction:
                raise
            connection.execute("ROLLBACK TO work")
            outcome = _Outcome(error=self._explained(error))
        connection.execute("RELEASE work")
        return outcome

    def _explained(self, error: Exception) -> Exception:
        if not isinstance(error, apsw.Error):
            return error
        explained = StorageError(f"the database {self._path} cannot be written: {error}")
        explained.__cause__ = error
        return explained

    def _deliver(self, batch: Sequence[_Write], outcomes: Sequence[_Outcome]) -> None:
        self._pending -= len(batch)
        for write, outcome in zip(batch, outcomes, strict=True):
            if write.done.done():
                continue
            if outcome.error is None:
                write.done.set_result(outcome.result)
            else:
                write.done.set_exception(outcome.error)


def _open(path: Path, migrations: Sequence[str], min_reader: int) -> apsw.Connection:
    try:
        # Conversations are in it: for the service's user alone. SQLite gives its other files the same mode.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        connection = _connect(path)
        if connection.pragma("journal_mode", "wal") != "wal":
            raise Refusal(f"the database {path} cannot have a write-ahead log on its file system; {ANOTHER_FILE}")
        _migrate(connection, path, migrations, min_reader)
    except OSError as error:
        raise Refusal(
            f"the database {path} cannot be opened ({error.strerror}); make its directory, or {ANOTHER_FILE}"
        ) from None
    except apsw.NotADBError:
        raise Refusal(f"{path} is not a database; move it away, or {ANOTHER_FILE}") from None
    except apsw.Error as error:
        raise Refusal(f"the database {path} cannot be opened ({error}); restore a backup, or {ANOTHER_FILE}") from error
    return connection


def _connect(path: Path) -> apsw.Connection:
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    connection.set_busy_timeout(BUSY_TIMEOUT_MS)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA fullfsync = ON")  # without it macOS leaves what was synced in the disk's own cache
    connection.execute(f"PRAGMA journal_size_limit = {WAL_MAX_BYTES}")
    return connection


def _migrate(connection: apsw.Connection, path: Path, migrations: Sequence[str], min_reader: int) -> None:
    version = _version(connection, path, migrations)
    if version >= len(migrations):
        return
    if version:
        backup = path.with_name(f"{path.name}.before-{len(migrations)}")
        _copy(connection, backup)
        _rehearse(connection, path, migrations, min_reader)
        log.info("the database %s goes from schema %d to %d; before it is %s", path, version, len(migrations), backup)
    _apply(connection, path, migrations, min_reader)


def _apply(connection: apsw.Connection, path: Path, migrations: Sequence[str], min_reader: int) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        connection.execute("CREATE TABLE IF NOT EXISTS schema_info (min_reader INTEGER NOT NULL) STRICT")
        # Asked again, now that nobody else can write: another process may have done it meanwhile.
        for migration in migrations[_version(connection, path, migrations) :]:
            connection.execute(migration)
        connection.execute("DELETE FROM schema_info")
        connection.execute("INSERT INTO schema_info VALUES (?)", (min_reader,))
        connection.pragma("user_version", len(migrations))
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk ends it by itself
            connection.execute("ROLLBACK")
        raise


def _version(connection: apsw.Connection, path: Path, migrations: Sequence[str]) -> int:
    """The file's schema; raises Refusal when this release cannot work with it."""
    version = int(connection.pragma("user_version"))
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    if (tables or version) and "schema_info" not in tables:
        raise Refusal(f"the database {path} is not the gateway's; name another file by GATEWAY_DB_PATH")
    if version > len(migrations):
        min_reader = connection.execute("SELECT min_reader FROM schema_info").get
        if min_reader > len(migrations):
            raise Refusal(
                f"the database {path} has schema {version}, for releases that know schema {min_reader} or newer; "
                f"this one knows {len(migrations)}: install the newer release again, or restore a backup of its time"
            )
    return version


def _copy(connection: apsw.Connection, target: Path) -> None:
    """A whole copy while others go on writing; there when it is complete, and not before."""
    part = target.with_name(f"{target.name}.part")
    part.unlink(missing_ok=True)
    os.close(os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    copy = apsw.Connection(str(part))
    with copy.backup("main", connection, "main") as backup:
        backup.step()
    copy.close()
    part.replace(target)


def _rehearse(connection: apsw.Connection, path: Path, migrations: Sequence[str], min_reader: int) -> None:
    """Migrates a copy, so that what fails has not touched the live file."""
    copy = path.with_name(f"{path.name}.rehearsal")
    _copy(connection, copy)
    rehearsal = apsw.Connection(str(copy))
    try:
        _apply(rehearsal, copy, migrations, min_reader)
    finally:
        rehearsal.close()
        copy.unlink()
