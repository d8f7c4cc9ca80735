"""Reloads the operator's files while the gateway serves; streams under way go on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from gateway import background
from gateway.errors import Refusal

log = logging.getLogger(__name__)
T = TypeVar("T")


class Kept(BaseModel):
    """A malformed file: its last good content stays in force."""

    file: str
    problems: list[str]


class ReloadReport(BaseModel):
    """The result of a reload; `ok` when every file was loaded."""

    ok: bool
    reloaded: list[str]
    kept: list[Kept]


class Source(Generic[T]):
    """A file, or the setting that stands for it, and its last good content."""

    def __init__(self, file: str, load: Callable[[], T]) -> None:
        """Raises Refusal when the content is malformed."""
        self.file = file
        self.content = load()
        self._load = load

    def load(self) -> list[str]:
        """Reloads the file; returns its problems. With problems, the content stays as it was."""
        try:
            self.content = self._load()
        except Refusal as refusal:
            return list(refusal.problems)
        except (ValueError, RecursionError) as error:
            # The parsers of YAML and JSON raise these beside their own errors.
            return [f"{self.file}: cannot be read ({type(error).__name__}); correct it"]
        return []


class Reloader:
    """Runs one reload at a time. Settings and tokens come from the environment: they change with a restart."""

    def __init__(self) -> None:
        self._sources: list[Source[Any]] = []
        self._followers: list[Callable[[], object]] = []
        self._lock = asyncio.Lock()
        self._soon: asyncio.Task[None] | None = None
        self._is_asked = False

    def follow(self, put_in_force: Callable[[], object], *sources: Source[Any]) -> None:
        """After each reload, `put_in_force` takes over the contents of these sources."""
        self._followers.append(put_in_force)
        self._sources += sources

    async def reload(self) -> ReloadReport:
        """Reads all files off the loop, then puts their contents in force; a broken file keeps its last good one."""
        async with self._lock:
            report = await asyncio.to_thread(self._read)
            for put_in_force in self._followers:
                put_in_force()
        for kept in report.kept:
            for problem in kept.problems:
                log.error("reload: %s (the last good content stays in force)", problem)
        if report.reloaded:
            log.info("reloaded %s", ", ".join(report.reloaded))
        return report

    def reload_soon(self) -> None:
        """For a signal handler: reloads, and again after a signal that arrives during the reload."""
        self._is_asked = True
        if self._soon is None or self._soon.done():
            self._soon = asyncio.create_task(self._reload_for_signals(), name="reload")

    async def _reload_for_signals(self) -> None:
        while self._is_asked:
            self._is_asked = False
            try:
                await self.reload()
            except Exception:
                background.failed("reload")

    def _read(self) -> ReloadReport:
        report = ReloadReport(ok=True, reloaded=[], kept=[])
        for source in self._sources:
            if problems := source.load():
                report.kept.append(Kept(file=source.file, problems=problems))
            else:
                report.reloaded.append(source.file)
        report.ok = not report.kept
        return report
