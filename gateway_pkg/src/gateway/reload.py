"""Reads backends, aliases and token policies again while the gateway serves; streams under way go on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from gateway import background
from gateway.http.policies import PolicyBook, load_policies
from gateway.http.tokens import Doorkeeper
from gateway.refusal import Refusal
from gateway.routing.aliases import Alias, load_aliases
from gateway.routing.backends import BackendsFile, load_backends
from gateway.routing.registry import Registry
from gateway.settings import Settings

log = logging.getLogger(__name__)
T = TypeVar("T")


class Kept(BaseModel):
    """A file that is not as it must be: what was last read of it stays in force."""

    file: str
    problems: list[str]


class ReloadReport(BaseModel):
    """What a reload did; `ok` when nothing had to be kept."""

    ok: bool
    reloaded: list[str]
    kept: list[Kept]


class _Source(Generic[T]):
    """A file, or the setting that stands for it, and its last good content."""

    def __init__(self, file: str, load: Callable[[Settings], T], content: T) -> None:
        self.file = file
        self.content = content
        self._load = load

    def load(self, settings: Settings) -> list[str]:
        """Reads it again; gives the problems for which the content stays as it was."""
        try:
            self.content = self._load(settings)
        except Refusal as refusal:
            return list(refusal.problems)
        except (ValueError, RecursionError) as error:
            # What the parsers of YAML and JSON raise beside their own errors.
            return [f"{self.file}: cannot be read ({type(error).__name__}); correct it"]
        return []


class Reloader:
    """Reloads one at a time. Settings and tokens are the process's environment: they change with a restart."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        doorkeeper: Doorkeeper,
        *,
        backends: BackendsFile,
        aliases: Mapping[str, Alias],
        policies: PolicyBook,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._doorkeeper = doorkeeper
        self._backends = _Source(str(settings.gateway_backends_path), load_backends, backends)
        aliases_file = "MODEL_ALIASES_JSON" if settings.model_aliases_json else str(settings.model_aliases_path)
        self._aliases = _Source(aliases_file, load_aliases, aliases)
        policies_file = str(settings.gateway_token_policies_path or "GATEWAY_TOKEN_POLICIES_JSON")
        self._policies = _Source(policies_file, load_policies, policies)
        self._lock = asyncio.Lock()
        self._soon: asyncio.Task[None] | None = None
        self._is_asked = False

    async def reload(self) -> ReloadReport:
        """Reads all files off the loop, then puts them in force at once; a broken one stays as it last was."""
        async with self._lock:
            report = await asyncio.to_thread(self._read)
            self._registry.replace(self._backends.content, self._aliases.content)
            self._doorkeeper.replace(self._policies.content)
        for kept in report.kept:
            for problem in kept.problems:
                log.error("reload: %s (what was last good stays in force)", problem)
        if report.reloaded:
            log.info("reloaded %s", ", ".join(report.reloaded))
        return report

    def reload_soon(self) -> None:
        """For a signal's handler: reloads, and once more when a signal comes while it does."""
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
        sources: Sequence[_Source[Any]] = (self._backends, self._aliases, self._policies)
        for source in sources:
            if problems := source.load(self._settings):
                report.kept.append(Kept(file=source.file, problems=problems))
            else:
                report.reloaded.append(source.file)
        report.ok = not report.kept
        return report
