"""Seals a model's reasoning for clients that keep conversations themselves: only the gateway reads it, for its owner.

The keys are in the database, so that they outlive a restart and go with a backup.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import apsw
import orjson

from gateway.storage import Database, Migration

if TYPE_CHECKING:
    from cryptography.fernet import MultiFernet

MIGRATIONS = (
    # `made_at` is unix seconds; `key` is one of Fernet's.
    Migration("CREATE TABLE sealing_keys (made_at INTEGER NOT NULL, key TEXT NOT NULL) STRICT"),
)
ROTATE_SEC = 30 * 86_400
KEYS_KEPT = 4  # what is sealed is read for 90 days at the least


class Seals(NamedTuple):
    """Seals and opens texts of one owner."""

    fernet: MultiFernet
    owner: str

    def seal(self, text: str) -> str:
        return self.fernet.encrypt(orjson.dumps([self.owner, text])).decode()

    def open(self, sealed: str) -> str | None:
        """The text; None where another gateway or owner sealed it, or the key has been dropped."""
        from cryptography.fernet import InvalidToken

        try:
            owner, text = orjson.loads(self.fernet.decrypt(sealed.encode()))
        except (InvalidToken, UnicodeEncodeError):
            return None
        return str(text) if owner == self.owner else None


class Sealer:
    """Has the keys; a new one every ROTATE_SEC seals, the last KEYS_KEPT open."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._fernet: MultiFernet | None = None
        self._made_at = 0.0

    async def of(self, owner: str) -> Seals:
        """Raises StorageError where there are no keys and none can be stored."""
        if self._fernet is None or time.time() - self._made_at > ROTATE_SEC:
            from cryptography.fernet import Fernet, MultiFernet  # costs memory that few gateways need

            keys = await self._database.write(_newest)
            self._fernet = MultiFernet([Fernet(key) for _, key in keys])
            self._made_at = keys[0][0]
        return Seals(self._fernet, owner)


def _newest(connection: apsw.Connection) -> list[tuple[int, str]]:
    """The keys, newest first, the first one made within ROTATE_SEC."""
    from cryptography.fernet import Fernet

    now = int(time.time())
    if not connection.execute("SELECT 1 FROM sealing_keys WHERE made_at > ?", (now - ROTATE_SEC,)).fetchone():
        connection.execute("INSERT INTO sealing_keys VALUES (?, ?)", (now, Fernet.generate_key().decode()))
        connection.execute(
            "DELETE FROM sealing_keys WHERE rowid NOT IN "
            "(SELECT rowid FROM sealing_keys ORDER BY made_at DESC, rowid DESC LIMIT ?)",
            (KEYS_KEPT,),
        )
    keys: Any = connection.execute("SELECT made_at, key FROM sealing_keys ORDER BY made_at DESC, rowid DESC")
    return list(keys)
