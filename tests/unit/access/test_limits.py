"""The sliding minute, the day's tokens and the addresses behind proxies, held to plain models of what they promise."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import apsw
import pytest
from gateway.access.addresses import HOPS_MAX, AddressList, client_address
from gateway.access.limits import SLOTS, SlidingWindow
from gateway.access.usage import DAY_SEC, KEEP_DAYS, TokenUsage
from gateway.storage import Database, StorageError
from hypothesis import given
from hypothesis import strategies as st

from tests.support.databases import opened

NOON = 20_000 * DAY_SEC + DAY_SEC / 2
SLOT_SEC = 0.25

# --- requests a minute

gaps = st.lists(st.floats(0, 90) | st.sampled_from([0, SLOT_SEC, 59.75, 60, 60.25]), max_size=200)


@given(st.integers(1, 5), st.floats(0, 1e6), gaps)
def test_window_against_a_plain_model(limit: int, now: float, pauses: list[float]) -> None:
    window = SlidingWindow(limit)
    taken: list[float] = []
    for pause in pauses:
        now += pause
        recent = sum(now - at < 60 for at in taken)
        recent_and_a_slot = sum(now - at <= 60 + SLOT_SEC for at in taken)
        wait = window.take(now)
        if wait == 0:
            taken.append(now)
            assert recent < limit
        else:
            assert recent_and_a_slot >= limit
            assert 0 < wait <= 60 + SLOT_SEC
        assert recent <= window.used(now) <= recent_and_a_slot + 1


@given(st.integers(1, 3), st.integers(0, 10**6), gaps)
def test_a_client_that_waits_as_long_as_told_is_admitted(limit: int, start: int, pauses: list[float]) -> None:
    window, now = SlidingWindow(limit), start / 4
    for pause in pauses:
        now += round(pause * 4) / 4  # exact in floating point, so that the wait is too
        if wait := window.take(now):
            now += wait
            assert window.take(now) == 0


def test_lower_limit_on_a_full_window() -> None:
    window = SlidingWindow(10)
    for second in range(10):
        assert window.take(second) == 0
    window.limit = 2
    wait = window.take(10)
    assert window.take(10 + wait - SLOT_SEC) > 0
    assert window.take(10 + wait) == 0


def test_memory_does_not_grow_with_the_limit() -> None:
    window = SlidingWindow(10**9)
    for tenth in range(10_000):
        for _ in range(5):
            window.take(tenth / 10)
    assert len(window._slots) <= SLOTS + 1
    assert window.used(1000) <= 5 * 603


def test_empty_window_resets_now() -> None:
    window = SlidingWindow(1)
    assert window.resets_in(5) == 0
    window.take(5)
    assert window.resets_in(5) == 60.25
    assert window.resets_in(65.25) == 0
    window.take(100)
    assert window.resets_in(200) == 0


# --- tokens a day


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def rows(path: Path) -> dict[tuple[int, str], int]:
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    found = {(day, caller): tokens for day, caller, tokens in connection.execute("SELECT * FROM token_usage")}
    connection.close()
    return found


def test_day_turns_at_midnight_utc() -> None:
    clock = Clock(NOON)
    usage = TokenUsage(clock)
    usage.spend("a", 5)
    assert usage.day_ends_in() == DAY_SEC / 2
    clock.now += DAY_SEC / 2 - 0.5
    assert (usage.today("a"), usage.day_ends_in()) == (5, 1)
    clock.now += 0.5
    assert (usage.today("a"), usage.day_ends_in()) == (0, DAY_SEC)
    usage.spend("a", 3)
    clock.now -= DAY_SEC  # set back: nobody gets the day twice
    assert usage.today("a") == 3


@asynccontextmanager
async def counting(
    path: Path, usage: TokenUsage, kind: type[Database] = Database, *, spent: int = 0
) -> AsyncIterator[Database]:
    """Stores the usage; `spent` is what "a" has used before it knows of the database."""
    async with opened(path, kind) as database:
        usage.spend("a", spent)
        await usage.start(database)
        try:
            yield database
        finally:
            await usage.stop()


async def test_counts_outlive_the_process(tmp_path: Path) -> None:
    path, clock = tmp_path / "db.sqlite", Clock(NOON)

    async def process(expected: int, *spent: tuple[str, int]) -> None:
        usage = TokenUsage(clock)
        async with counting(path, usage, spent=1):
            for name, tokens in spent:
                usage.spend(name, tokens)
            assert usage.today("a") == expected

    await process(11, ("a", 10), ("b", 5))
    await process(22, ("a", 10))
    clock.now += DAY_SEC
    await process(3, ("a", 2))
    today = int(clock.now // DAY_SEC)
    assert rows(path) == {(today - 1, "a"): 22, (today - 1, "b"): 5, (today, "a"): 3}
    clock.now += DAY_SEC * (KEEP_DAYS + 1)
    await process(1)
    assert rows(path) == {(today + KEEP_DAYS + 1, "a"): 1}


async def test_counts_are_stored_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.access.usage.SAVE_EVERY_SEC", 0.01)
    path, usage = tmp_path / "db.sqlite", TokenUsage(Clock(NOON))
    async with counting(path, usage):
        usage.spend("a", 4)
        while not await asyncio.to_thread(rows, path):  # noqa: ASYNC110 - what is waited for is in a file
            await asyncio.sleep(0.01)
    assert rows(path) == {(20_000, "a"): 4}


@asynccontextmanager
async def windowed(path: Path, now: float, ticks: Clock, limit: int) -> AsyncIterator[SlidingWindow]:
    """One caller's window in a process that begins at `now`."""
    usage = TokenUsage(Clock(now), ticks)
    usage.windows = {"a": SlidingWindow(limit), "b": SlidingWindow(limit)}
    async with counting(path, usage):
        yield usage.windows["a"]


