"""The optional queue of a backend class: who gets the next free slot.

Start-time fair queueing: each waiting request gets a turn number, one after the last of its token, and not before the
turn that is served now; the lowest is served first. So tokens take turns however many requests each sends, and a
request for a model that is not loaded counts as some turns later, which bounds how long others can pass it. Who leaves
the line has used no turn: it passes to the next request of its token.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING

from gateway.http.errors import overloaded

if TYPE_CHECKING:
    from gateway.routing.registry import Slots

# Loading another model costs a backend about as long as a few answers take.
SWITCH_TURNS = 4


class _Waiter:
    __slots__ = ("arrival", "granted", "model", "priority", "slots", "token", "turn")

    def __init__(
        self,
        granted: asyncio.Future[Slots],
        slots: Sequence[Slots],
        token: str,
        priority: int,
        model: str,
        turn: int,
        arrival: int,
    ) -> None:
        self.granted = granted
        self.slots = slots
        self.token = token
        self.priority = priority
        self.model = model
        self.turn = turn
        self.arrival = arrival


class FairQueue:
    """At most `max_waiting` requests wait, each at most `timeout` seconds; higher priorities are served first."""

    def __init__(self, max_waiting: int, timeout: float) -> None:
        self.max_waiting = max_waiting
        self.timeout = timeout
        self._waiting: list[_Waiter] = []
        self._last_turn: dict[str, int] = {}  # by the name of a token, of which there are as many as are accepted
        self._turn = 0
        self._arrivals = count()

    def __len__(self) -> int:
        return len(self._waiting)

    async def wait(self, slots: Sequence[Slots], token: str, priority: int, model: str) -> Slots:
        """A slot of one of `slots`, already taken.

        Raises:
            ApiError: 429 when the queue is full, or no slot came free in time.
        """
        if len(self._waiting) >= self.max_waiting:
            raise overloaded(slots[0].backend.record.backend_class, f"its queue of {self.max_waiting} is full")
        waiter = self._enter(slots, token, priority, model)
        for one in slots:  # free already, where those in line have just left
            self.wake(one)
        try:
            async with asyncio.timeout(self.timeout):
                return await waiter.granted
        except TimeoutError:
            self._leave(waiter)
            raise overloaded(
                slots[0].backend.record.backend_class, f"no slot came free within {self.timeout:g} s"
            ) from None
        except asyncio.CancelledError:
            self._leave(waiter)
            raise

    def wake(self, slots: Slots) -> None:
        """To be called when `slots` may have become free: gives them to whose turn it is."""
        while self._waiting and slots.is_free:
            best = None
            for waiter in self._waiting:
                # One that is cancelled stays in line until its task has run.
                if slots in waiter.slots and not waiter.granted.done() and _may_serve(slots, waiter):
                    rank = (-waiter.priority, self._rank(waiter, slots), waiter.arrival)
                    if best is None or rank < best[0]:
                        best = rank, waiter
            if best is None:
                return
            waiter = best[1]
            self._waiting.remove(waiter)
            if not self._waiting:
                self._last_turn.clear()
            self._turn = max(self._turn, waiter.turn)
            slots.take(waiter.model)
            waiter.granted.set_result(slots)

    def _enter(self, slots: Sequence[Slots], token: str, priority: int, model: str) -> _Waiter:
        turn = max(self._turn, self._last_turn.get(token, 0) + 1)
        self._last_turn[token] = turn
        granted: asyncio.Future[Slots] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(granted, slots, token, priority, model, turn, next(self._arrivals))
        self._waiting.append(waiter)
        return waiter

    def _leave(self, waiter: _Waiter) -> None:
        if waiter.granted.done() and not waiter.granted.cancelled():
            waiter.granted.result().release()  # granted and left in the same moment: it is the next one's
        elif waiter in self._waiting:
            self._waiting.remove(waiter)
            turn = waiter.turn
            for other in self._waiting:  # in the order of their arrival, so that a token's turns rise
                if other.token == waiter.token and other.turn > turn:
                    other.turn, turn = turn, other.turn
            self._last_turn[waiter.token] = turn - 1

    @staticmethod
    def _rank(waiter: _Waiter, slots: Slots) -> int:
        return waiter.turn if slots.backend.is_loaded(waiter.model) else waiter.turn + SWITCH_TURNS


def _may_serve(slots: Slots, waiter: _Waiter) -> bool:
    """A backend that rests serves those for whom there is no other."""
    return slots.backend.is_usable or not any(one.backend.is_usable for one in waiter.slots)
