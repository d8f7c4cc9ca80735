"""A database that is open for a block."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from gateway.app import schema
from gateway.storage import Database


@asynccontextmanager
async def opened(path: Path, kind: type[Database] = Database) -> AsyncIterator[Database]:
    database = kind(path, schema())
    await database.open()
    try:
        yield database
    finally:
        await database.close()
