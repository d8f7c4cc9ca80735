"""Responses that are kept, with all that came before them: for their caller alone, for a time, within a size.

Each row holds its whole conversation, so that one read is enough to go on with it however long it is.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import apsw
from pydantic_core import from_json

from gateway import background
from gateway.access.callers import OWNED, keep_owner, of_owner, shown
from gateway.routing.body import dump
from gateway.storage import Database, Migration, StorageError

log = logging.getLogger(__name__)

MIGRATIONS = (
    # Times are unix seconds; `input` and `response` JSON; `bytes` what both are long.
    Migration(
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
        was=1,
    ),
    # How many bytes of responses each owner has.
    Migration(
        """
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
        was=5,
    ),
)
SWEEP_EVERY_SEC = 60
SWEEP_ROWS = 200  # in one go, so that a sweep keeps no other write waiting for long
OWN = f"id = :id AND {OWNED.format('responses')}"
FETCH = f"SELECT bytes, input, response FROM responses WHERE {OWN} AND expires_at > :now"  # noqa: S608  # constants
MOST = "SELECT owner FROM responses_of_owners ORDER BY bytes DESC LIMIT 1"
# Of exactly this owner, as `responses_of_owners` counts them: the 8 digits of a release before are an owner, too.
DELETE_OLDEST = """
    DELETE FROM responses WHERE rowid = (
        SELECT r.rowid FROM responses AS r LEFT JOIN whole_owners AS w ON w.id = r.id
        WHERE r.owner = :shown AND coalesce(w.owner, r.owner) = :owner ORDER BY r.rowid LIMIT 1
    )
"""
DELETE_EXPIRED = "DELETE FROM responses WHERE rowid IN (SELECT rowid FROM responses WHERE expires_at <= ? LIMIT ?)"

Item = dict[str, Any]


class Stored(NamedTuple):
    """A response's JSON; its input, with all that came before; and how many bytes both are."""

    bytes: int
    input: list[Item]
    response: dict[str, Any]


class Sized(NamedTuple):
    """An item, and how many bytes it is as JSON."""

    bytes: int
    item: Item


class ResponseStore(background.Worker):
    """`owner` is the caller's key everywhere. `start` before all else; all methods raise StorageError."""

    task = "responses_sweep"

    def __init__(self, database: Database, ttl_sec: int, max_bytes: int) -> None:
        self._database = database
        self._ttl_sec = ttl_sec
        self._max_bytes = max_bytes
        self.problem: str | None = None  # why the last sweep, one a minute, could not write

    async def put(self, owner: str, response: Mapping[str, Any], items: Sequence[Item]) -> None:
        """Stores a response; without room for it, the owner that stores the most loses its oldest."""

        def insert(connection: apsw.Connection) -> None:
            size = len(told) + len(given)
            if size > self._max_bytes:
                raise StorageError(f"a response of {size} bytes is larger than RESPONSES_MAX_BYTES")
            keep_owner(connection, response["id"], owner)
            row = (response["id"], shown(owner), int(time.time()) + self._ttl_sec, size, given, told)
            connection.execute("INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?)", row)
            while connection.execute("SELECT bytes FROM responses_total").get > self._max_bytes:
                connection.execute(DELETE_OLDEST, of_owner(connection.execute(MOST).get))
                if not connection.changes():
                    raise StorageError("no room can be made: the stored sums differ from the rows")
            if not connection.execute("SELECT count(*) FROM responses WHERE id = ?", (response["id"],)).get:
                raise StorageError(f"a response of {size} bytes is more than its token's share of RESPONSES_MAX_BYTES")

        told, given = dump(response), dump({"items": items})
        await self._database.write(insert)

    async def response(self, owner: str, response_id: str) -> bytes | None:
        """The owner's response as JSON, else None."""

        def fetch(connection: apsw.Connection) -> bytes | None:
            row = connection.execute(FETCH, _of(owner, response_id)).fetchone()
            return bytes(row[2]) if row is not None else None

        return await self._database.read(fetch)

    async def find(self, owner: str, response_id: str) -> Stored | None:
        """The owner's response with its conversation, else None."""

        def fetch(connection: apsw.Connection) -> Stored | None:
            row = connection.execute(FETCH, _of(owner, response_id)).fetchone()
            if row is None:
                return None
            return Stored(row[0], from_json(row[1])["items"], from_json(row[2]))

        return await self._database.read(fetch)

    async def items(self, owner: str, wanted: Mapping[str, Collection[str]], max_bytes: int) -> dict[str, Sized]:
        """Those of the items that are the owner's, by id; `wanted` has the ids by the id of their response.

        No more are read once they are more than `max_bytes`.
        """

        def fetch(connection: apsw.Connection) -> dict[str, Sized]:
            found: dict[str, Sized] = {}
            room = max_bytes
            for response_id, item_ids in wanted.items():
                row = connection.execute(FETCH, _of(owner, response_id)).fetchone()
                if row is None:
                    continue
                of_response = {item["id"]: item for item in from_json(row[2])["output"]}
                if not of_response.keys() >= set(item_ids):
                    of_response |= {item["id"]: item for item in from_json(row[1])["items"]}
                for item_id in of_response.keys() & set(item_ids):
                    found[item_id] = sized = Sized(len(dump(of_response[item_id])), of_response[item_id])
                    room -= sized.bytes
                if room < 0:
                    break
            return found

        return await self._database.read(fetch)

    async def delete(self, owner: str, response_id: str) -> bool:
        """Whether there was such a response; what was said in it stays in those that followed."""

        def delete(connection: apsw.Connection) -> bool:
            connection.execute(f"DELETE FROM responses WHERE {OWN}", _of(owner, response_id))  # noqa: S608  # constants
            return connection.changes() > 0

        return await self._database.write(delete)

    async def _work(self) -> None:
        def sweep(connection: apsw.Connection) -> int:
            connection.execute(DELETE_EXPIRED, (time.time(), SWEEP_ROWS))
            return connection.changes()

        while True:
            try:
                is_more = await self._database.write(sweep) == SWEEP_ROWS
                self.problem = None
                if is_more:
                    continue
            except StorageError as error:
                log.warning("expired responses were not removed: %s", error)
                self.problem = f"responses cannot be stored: {error.__cause__ or error}"
            await asyncio.sleep(SWEEP_EVERY_SEC)


def _of(owner: str, response_id: str) -> dict[str, Any]:
    return {**of_owner(owner), "id": response_id, "now": time.time()}