@pytest.mark.parametrize("pause", [0, 0.3, 30, 59.75, 70])
async def test_requests_of_the_last_minute_outlive_the_process(tmp_path: Path, pause: float) -> None:
    """Each process has ticks of its own."""
    path, late = tmp_path / "db.sqlite", 0.5  # by as much a request may leave its window later
    ticks = Clock(1e6 + 0.123)
    async with windowed(path, NOON + 0.2, ticks, 2) as window:
        assert [window.take(ticks.now) for _ in range(2)] == [0, 0]
        ticks.now += 10
    ticks = Clock(5.5)
    async with windowed(path, NOON + 10.2 + pause, ticks, 2) as window:
        left = max(0, 50 - pause)
        assert left <= (wait := window.take(ticks.now)) <= left + SLOT_SEC + late
        assert window.take(ticks.now + wait) == 0


async def test_clock_that_is_set_back_refuses_nobody_for_longer_than_a_minute(tmp_path: Path) -> None:
    for now, wait in ((NOON, 0), (NOON - DAY_SEC, 60.25)):
        async with windowed(tmp_path / "db.sqlite", now, Clock(5), 1) as window:
            assert window.take(5) == wait


async def test_rows_of_requests_are_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.access.usage.SAVE_EVERY_SEC", 0.001)
    path = tmp_path / "db.sqlite"
    ticks = Clock(0)
    async with windowed(path, NOON, ticks, 10**6) as window:
        for _ in range(1000):
            window.take(ticks.now)
            ticks.now += 0.5
            await asyncio.sleep(0)
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    ((rows, requests),) = connection.execute("SELECT count(*), sum(requests) FROM request_counts")
    connection.close()
    assert SLOTS / 2 <= rows == requests <= SLOTS / 2 + 1  # of every other slot


class FailingDatabase(Database):
    """Fails the first two writes and the fourth, as on a full disk."""

    writes = 0

    async def write(self, work):  # type: ignore[no-untyped-def]  # as the parent's
        self.writes += 1
        if self.writes in (1, 2, 4):
            raise StorageError("disk full")
        return await super().write(work)


