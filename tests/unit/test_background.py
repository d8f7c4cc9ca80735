"""Work beside the requests: what fails is logged, counted and tried again, and a backend's absurd numbers fail none."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from gateway import background
from gateway.access.usage import TOKENS_MAX, TokenUsage
from gateway.backends.health import Prober
from gateway.backends.usage import COUNT_MAX, count_of, usage_of
from gateway.features.conversations.store import ResponseStore
from gateway.features.images.settings import ImageSettings
from gateway.features.images.store import MediaStore
from gateway.observe import logs
from gateway.observe.lag import LagSampler
from gateway.observe.linelog import LineLog
from gateway.observe.metrics import LAG_BOUNDS, Histogram, Metrics
from gateway.observe.settings import TraceSettings
from gateway.observe.tracing import Tracer
from opentelemetry.sdk.trace.export import SpanExportResult

from tests.support.databases import opened
from tests.support.registries import record, registry
from tests.support.scripted import Run
from tests.support.waiting import until_async


class FailsOnce:
    """Stands for a function that raises the first time."""

    def __init__(self, owner: Any, name: str, patch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self._real = getattr(owner, name)
        patch.setattr(owner, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls == 1:
            raise KeyError("a bug")
        return self._real(*args, **kwargs)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.background.RESTART_SEC", 0.01)
    monkeypatch.setattr("gateway.background.failures", type(background.failures)())


Case = Callable[[Path, pytest.MonkeyPatch], Any]


async def token_usage(home: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("gateway.access.usage.SAVE_EVERY_SEC", 0.01)
    async with opened(home / "x.sqlite") as database:
        usage = TokenUsage()
        await usage.start(database)
        usage.spend("a", 5)
        store = FailsOnce(database, "write", patch)
        await until_async(lambda: store.calls >= 2)
        await usage.stop()
        assert await database.read(lambda c: c.execute("SELECT sum(tokens) FROM token_usage").get) == 5


async def token_usage_at_the_stop(home: Path, patch: pytest.MonkeyPatch) -> None:
    async with opened(home / "x.sqlite") as database:
        usage = TokenUsage()
        await usage.start(database)
        usage.spend("a", 5)
        patch.setattr(database, "write", None)
        await usage.stop()


async def responses_sweep(home: Path, patch: pytest.MonkeyPatch) -> None:
    async with opened(home / "x.sqlite") as database:
        store = ResponseStore(database, 60, 1000)
        write = FailsOnce(database, "write", patch)
        await store.start()
        await until_async(lambda: write.calls >= 2)
        await store.stop()


async def media_sweep(home: Path, patch: pytest.MonkeyPatch) -> None:
    store = MediaStore(ImageSettings(ui_image_dir=home / "media"))
    sweep = FailsOnce(store, "sweep", patch)
    await store.start()
    await until_async(lambda: sweep.calls >= 2)
    await store.stop()


async def event_loop_lag(home: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("gateway.observe.lag.PERIOD_SEC", 0.01)
    patch.setattr(Histogram, "observe", lambda *_: 1 / 0)
    histogram = Histogram(LAG_BOUNDS)
    sampler = LagSampler(histogram)
    await sampler.start()
    await until_async(lambda: background.failures["event_loop_lag"] > 0)
    patch.undo()
    await until_async(lambda: histogram.count > 0)
    await sampler.stop()


async def prober(home: Path, patch: pytest.MonkeyPatch) -> None:
    prober = Prober(registry(a=record(1)), 0.01, 1)
    probe = FailsOnce(prober, "_probe", patch)
    await prober.start()
    await until_async(lambda: probe.calls >= 2)
    await prober.stop()


async def database_writer(home: Path, patch: pytest.MonkeyPatch) -> None:
    async with opened(home / "x.sqlite") as database:
        commit = FailsOnce(database, "_commit", patch)
        with pytest.raises(KeyError):
            await database.write(lambda _: None)
        assert await database.write(lambda _: 5) == 5
        assert commit.calls == 2


async def request_log(home: Path, patch: pytest.MonkeyPatch) -> None:
    log = LineLog(home / "log", 1000, 1)
    FailsOnce(log, "_append", patch)
    log.write(b"lost\n")
    await until_async(lambda: log.dropped == 1)
    await until_async(lambda: log._writing is None)
    log.write(b"kept\n")
    await log.close()
    assert (home / "log").read_bytes() == b"kept\n"


async def traces(home: Path, patch: pytest.MonkeyPatch) -> None:
    tracer = Tracer(TraceSettings(otel_exporter_otlp_endpoint="http://127.0.0.1:9"))
    FailsOnce(tracer._exporter._inner, "export", patch)
    assert tracer._exporter.export([]) is SpanExportResult.FAILURE
    tracer._exporter.close_soon()
    await tracer.close()


async def process_log(home: Path, patch: pytest.MonkeyPatch) -> None:
    line = logging.makeLogRecord({"msg": "%d", "args": ("none",)})
    logs._Writer(None).handle(line)  # type: ignore[arg-type]  # its queue is not asked


CASES = (
    token_usage, token_usage_at_the_stop, responses_sweep, media_sweep, event_loop_lag, prober, database_writer,
    request_log, traces, process_log,
)  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_what_fails_is_logged_counted_and_tried_again(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, case: Case
) -> None:
    task = case.__name__.removesuffix("_at_the_stop")
    with monkeypatch.context() as patch:
        run(lambda: case(tmp_path, patch))
        assert background.failures == {task: 1} or (task == "event_loop_lag" and background.failures[task] > 1)
    if task != "event_loop_lag":
        page = Metrics(registry(a=record(1)), None).text().decode()
        assert f'gateway_background_failures_total{{task="{task}"}} 1.0' in page
    assert f"background task '{task}' failed" in caplog.text or task == "process_log"


def test_a_wait_that_is_cancelled_is_not_the_end_of_the_task(run: Run) -> None:
    async def test() -> None:
        rounds = 0

        async def work() -> None:
            nonlocal rounds
            rounds += 1
            gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            gone.cancel()
            await gone

        task = background.start("x", work)
        await until_async(lambda: rounds >= 2)
        await background.end(task)
        assert task.cancelled()

    run(test)


# --- numbers of a backend

ABSURD: tuple[Any, ...] = (
    2**53, 2**54, 2**63, 2**64 - 1, 2**70, -1, -(2**63), 1.5, 1e308, True, False, "5", [5], {}, COUNT_MAX,
)  # fmt: skip


@pytest.mark.parametrize("number", ABSURD, ids=repr)
def test_an_absurd_count_is_absent(number: Any) -> None:
    assert count_of(number) is None
    assert usage_of({"prompt_tokens": number}) is None
    assert usage_of({"prompt_tokens": 1, "completion_tokens": number or 2**54}) is None


async def test_what_was_spent_fits_the_database(tmp_path: Path) -> None:
    for _ in range(2):
        async with AsyncExitStack() as stack:
            database = await stack.enter_async_context(opened(tmp_path / "x.sqlite"))
            usage = TokenUsage()
            await usage.start(database)
            stack.push_async_callback(usage.stop)
            for _ in range(3):
                usage.spend("a", 2**62)
            usage.spend("b", 1)
        async with opened(tmp_path / "x.sqlite") as database:
            rows = await database.read(lambda c: list(c.execute("SELECT caller, tokens FROM token_usage")))
    assert rows == [("a", TOKENS_MAX), ("b", 2)]
    assert background.failures == {}
