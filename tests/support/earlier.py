"""Database files of releases before namespaces, whose schemas had one number together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw
from gateway.app import schema


@contextmanager
def earlier_file(path: Path, version: int) -> Iterator[apsw.Connection]:
    """Makes the file that a release of this schema would have made."""
    connection = apsw.Connection(str(path))
    known = sorted((one.was, one.sql) for migrations in schema().values() for one in migrations if one.was)
    for was, sql in known:
        if was <= version:
            connection.execute(sql)
    connection.execute("CREATE TABLE schema_info (min_reader INTEGER NOT NULL) STRICT")
    connection.execute("INSERT INTO schema_info VALUES (1)")
    connection.pragma("user_version", version)
    yield connection
    connection.close()
