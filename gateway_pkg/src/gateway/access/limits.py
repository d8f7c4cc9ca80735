"""How often a token may ask: requests within the last 60 seconds."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator

WINDOW_SEC = 60
SLOTS_A_SEC = 4
SLOTS = WINDOW_SEC * SLOTS_A_SEC


class SlidingWindow:
    """Counts requests in slots of a quarter second, so that its memory does not grow with the limit.

    A slot leaves the window when its youngest possible request is 60 s old. So no 60 s ever see more than `limit`
    requests, and one is refused only when the last 60.25 s saw `limit` of them. Times are seconds of any one clock
    that does not go back.
    """

    __slots__ = ("_slots", "_total", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._slots: deque[list[int]] = deque()  # [number, requests], oldest first, at most SLOTS + 1 of them
        self._total = 0

    def take(self, now: float) -> float:
        """Counts a request and gives 0; or, when the limit is reached, counts nothing and gives the seconds to wait."""
        slot = self._forget(now)
        if self._total >= self.limit:
            return self._wait(now)
        self._count(slot, 1)
        return 0

    def since(self, then: float) -> Iterator[tuple[int, int]]:
        """The slots that may have changed since `then`, oldest first: their number and how many requests are in it."""
        return ((slot, requests) for slot, requests in self._slots if (slot + 1) / SLOTS_A_SEC > then)

    def restore(self, slot: int, requests: int, now: float) -> None:
        """Counts what `since` told before. Oldest first, and before `take`; what is later than `now` is as of now."""
        self._count(min(slot, math.floor(now * SLOTS_A_SEC)), requests)

    def used(self, now: float) -> int:
        """Requests in the window."""
        self._forget(now)
        return self._total

    def resets_in(self, now: float) -> float:
        """Seconds until the window is empty when nothing more comes; 0 when it is."""
        self._forget(now)
        return _disconnected(self._slots[-1][0], now) if self._slots else 0

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
        # After a reload the limit may be lower than what the window holds: more than one slot has to leave.
        excess = self._total - self.limit + 1
        for slot, requests in self._slots:
            excess -= requests
            if excess <= 0:
                return _disconnected(slot, now)
        raise AssertionError("a limit is at least 1")


def _disconnected(slot: int, now: float) -> float:
    """Seconds until a slot leaves the window."""
    return (slot + SLOTS + 1) / SLOTS_A_SEC - now
