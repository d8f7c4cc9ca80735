"""The fair queue of a backend class: whose turn it is, what bounds it, and what a client's leaving gives back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from time import process_time
from typing import Any

import pytest
from gateway.backends.queue import SWITCH_TURNS, FairQueue
from gateway.backends.records import BackendsFile
from gateway.backends.registry import Registry
from gateway.backends.slots import CIRCUIT_OPENS_AFTER, Slots
from gateway.errors import ApiError

from tests.support.registries import record, registry
from tests.support.scripted import run_on

QUEUE = {"max": 50, "timeout_sec": 60}


class Line:
    """One slot that is taken, and who waits for it. `served` are their names, in the order of their turns."""

    def __init__(self, **queue: Any) -> None:
        self.registry: Registry = registry(a=record(1, queue=QUEUE | queue))
        self.route = self.registry.route("m", b"", "chat")
        self.slots: Slots = self.route.slots[0]
        self.slots.take("m")
        assert self.slots.queue is not None
        self.queue: FairQueue = self.slots.queue
        self.served: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def join(self, name: str, token: str, priority: int = 0, model: str = "m") -> None:
        async def wait() -> None:
            await self.queue.wait(self.route.slots, token, priority, model)
            self.served.append(name)

        self.tasks[name] = asyncio.create_task(wait())
        await asyncio.sleep(0)

    async def join_all(self, name: str, numbers: Iterable[int]) -> None:
        """One for each number, all of the token `name`."""
        for number in numbers:
            await self.join(f"{name}{number}", name)

    async def serve(self, count: int) -> list[str]:
        for _ in range(count):
            self.slots.release()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        return self.served

    async def end(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)


@asynccontextmanager
async def in_line(**queue: Any) -> AsyncIterator[Line]:
    line = Line(**queue)
    try:
        yield line
    finally:
        await line.end()


async def test_tokens_take_turns_however_many_requests_each_sends() -> None:
    async with in_line() as line:
        await line.join_all("greedy", range(4))
        await line.join_all("modest", range(2))
        assert await line.serve(6) == ["greedy0", "modest0", "greedy1", "modest1", "greedy2", "greedy3"]


async def test_a_token_that_comes_later_shares_the_turns_that_are_left() -> None:
    """What a token was served before counts for as long as somebody waits; a new one gets no turns of the past."""

    async with in_line() as line:
        await line.join_all("early", range(3))
        await line.serve(2)
        await line.join("early3", "early")
        await line.join_all("late", range(2))
        assert await line.serve(4) == ["early0", "early1", "late0", "early2", "late1", "early3"]


async def test_higher_priority_goes_first() -> None:
    async with in_line() as line:
        await line.join("low", "a", priority=0)
        await line.join("high", "b", priority=5)
        assert await line.serve(2) == ["high", "low"]


async def test_loaded_model_is_preferred_for_some_turns_and_not_for_ever() -> None:
    async with in_line() as line:
        await line.join("other", "a", model="not loaded")
        for number in range(2 * SWITCH_TURNS):
            await line.join(f"loaded{number}", "a")
        served = await line.serve(2 * SWITCH_TURNS + 1)
        assert served[0] == "loaded0"
        assert 1 <= served.index("other") <= SWITCH_TURNS


async def test_full_queue_refuses() -> None:
    async with in_line(max=1) as line:
        await line.join("one", "a")
        with pytest.raises(ApiError) as caught:
            await line.queue.wait(line.route.slots, "b", 0, "m")
        assert (caught.value.status, caught.value.code) == (429, "backend_overloaded")
        assert "queue of 1 is full" in caught.value.message
        assert dict(caught.value.headers)[b"retry-after"] == b"5"


async def test_waiting_ends_in_time() -> None:
    async with in_line(timeout_sec=0.02) as line:
        with pytest.raises(ApiError) as caught:
            await line.queue.wait(line.route.slots, "a", 0, "m")
        assert caught.value.status == 429
        assert "within 0.02 s" in caught.value.message
        assert len(line.queue) == 0


async def test_a_client_that_leaves_gives_its_place_back() -> None:
    async with in_line() as line:
        await line.join("leaves", "a")
        await line.join("stays", "b")
        line.tasks["leaves"].cancel()
        await asyncio.sleep(0)
        assert len(line.queue) == 1
        assert await line.serve(1) == ["stays"]


async def test_a_client_that_leaves_at_its_turn_passes_the_slot_on() -> None:
    async with in_line() as line:
        await line.join("leaves", "a")
        await line.join("stays", "b")
        line.slots.release()  # granted to the first, which has not run since
        line.tasks["leaves"].cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert line.served == ["stays"]
        assert line.slots.inflight == 1


async def test_a_slot_freed_while_a_client_leaves_goes_to_the_next() -> None:
    async with in_line() as line:
        await line.join("leaves", "a")
        line.tasks["leaves"].cancel()  # cancelled, and not run since
        line.slots.release()
        await line.join("comes", "b")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert line.served == ["comes"]
        assert line.slots.inflight == 1


async def test_a_free_slot_goes_to_a_waiter_before_a_new_request() -> None:
    async with in_line() as line:
        await line.join("first", "a")
        assert line.registry.take(line.route) is None
        line.slots.release()
        assert line.registry.take(line.route) is None  # it is the first one's now
        await asyncio.sleep(0)
        assert line.served == ["first"]


async def test_a_backend_that_is_ready_again_serves_its_waiters() -> None:
    async with in_line() as line:
        backend = line.slots.backend
        await line.join("patient", "a")
        backend.fail("gone")
        assert await line.serve(1) == []
        backend.ready = True
        backend.wake()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert line.served == ["patient"]


async def test_a_client_that_leaves_has_used_no_turn() -> None:
    """Else a token whose requests wait too long would be put further back by each that it gave up."""

    async with in_line() as line:
        await line.join_all("greedy", range(20))
        await line.join("modest0", "modest")
        for number in (*range(5, 20), *range(4)):
            line.tasks[f"greedy{number}"].cancel()
        await asyncio.sleep(0)
        await line.join("greedy again", "greedy")
        await line.join_all("modest", range(1, 4))
        assert await line.serve(4) == ["greedy4", "modest0", "greedy again", "modest1"]


async def test_a_backend_with_an_open_circuit_serves_those_without_another() -> None:
    async with in_line() as line:
        await line.join("patient", "a")
        for _ in range(CIRCUIT_OPENS_AFTER):
            line.slots.backend.strain_circuit()
        assert not line.slots.backend.is_usable
        assert await line.serve(1) == ["patient"]


async def test_a_backend_with_an_open_circuit_leaves_the_queue_to_others() -> None:
    both = registry(a=record(1, queue=QUEUE), b=record(1, queue=QUEUE))
    route = both.route("m", b"", "chat")
    first, second = (both.take(route) for _ in range(2))
    assert first is not None
    assert second is not None
    for _ in range(CIRCUIT_OPENS_AFTER):
        first.backend.strain_circuit()
    waiting = asyncio.create_task(route.slots[0].queue.wait(route.slots, "a", 0, "m"))  # type: ignore[union-attr]  # it has one
    await asyncio.sleep(0)
    first.release()
    await asyncio.sleep(0)
    assert not waiting.done()
    second.release()
    assert await waiting is second


async def test_nothing_is_kept_of_tokens_that_do_not_wait() -> None:
    async with in_line() as line:
        for number in range(40):
            await line.join(f"{number}", f"token{number}")
        await line.serve(40)
        assert line.queue._last_turn == {}


@pytest.mark.parametrize(
    ("waiting", "comes", "loses"),
    [
        ([("a", 0)] * 4, ("b", 0), "3"),
        ([("a", 0)] * 3 + [("b", 0)], ("b", 0), "2"),
        ([("a", 0)] * 4, ("a", 0), None),
        ([("a", 0)] * 2 + [("b", 0)] * 2, ("a", 0), None),
        ([("a", 0)] * 2 + [("b", 0), ("c", 0)], ("c", 0), None),  # as many have less then as before
        ([("a", 0), ("b", 0), ("c", 0), ("d", 0)], ("e", 0), None),
        ([("low", 0)] + [("high", 1)] * 3, ("higher", 2), "0"),
        ([("low", 0)] * 2 + [("lower", -1), ("high", 1)], ("high", 1), "2"),
        ([("low", 0)] * 3 + [("high", 1)], ("high", 1), "2"),
        ([("high", 1)] * 4, ("low", 0), None),
        ([("high", 1)] * 4, ("other", 1), "3"),
    ],
)
async def test_a_full_queue_is_shared(
    waiting: list[tuple[str, int]], comes: tuple[str, int], loses: str | None
) -> None:
    """Who fills it loses its newest to others; whose token has no fewer is refused."""

    async with in_line(max=4) as line:
        for number, (token, priority) in enumerate(waiting):
            await line.join(str(number), token, priority)
        await line.join("comes", *comes)
        await asyncio.sleep(0)
        refused = [name for name, task in line.tasks.items() if task.done()]
        assert refused == [loses or "comes"]
        error = line.tasks[refused[0]].exception()
        assert isinstance(error, ApiError)
        assert (error.status, dict(error.headers)[b"retry-after"]) == (429, b"5")
        assert len(line.queue) == 4
        assert len(await line.serve(4)) == 4


async def test_a_client_that_lost_its_place_gives_nothing_back_when_it_leaves() -> None:
    async with in_line(max=2) as line:
        for number in range(2):
            await line.join(f"{number}", "a")
        comes = asyncio.create_task(line.queue.wait(line.route.slots, "b", 0, "m"))
        await asyncio.sleep(0)
        line.tasks["1"].cancel()
        await asyncio.sleep(0)
        assert len(line.queue) == 2
        assert await line.serve(2) == ["0"]
        assert await comes is line.slots
        assert line.slots.inflight == 1


async def test_a_cancelled_waiter_takes_no_place_in_a_full_queue() -> None:
    async with in_line(max=1) as line:
        await line.join("leaves", "a")
        line.tasks["leaves"].cancel()  # and has not run since
        await line.join("comes", "a")
        await asyncio.sleep(0)
        assert len(line.queue) == 1
        assert await line.serve(1) == ["comes"]


@pytest.mark.parametrize("leavers", ["all at once", "in turn", "while a slot comes free"])
def test_eight_times_as_many_waiters_cost_about_eight_times_as_much(leavers: str) -> None:
    async def cost(waiters: int) -> float:
        line = Line(max=waiters)
        for number in range(waiters):
            await line.join(f"{number}", "a", model=f"m{number % 7}")
        tasks = list(line.tasks.values())
        began = process_time()
        if leavers == "in turn":
            await line.serve(waiters)
        else:
            for task in tasks:
                task.cancel()
            if leavers == "while a slot comes free":
                line.slots.release()
            await asyncio.gather(*tasks, return_exceptions=True)
        spent = process_time() - began
        assert len(line.queue) == 0
        return spent

    async def test() -> None:
        few, many = [await cost(500) for _ in range(3)], [await cost(4_000) for _ in range(3)]
        assert min(many) / min(few) < 24, (few, many)

    run_on("uvloop", test)


async def test_waiters_keep_their_places_over_reloads_and_are_woken() -> None:
    async with in_line() as line:
        for name in ("first", "second", "third", "fourth"):
            await line.join(name, name)
        for limit in (1, 2):  # an edit of nothing, and one more slot
            file = BackendsFile({"a": record(limit, queue=QUEUE, description=str(limit))}, {})
            line.registry.replace(file, {})
            await asyncio.sleep(0)
        assert await line.serve(0) == ["first"]
        line.queue.move("test", line.route.slots[::-1] * 2)
        await line.join("fifth", "fourth")  # by a route of before, in a line of its own
        moved: Any = {"base_url": "http://127.0.0.1:2/v1"}
        line.registry.replace(BackendsFile({"a": record(1, queue=QUEUE, **moved)}, {}), {})
        await asyncio.sleep(0)
        assert await line.serve(0) == ["first", "second"]  # on the host where it now is
        line.registry.replace(BackendsFile({"a": record(1, **moved)}, {}), {})
        line.registry.backends[0].slots["chat"].release()
        await asyncio.sleep(0)
        assert await line.serve(0) == ["first", "second", "third"]  # the class asks for no queue any more
        with pytest.raises(ApiError, match="its queue of 0 is full"):
            await FairQueue(0, 60).wait(line.route.slots, "late", 0, "m")
        line.registry.replace(BackendsFile({"b": record(1, **{"class": "other"})}, {}), {})
        with pytest.raises(ApiError) as error:
            await line.tasks["fifth"]
        assert isinstance(line.tasks["fourth"].exception(), ApiError)
        assert (error.value.status, len(line.queue)) == (503, 0)
