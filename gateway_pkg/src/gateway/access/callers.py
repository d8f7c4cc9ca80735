"""A caller's key, under which its data is stored, counted and limited, and its shown name.

The key is the name in the caller's policy, else the whole sha256 of its token in hex. Of a hash, 8 digits are shown.
"""

from __future__ import annotations

import re

import apsw

from gateway.storage import Migration

SHOWN_HEX = 8
# The tables of this room; rows of others' tables have their whole owner here.
NAMESPACE = "access"
MIGRATIONS = (
    # Tokens that each caller has used on a day (UTC, days since 1970).
    Migration(
        """
        CREATE TABLE token_usage (
            day INTEGER NOT NULL,
            caller TEXT NOT NULL,
            tokens INTEGER NOT NULL,
            PRIMARY KEY (day, caller)
        ) STRICT, WITHOUT ROWID;
        """,
        was=2,
    ),
    # Requests that each caller has made of late, by quarter seconds since 1970.
    Migration(
        """
        CREATE TABLE request_counts (
            caller TEXT NOT NULL,
            slot INTEGER NOT NULL,
            requests INTEGER NOT NULL,
            PRIMARY KEY (caller, slot)
        ) STRICT, WITHOUT ROWID;
        """,
        was=4,
    ),
    # Whose rows of tokens without a name are, by the whole hash: their `owner` has 8 digits of it, for releases before,
    # whose own rows are not here.
    Migration(
        """
        CREATE TABLE whole_owners (id TEXT PRIMARY KEY, owner TEXT NOT NULL) STRICT, WITHOUT ROWID;
        """,
        was=5,
    ),
)
_HASH = re.compile("[0-9a-f]{64}")
# Ends the WHERE of a table whose `owner` is the shown name: where a row has a whole hash, it must be the caller's.
# Format it with the table's name; its parameters are `of_owner`.
OWNED = "owner = :shown AND coalesce((SELECT w.owner FROM whole_owners AS w WHERE w.id = {}.id), :owner) = :owner"


def is_hash(key: str) -> bool:
    """Whether the key is a hash: its caller's policy has no name."""
    return _HASH.fullmatch(key) is not None


def shown(key: str) -> str:
    """The caller's name in logs, metrics and answers."""
    return key[:SHOWN_HEX] if is_hash(key) else key


def of_owner(key: str) -> dict[str, str]:
    """The values of OWNED."""
    return {"owner": key, "shown": shown(key)}


def keep_owner(connection: apsw.Connection, row_id: str, key: str) -> None:
    """Call it before you insert a row whose `owner` is the shown name."""
    if is_hash(key):
        connection.execute("INSERT INTO whole_owners VALUES (?, ?)", (row_id, key))
