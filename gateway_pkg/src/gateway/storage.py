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
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, TypeVar

import apsw

from gateway import background
from gateway.errors import Refusal

log = logging.getLogger(__name__)
T = TypeVar("T")


class Migration(NamedTuple):
    """SQL that only adds: tables, indexes, triggers, and columns with a default.

    The release before can then still read and write. A shipped migration is never edited. `min_reader` is the oldest
    version of the namespace that can work with the result. `was` is the migration's number in the single list of the
    releases before namespaces, 0 for a newer migration.
    """

    sql: str
    was: int = 0
    min_reader: int = 1


# Each namespace's migrations, in order; the position of one, from 1, is the version that it makes.
Schema = Mapping[str, Sequence[Migration]]
# The last `user_version` of the releases before namespaces, and the oldest one that can work with the database.
EARLIER_VERSION = 5
EARLIER_READER = 1
EARLIER = "earlier"  # the row of schema_namespaces with the file's `user_version` before namespaces

BATCH_MAX = 200
PENDING_MAX = 1_000
READERS = 2
BUSY_TIMEOUT_MS = 5_000  # another process, such as a backup, may hold the file for a moment
WAL_MAX_BYTES = 64 * 1024 * 1024
ANOTHER_FILE = "name another file by GATEWAY_DB_PATH"
NAMESPACES = """
    CREATE TABLE IF NOT EXISTS schema_info (min_reader INTEGER NOT NULL) STRICT;
    CREATE TABLE schema_namespaces (
        name TEXT PRIMARY KEY, version INTEGER NOT NULL, min_reader INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID
"""
RECORD = """
    INSERT INTO schema_namespaces VALUES (?, ?, ?)
    ON CONFLICT DO UPDATE SET version = excluded.version, min_reader = excluded.min_reader
    WHERE version < excluded.version
"""


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the database `path` for this process alone, by a lock on a file beside it, until the end of the block.

    The system gives the lock back when the process ends, however it ends. Raises Refusal: another gateway has it, or
    there is no such directory.
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


Tell = Callable[[], object]  # tells who waits for a write, on the loop


class Database:
    """One database file. `open` before all else, `close` at the end, both on the loop that asks."""

    def __init__(self, path: Path, schema: Schema) -> None:
        self._path = path
        self._schema = schema
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
        connection = await asyncio.to_thread(_open, self._path, self._schema)
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

        An exception of `work` undoes what it did, and is raised here; StorageError when it is not stored. Cancelling
        this stops what has not begun; what has may be done all the same.
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
        """What `work` returns, on a connection that cannot write and sees one state throughout; raises StorageError."""
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
                outcomes = self._failed(batch, error)
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

    def _commit(self, connection: apsw.Connection, batch: Sequence[_Write]) -> list[Tell]:
        try:
            connection.execute("BEGIN IMMEDIATE")
            outcomes = [self._attempt(connection, write) for write in batch]
            connection.execute("COMMIT")
        except Exception as error:
            # Some errors, a full disk among them, take the whole transaction with them.
            with contextlib.suppress(apsw.Error):
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
            return self._failed(batch, error)
        return outcomes

    def _attempt(self, connection: apsw.Connection, write: _Write) -> Tell:
        if write.done.cancelled():
            return write.done.cancel
        connection.execute("SAVEPOINT work")
        try:
            tell: Tell = partial(write.done.set_result, write.work(connection))
        except Exception as error:
            if not connection.in_transaction:
                raise
            connection.execute("ROLLBACK TO work")
            tell = partial(write.done.set_exception, self._explained(error))
        connection.execute("RELEASE work")
        return tell

    def _failed(self, batch: Sequence[_Write], error: Exception) -> list[Tell]:
        return [partial(write.done.set_exception, self._explained(error)) for write in batch]

    def _explained(self, error: Exception) -> Exception:
        if not isinstance(error, apsw.Error):
            return error
        explained = StorageError(f"the database {self._path} cannot be written: {error}")
        explained.__cause__ = error
        return explained

    def _deliver(self, batch: Sequence[_Write], outcomes: Sequence[Tell]) -> None:
        self._pending -= len(batch)
        for write, tell in zip(batch, outcomes, strict=True):
            if not write.done.done():
                tell()


