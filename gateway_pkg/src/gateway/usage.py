"""How many tokens each caller has used today (UTC): counted in memory, kept in the database."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping

import apsw

from gateway.storage import Database, StorageError

log = logging.getLogger(__name__)

DAY_SEC = 86_400
SAVE_EVERY_SEC = 1.0
KEEP_DAYS = 31

Counts = Mapping[tuple[int, str], int]  # (days since 1970, caller) to tokens


class TokenUsage:
    """Counts for each caller's name. Between `start` and `stop` what was spent is stored once a second.

    A process that is killed loses the last second and what was not yet on the disk; one that stops loses nothing.
    Without a database the counts begin anew with the process.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._day = 0
        self._fresh: dict[str, int] = {}  # spent since the counts were last asked for or stored
        self._used: dict[str, int] = {}
        self._unsaved: dict[tuple[int, str], int] = {}
        self._database: Database | None = None
        self._saver: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._is_failing = False
        self._turn_day()

    def spend(self, name: str, tokens: int) -> None:
        self._fresh[name] = self._fresh.get(name, 0) + tokens

    def today(self, name: str) -> int:
        """Tokens used since midnight UTC."""
        self._turn_day()
        return self._used.get(name, 0)

    def day_ends_in(self) -> int:
        """Seconds until midnight UTC, 1 or more."""
        return max(1, math.ceil(DAY_SEC - self._clock() % DAY_SEC))

    async def start(self, database: Database) -> None:
        """Adds what is stored of today, and stores from now on; raises StorageError."""
        self._turn_day()
        day = self._day
        stored = await database.read(lambda connection: _stored(connection, day))
        for name, tokens in stored.items():
            self._used[name] = self._used.get(name, 0) + tokens
        self._database = database
        self._saver = asyncio.create_task(self._save_often(), name="token usage")

    async def stop(self) -> None:
        """Stores what is not stored yet; before the database is closed."""
        self._stopping.set()
        if self._saver is not None:
            await self._saver
            await self._save()

    async def _save_often(self) -> None:
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SAVE_EVERY_SEC):
                    await self._stopping.wait()
            await self._save()

    async def _save(self) -> None:
        self._turn_day()
        if self._database is None or not self._unsaved:
            return
        unsaved, self._unsaved = self._unsaved, {}
        today = self._day
        try:
            await self._database.write(lambda connection: _store(connection, unsaved, today))
            self._is_failing = False
        except StorageError as error:
            if not self._is_failing:
                log.warning("token counts cannot be stored, and a restart would lose them: %s", error)
            self._is_failing = True
            for key, tokens in unsaved.items():
                self._unsaved[key] = self._unsaved.get(key, 0) + tokens

    def _turn_day(self) -> None:
        """Counts what is fresh, for the day that ends if one does: near midnight a second may be yesterday's."""
        for name, tokens in self._fresh.items():
            self._used[name] = self._used.get(name, 0) + tokens
            key = (self._day, name)
            self._unsaved[key] = self._unsaved.get(key, 0) + tokens
        self._fresh.clear()
        day = int(self._clock() // DAY_SEC)
        # A clock that is set back gives nobody a second day.
        if day > self._day:
            self._day = day
            self._used.clear()


def _stored(connection: apsw.Connection, day: int) -> dict[str, int]:
    return dict(connection.execute("SELECT caller, tokens FROM token_usage WHERE day = ?", (day,)))


def _store(connection: apsw.Connection, counts: Counts, today: int) -> None:
    rows: Iterable[tuple[int, str, int]] = ((day, name, tokens) for (day, name), tokens in counts.items())
    connection.executemany(
        "INSERT INTO token_usage VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET tokens = tokens + excluded.tokens", rows
    )
    connection.execute("DELETE FROM token_usage WHERE day < ?", (today - KEEP_DAYS,))
