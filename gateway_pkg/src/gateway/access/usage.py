"""Usage per caller: tokens of today (UTC) and requests of the last minute, in memory and in the database.

A caller without a name has two rows: one of its key, and one of its 8 shown digits, which is the sum over all callers
with these digits. An earlier release reads and writes only the second row; what the second row has beyond the sum of
the first rows was counted by that release, and counts for each of these callers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import apsw

from gateway import background
from gateway.access.callers import SHOWN_HEX, is_hash, shown
from gateway.access.limits import SLOTS, SLOTS_A_SEC, SlidingWindow
from gateway.storage import Database, StorageError

log = logging.getLogger(__name__)

_SHOWN = re.compile(f"[0-9a-f]{{{SHOWN_HEX}}}")
DAY_SEC = 86_400
SAVE_EVERY_SEC = 1.0
KEEP_DAYS = 31
TOKENS_MAX = 2**62  # of a caller and day; SQLite's integers have 64 bits


class TokenUsage:
    """Counts for each caller's key. Between `start` and `stop` it stores new counts once a second.

    `windows` are the callers' requests; their times are those of `ticks`. A killed process loses the last second and
    what was not yet on the disk; a stopped process loses nothing. Over a restart a request leaves its window up to half
    a second later, never earlier. Without a database the counts begin anew with the process.
    """

    def __init__(self, clock: Callable[[], float] = time.time, ticks: Callable[[], float] = time.perf_counter) -> None:
        self.windows: Mapping[str, SlidingWindow] = {}
        self._clock = clock
        self._ticks = ticks
        self._shift = 0  # from a window's slots to quarter seconds since 1970
        self._saved_to = -math.inf  # ticks until which the windows are stored
        self._day = 0
        self._fresh: dict[str, int] = {}  # spent since the counts were last asked for or stored
        self._used: Counter[str] = Counter()
        self._used_before: dict[str, int] = {}  # by shown name, tokens that an earlier release counted
        self._unsaved: Counter[tuple[int, str]] = Counter()
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
        before = self._used_before.get(shown(name), 0) if self._used_before else 0
        return self._used[name] + before

    def day_ends_in(self) -> int:
        """Seconds until midnight UTC, 1 or more."""
        return max(1, math.ceil(DAY_SEC - self._clock() % DAY_SEC))

    async def start(self, database: Database) -> None:
        """Adds the stored counts of today and of the last minute, and begins to store; raises StorageError."""
        self._turn_day()
        day = self._day
        tokens, requests = await database.read(lambda connection: _stored(connection, day))
        self._used.update(tokens)
        self._used_before = _beyond_keys(tokens)
        now = self._ticks()
        self._shift = math.floor((self._clock() - now) * SLOTS_A_SEC)
        shown_names = {name: shown(name) for name in self.windows}
        for slot, counts in requests.items():
            before = _beyond_keys(counts)
            for name, window in self.windows.items():
                if count := counts.get(name, 0) + before.get(shown_names[name], 0):
                    window.restore(slot - self._shift + 1, count, now)  # both shifts were rounded down
        self._database = database
        self._saver = background.start("token_usage", self._save_often)

    async def stop(self) -> None:
        """Stores the remaining counts; call it before the database closes."""
        self._stopping.set()
        if self._saver is not None:
            await self._saver
            try:
                await self._save()
            except Exception:
                background.failed("token_usage")

    async def _save_often(self) -> None:
        while not self._stopping.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SAVE_EVERY_SEC):
                    await self._stopping.wait()
            await self._save()

    async def _save(self) -> None:
        self._turn_day()
        now, saved_to = self._ticks(), self._saved_to
        requests = [
            (name, slot + self._shift, count)
            for name, window in self.windows.items()
            for slot, count in window.since(saved_to)
        ]
        if self._database is None or not (self._unsaved or requests):
            return
        unsaved, self._unsaved = self._unsaved, Counter()
        first_day = self._day - KEEP_DAYS
        first_slot = math.floor(now * SLOTS_A_SEC) + self._shift - SLOTS if saved_to > -math.inf else None
        self._saved_to = now
        try:
            await self._database.write(lambda connection: _store(connection, unsaved, first_day, requests, first_slot))
            self._is_failing = False
        except Exception as error:
            self._saved_to = saved_to
            self._unsaved.update(unsaved)
            if not isinstance(error, StorageError):
                raise
            if not self._is_failing:
                log.warning("the usage of tokens cannot be stored, and a restart would lose it: %s", error)
            self._is_failing = True

    def _turn_day(self) -> None:
        """Counts fresh tokens, for the ending day if one ends: near midnight a second may count for yesterday."""
        self._used.update(self._fresh)
        self._unsaved.update({(self._day, name): tokens for name, tokens in self._fresh.items()})
        self._fresh.clear()
        day = int(self._clock() // DAY_SEC)
        # A clock that is set back gives nobody a second day.
        if day > self._day:
            self._day = day
            self._used.clear()
            self._used_before.clear()


def _stored(connection: apsw.Connection, day: int) -> tuple[dict[str, int], dict[int, dict[str, int]]]:
    """Tokens of the day by caller; requests by slot, oldest first, and caller."""
    tokens = connection.execute("SELECT caller, tokens FROM token_usage WHERE day = ?", (day,))
    requests: dict[int, dict[str, int]] = {}
    for slot, caller, count in connection.execute("SELECT slot, caller, requests FROM request_counts ORDER BY slot"):
        requests.setdefault(slot, {})[caller] = count
    return dict(tokens), requests


def _beyond_keys(counts: Mapping[str, int]) -> dict[str, int]:
    """What the rows of shown names count beyond the rows of their keys."""
    of_keys: Counter[str] = Counter()
    for name, number in counts.items():
        if is_hash(name):
            of_keys[shown(name)] += number
    return {
        name: number - of_keys[name]
        for name, number in counts.items()
        if _SHOWN.fullmatch(name) and number > of_keys[name]
    }


def _with_shown(rows: Iterable[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """Rows of (caller, day or slot, number), together with the rows of shown names."""
    sums: Counter[tuple[str, int]] = Counter()
    for key, when, number in rows:
        for name in {key, shown(key)}:
            sums[name, when] += number
    return [(name, when, min(number, TOKENS_MAX)) for (name, when), number in sums.items()]


def _store(
    connection: apsw.Connection,
    tokens_used: Mapping[tuple[int, str], int],
    first_day: int,
    requests: Sequence[tuple[str, int, int]],
    first_slot: int | None,
) -> None:
    """Adds tokens by day and caller, puts requests by caller and slot; deletes what is before the first day and slot.

    Without a first slot these are all of the requests.
    """
    spent = _with_shown((name, day, number) for (day, name), number in tokens_used.items())
    tokens = ((day, name, number, TOKENS_MAX) for name, day, number in spent)
    connection.executemany(
        "INSERT INTO token_usage VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET tokens = min(tokens + excluded.tokens, ?)",
        tokens,
    )
    connection.execute("DELETE FROM token_usage WHERE day < ?", (first_day,))
    connection.execute("DELETE FROM request_counts WHERE slot < coalesce(?, slot + 1)", (first_slot,))
    connection.executemany(
        "INSERT INTO request_counts VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET requests = excluded.requests",
        _with_shown(requests),
    )