def _open(path: Path, schema: Schema) -> apsw.Connection:
    try:
        # Conversations are in it: for the service's user alone. SQLite gives its other files the same mode.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        connection = _connect(path)
        if connection.pragma("journal_mode", "wal") != "wal":
            raise Refusal(f"the database {path} cannot have a write-ahead log on its file system; {ANOTHER_FILE}")
        _migrate(connection, path, schema)
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


class _Found(NamedTuple):
    """A file's `user_version` before it had namespaces, whether it has them, and the version of each in the schema."""

    earlier: int
    has_namespaces: bool
    versions: dict[str, int]


def _migrate(connection: apsw.Connection, path: Path, schema: Schema) -> None:
    found = _look(connection, path, schema)
    behind = {name: len(schema[name]) for name, version in found.versions.items() if version < len(schema[name])}
    if not behind and found.has_namespaces:
        return
    if behind and any(found.versions.values()):
        backup = path.with_name(f"{path.name}.before-{'-'.join(f'{name}-{new}' for name, new in behind.items())}")
        _copy(connection, backup)
        _rehearse(connection, path, schema)
        for name, new in behind.items():
            log.info("the database %s: %s goes from schema %d to %d", path, name, found.versions[name], new)
        log.info("the database before that is %s", backup)
    _apply(connection, path, schema)


def _apply(connection: apsw.Connection, path: Path, schema: Schema) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Asked again, now that nobody else can write: another process may have done it meanwhile.
        found = _look(connection, path, schema)
        if not found.has_namespaces:
            connection.execute(NAMESPACES)
            connection.execute("INSERT INTO schema_namespaces VALUES (?, ?, 1)", (EARLIER, found.earlier))
            connection.execute("DELETE FROM schema_info")
            connection.execute("INSERT INTO schema_info VALUES (?)", (EARLIER_READER,))
            connection.pragma("user_version", max(found.earlier, EARLIER_VERSION))
        for name, version in found.versions.items():
            for migration in schema[name][version:]:
                connection.execute(migration.sql)
            reader = max(migration.min_reader for migration in schema[name])
            connection.execute(RECORD, (name, len(schema[name]), reader))
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk ends it by itself
            connection.execute("ROLLBACK")
        raise


def _look(connection: apsw.Connection, path: Path, schema: Schema) -> _Found:
    """Raises Refusal: this release cannot work with the file."""
    earlier = int(connection.pragma("user_version"))
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    if (tables or earlier) and "schema_info" not in tables:
        raise Refusal(f"the database {path} is not the gateway's; name another file by GATEWAY_DB_PATH")
    if earlier > EARLIER_VERSION:
        _check_reader(path, "", earlier, connection.execute("SELECT min_reader FROM schema_info").get, EARLIER_VERSION)
    has_namespaces = "schema_namespaces" in tables
    rows = connection.execute("SELECT name, version, min_reader FROM schema_namespaces") if has_namespaces else ()
    stored = {name: (version, min_reader) for name, version, min_reader in rows}
    earlier = stored.get(EARLIER, (earlier,))[0]
    versions = {}
    for name, migrations in schema.items():
        were = sum(0 < migration.was <= earlier for migration in migrations)
        versions[name], min_reader = stored.get(name, (were, 0))
        _check_reader(path, f" of {name}", versions[name], min_reader, len(migrations))
    return _Found(earlier, has_namespaces, versions)


def _check_reader(path: Path, of: str, version: int, min_reader: int, known: int) -> None:
    if min_reader > known:
        raise Refusal(
            f"the database {path} has schema {version}{of}, for releases that know schema {min_reader} or newer; "
            f"this one knows {known}: install the newer release again, or restore a backup of its time"
        )


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


def _rehearse(connection: apsw.Connection, path: Path, schema: Schema) -> None:
    """Migrates a copy, so that what fails has not touched the live file."""
    copy = path.with_name(f"{path.name}.rehearsal")
    _copy(connection, copy)
    rehearsal = apsw.Connection(str(copy))
    try:
        _apply(rehearsal, copy, schema)
    finally:
        rehearsal.close()
        copy.unlink()
