"""A token's limit of requests within the last 60 seconds."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator

WINDOW_SEC = 60
SLOTS_A_SEC = 4
SLOTS = WINDOW_SEC * SLOTS_A_SEC


class SlidingWindow:
    """Counts requests in slots of a quarter second, so its memory does not grow with the limit.

    A slot leaves the window when its youngest possible request is 60 s old. So any 60 s have at most `limit` requests,
    and a request is refused only when the last 60.25 s had `limit` requests. Times are seconds of one monotonic clock.
    """

    __slots__ = ("_slots", "_total", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._slots: deque[list[int]] = deque()  # [number, requests], oldest first, at most SLOTS + 1 of them
        self._total = 0

    def take(self, now: float) -> float:
        """Counts a request and returns 0; at the limit, counts nothing and returns the seconds to wait."""
        slot = self._forget(now)
        if self._total >= self.limit:
            return self._wait(now)
        self._count(slot, 1)
        return 0

    def since(self, then: float) -> Iterator[tuple[int, int]]:
        """The slots that may have changed since `then`, oldest first: number of the slot, and its requests."""
        return ((slot, requests) for slot, requests in self._slots if (slot + 1) / SLOTS_A_SEC > then)

    def restore(self, slot: int, requests: int, now: float) -> None:
        """Counts a slot that `since` gave. Call it oldest first and before `take`; a slot after `now` counts as now."""
        self._count(min(slot, math.floor(now * SLOTS_A_SEC)), requests)

    def used(self, now: float) -> int:
        """Requests in the window."""
        self._forget(now)
        return self._total

    def resets_in(self, now: float) -> float:
        """Seconds until the window is empty without further requests; 0 when it is empty."""
        self._forget(now)
        return _leaves_in(self._slots[-1][0], now) if self._slots else 0

    def _count(self, slot: int, requests: int) -> None:
        if self._slots and self._slots[-1][0] >= slot:
            self._slots[-1][1] += requests
        else:
            self._slots.append([slot, requests])
        self._total += requests

    def _forget(self, now: float) -> int:
        slot = math.floor(now * SLOTS_A_SEC)
        while self._slots and self._slots[0][0] < slot - SLOTS:
            self._total -= self._slots.popleft()[1]
        return slot

    def _wait(self, now: float) -> float:
        # After a reload the limit may be lower than the window's requests: then several slots must leave.
        excess = self._total - self.limit + 1
        for slot, requests in self._slots:
            excess -= requests
            if excess <= 0:
                return _leaves_in(slot, now)
        raise AssertionError("a limit is at least 1")


def _leaves_in(slot: int, now: float) -> float:
    """Seconds until a slot leaves the window."""
    return (slot + SLOTS + 1) / SLOTS_A_SEC - now
