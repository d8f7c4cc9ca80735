"""The optional queue of a backend class: who gets the next free slot, and who a place in a full queue.

Start-time fair queueing: each waiting request gets a turn number, one after the last of its token, and not before the
turn that is served now; the lowest is served first. So tokens take turns however many requests each sends, and a
request for a model that is not loaded counts as some turns later, which bounds how long others can pass it. Who leaves
the queue has used no turn: it passes to the next request of its token.

A full queue is fair as well: see `_make_room`. What a slot costs grows with the tokens that wait, not with their
requests.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from gateway.errors import not_ready, overloaded

if TYPE_CHECKING:
    from gateway.backends.slots import Slots

# Loading another model costs a backend about as long as a few answers take.
SWITCH_TURNS = 4


@dataclass(slots=True, eq=False)
class _Waiter:
    """`granted` is None for one whose place another token's request has taken."""

    granted: asyncio.Future[Slots | None]
    line: _Line | None  # None once it waits no longer
    model: str
    arrival: int


class _Key(NamedTuple):
    """What the requests of a line share; `slots` are those that can serve them."""

    slots: tuple[Slots, ...]
    priority: int
    token: str


class _Line:
    """One token's requests in the order of their arrival, at places 0, 1, …; never empty while the queue has it."""

    __slots__ = ("_arrivals", "_by_model", "_turns", "_waiters", "key")

    def __init__(self, key: _Key) -> None:
        self.key = key
        self._waiters: list[_Waiter] = []
        # By place, both rising; deleting in a list of some thousand numbers costs less than any tree.
        self._arrivals: list[int] = []
        self._turns: list[int] = []
        # Ordered dicts, since the first of a plain one is the slower to find the more went before it.
        self._by_model: dict[str, OrderedDict[int, _Waiter]] = {}

    def __len__(self) -> int:
        return len(self._waiters)

    def __iter__(self) -> Iterator[_Waiter]:
        return iter(self._waiters)

    def merge(self, other: _Line) -> None:
        """Takes in the requests of another line, each at the place of its arrival, and the turns of both."""
        if other is self:
            return
        turns = sorted(self._turns + other._turns)
        waiters = sorted([*self, *other], key=lambda waiter: waiter.arrival)
        for waiter in waiters:
            waiter.line = self
        self._waiters, self._arrivals, self._turns, self._by_model = [], [], [], {}
        for waiter, turn in zip(waiters, turns, strict=True):
            self.add(waiter, turn)

    @property
    def newest(self) -> _Waiter:
        return self._waiters[-1]

    def add(self, waiter: _Waiter, turn: int) -> None:
        self._waiters.append(waiter)
        self._arrivals.append(waiter.arrival)
        self._turns.append(turn)
        self._by_model.setdefault(waiter.model, OrderedDict())[waiter.arrival] = waiter

    def remove(self, waiter: _Waiter, *, is_served: bool) -> int:
        """The turn that nobody has any more: the waiter's own when it is served, else the line's last."""
        place = self._place(waiter)
        turn = self._turns.pop(place if is_served else -1)
        del self._waiters[place], self._arrivals[place]
        of_model = self._by_model[waiter.model]
        del of_model[waiter.arrival]
        if not of_model:
            del self._by_model[waiter.model]
        waiter.line = None
        return turn

    def first(self, loaded: set[str]) -> Iterator[tuple[int, int, _Waiter]]:
        """(turn, arrival, waiter) of those that can be next: of the rest none comes before these."""
        oldest = self._waiters[0]
        if oldest.model in loaded:
            yield self._turns[0], oldest.arrival, oldest
            return
        yield self._turns[0] + SWITCH_TURNS, oldest.arrival, oldest
        for model in self._by_model.keys() & loaded:
            waiter = next(iter(self._by_model[model].values()))
            yield self._turns[self._place(waiter)], waiter.arrival, waiter

    def _place(self, waiter: _Waiter) -> int:
        return bisect_left(self._arrivals, waiter.arrival)