async def test_counts_that_failed_to_be_stored_are_stored_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("gateway.access.usage.SAVE_EVERY_SEC", 0.01)
    path, usage = tmp_path / "db.sqlite", TokenUsage(Clock(NOON))
    async with counting(path, usage, FailingDatabase) as database:
        assert isinstance(database, FailingDatabase)
        while database.writes < 4:
            usage.spend("a", 1)
            await asyncio.sleep(0.005)
        used = usage.today("a")
    assert rows(path) == {(20_000, "a"): used}
    assert caplog.text.count("disk full") == 2, "each time that it begins to fail"


# --- who is behind a proxy

PROXIES = AddressList([ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8")])


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [b"1.2.3.4"], "1.2.3.4"),
        ("9.9.9.9", [b"1.2.3.4"], "9.9.9.9"),  # not trusted: whatever it says
        ("10.0.0.1", [b"6.6.6.6, 1.2.3.4"], "1.2.3.4"),  # the client's own invention is to the left
        ("10.0.0.1", [b"1.2.3.4, 10.0.0.2"], "1.2.3.4"),
        ("10.0.0.1", [b"6.6.6.6", b"1.2.3.4", b"10.0.0.2"], "1.2.3.4"),
        ("10.0.0.1", [b"10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", [b"1.2.3.4:567"], "1.2.3.4"),
        ("10.0.0.1", [b"[2001:db8::1]:567"], "2001:db8::1"),
        ("10.0.0.1", [b"[2001:db8::1]"], "2001:db8::1"),
        ("10.0.0.1", [b" 2001:db8::1\t"], "2001:db8::1"),
        ("10.0.0.1", [b"::ffff:1.2.3.4"], "1.2.3.4"),
        ("::ffff:10.0.0.1", [b"1.2.3.4"], "1.2.3.4"),
        ("fd00::1", [b"2001:db8::1, fd00::2"], "2001:db8::1"),
        ("10.0.0.1", [b"1.2.3.4, unknown"], "10.0.0.1"),
        ("10.0.0.1", [b"unknown, 1.2.3.4"], "1.2.3.4"),
        ("10.0.0.1", [b""], "10.0.0.1"),
        ("10.0.0.1", [b"1.2.3.4,"], "10.0.0.1"),
        ("10.0.0.1", [b"1.2.3.4:"], "10.0.0.1"),
        ("10.0.0.1", [b"1.2.3.4:x"], "10.0.0.1"),
        ("10.0.0.1", [b"[1.2.3.4]"], "10.0.0.1"),
        ("10.0.0.1", [b"[2001:db8::1"], "10.0.0.1"),
        ("10.0.0.1", [b"[2001:db8::1]x"], "10.0.0.1"),
        ("10.0.0.1", [b"1" * 65], "10.0.0.1"),
        ("10.0.0.1", [b"1.2.3.4" + b", 10.0.0.2" * (HOPS_MAX - 1)], "1.2.3.4"),
        ("10.0.0.1", [b"1.2.3.4" + b", 10.0.0.2" * HOPS_MAX], "10.0.0.1"),
        ("nonsense", [b"1.2.3.4"], "nonsense"),
    ],
)
def test_client_behind_proxies(peer: str, forwarded: list[bytes], client: str) -> None:
    assert client_address(peer, forwarded, PROXIES) == client


addresses = st.ip_addresses().map(str)
proxies = st.ip_addresses(network="10.0.0.0/8").map(str) | st.ip_addresses(network="fd00::/8").map(str)
hops = st.binary(max_size=40) | addresses.map(str.encode) | st.sampled_from([b"", b"unknown", b"[", b"]:", b":", b"%"])


@given(st.lists(st.lists(hops, max_size=4).map(b", ".join), max_size=4), addresses, st.lists(proxies, max_size=5))
def test_nothing_to_the_left_of_the_client_is_believed(lies: list[bytes], client: str, chain: list[str]) -> None:
    """Whatever a client sends, it is its own address that the first trusted proxy writes down."""
    address = ipaddress.ip_address(client)
    mapped = getattr(address, "ipv4_mapped", None) or address
    if PROXIES.holds(mapped):
        return
    written = [client.encode(), *(proxy.encode() for proxy in chain)]
    assert client_address("10.0.0.1", [*lies, *written], PROXIES) == str(mapped)
    assert client_address("10.0.0.1", [*lies, b",".join(written)], PROXIES) == str(mapped)