class FairQueue:
    """At most `max_waiting` requests wait, each at most `timeout` seconds; higher priorities are served first."""

    def __init__(self, max_waiting: int, timeout: float) -> None:
        self.max_waiting = max_waiting
        self.timeout = timeout
        self._lines: dict[_Key, _Line] = {}
        self._waiting = 0
        self._last_turn: dict[str, int] = {}  # by token, of which there are as many as are accepted
        self._turn = 0
        self._arrivals = count()

    def __len__(self) -> int:
        return self._waiting

    async def wait(self, slots: Sequence[Slots], token: str, priority: int, model: str) -> Slots:
        """A slot of one of `slots`, already taken. `token` stands for the caller as in all that is counted.
        Raises ApiError 429 when the queue is full, or no slot came free in time.
        """
        backend_class = slots[0].backend.record.backend_class
        key = _Key(tuple(slots), priority, token)
        if self._waiting >= self.max_waiting and not self._make_room(key):
            raise overloaded(backend_class, f"its queue of {self.max_waiting} is full")
        waiter = self._enter(key, model)
        for one in slots:  # free already, where those in line have just left
            self.wake(one)
        try:
            async with asyncio.timeout(self.timeout):
                granted = await waiter.granted
        except TimeoutError:
            self._leave(waiter)
            raise overloaded(backend_class, f"no slot came free within {self.timeout:g} s") from None
        except asyncio.CancelledError:
            self._leave(waiter)
            raise
        if granted is None:
            why = f"its queue of {self.max_waiting} is full: another token took this one's place"
            raise overloaded(backend_class, why)
        return granted

    def wake(self, slots: Slots) -> None:
        """To be called when `slots` may have become free: gives them to whose turn it is."""
        while self._waiting and slots.is_free:
            waiter = self._next(slots)
            if waiter is None:
                return
            if waiter.granted.done():  # cancelled, and its task has not run since
                self._give_back(waiter)
                continue
            self._turn = max(self._turn, self._remove(waiter, is_served=True)[1])
            slots.take(waiter.model)
            waiter.granted.set_result(slots)

    def move(self, backend_class: str, slots: Sequence[Slots]) -> None:
        """After a reload `slots` are those that there are: who waits keeps its place, or is told that none is left."""
        lines, self._lines = self._lines, {}
        for line in lines.values():
            line.key = line.key._replace(slots=tuple(slots))
            self._lines.setdefault(line.key, line).merge(line)
        for line in () if slots else tuple(self._lines.values()):
            for waiter in tuple(line):
                self._give_back(waiter)
                if not waiter.granted.done():
                    waiter.granted.set_exception(not_ready(backend_class))
        for one in slots:
            self.wake(one)

    def _next(self, slots: Slots) -> _Waiter | None:
        loaded = {slots.backend.last_model, *slots.backend.loaded}
        best: tuple[int, int, int, _Waiter] | None = None  # no two have one arrival
        for key, line in self._lines.items():
            if slots in key.slots and (best is None or -key.priority <= best[0]) and _may_serve(slots, key.slots):
                for turn, arrival, waiter in line.first(loaded):
                    rank = -key.priority, turn, arrival, waiter
                    if best is None or rank < best:
                        best = rank
        return best[3] if best is not None else None

    def _make_room(self, newcomer: _Key) -> bool:
        """Whether there is a place in the full queue for a request of `newcomer`.

        The longest line of the lowest priority loses its newest request: to any request of a higher priority, and to
        one of the same from a token that has fewer waiting, also with this one. So the places are shared evenly, and a
        token that fills the queue is the one that is refused.
        """
        if not self._lines:  # a reload has left no place for anybody
            return False
        longest = max(self._lines.values(), key=lambda line: (-line.key.priority, len(line)))
        own = self._lines.get(newcomer)
        gains = newcomer.priority > longest.key.priority or (
            newcomer.priority == longest.key.priority and len(longest) > (len(own) if own is not None else 0) + 1
        )
        newest = longest.newest
        if not gains and not newest.granted.done():
            return False
        self._give_back(newest)
        if not newest.granted.done():
            newest.granted.set_result(None)
        return True

    def _enter(self, key: _Key, model: str) -> _Waiter:
        turn = max(self._turn, self._last_turn.get(key.token, 0) + 1)
        self._last_turn[key.token] = turn
        line = self._lines.setdefault(key, _Line(key))
        waiter = _Waiter(asyncio.get_running_loop().create_future(), line, model, next(self._arrivals))
        line.add(waiter, turn)
        self._waiting += 1
        return waiter

    def _leave(self, waiter: _Waiter) -> None:
        if waiter.line is not None:
            self._give_back(waiter)
        elif waiter.granted.done() and not waiter.granted.cancelled() and waiter.granted.exception() is None:
            slots = waiter.granted.result()
            if slots is not None:
                slots.release()  # granted and left in the same moment: it is the next one's

    def _give_back(self, waiter: _Waiter) -> None:
        token, turn = self._remove(waiter, is_served=False)
        if self._waiting:
            self._last_turn[token] = turn - 1

    def _remove(self, waiter: _Waiter, *, is_served: bool) -> tuple[str, int]:
        """Its token, and the turn that is free."""
        line = waiter.line
        assert line is not None  # noqa: S101  # who asks has looked
        turn = line.remove(waiter, is_served=is_served)
        if not line:
            del self._lines[line.key]
        self._waiting -= 1
        if not self._waiting:
            self._last_turn.clear()
        return line.key.token, turn


def _may_serve(slots: Slots, own: Sequence[Slots]) -> bool:
    """A backend with an open circuit serves the requests that have no other backend."""
    return slots.backend.is_usable or not any(one.backend.is_usable for one in own)
