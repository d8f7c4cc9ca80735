"""The face of a feature or a dialect: all that app.py asks of one. docs/add-a-feature.md says how to add one."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol, TypeVar, cast

from gateway.backends.call import Dispatcher
from gateway.config.reload import Reloader
from gateway.config.settings import Section, Settings
from gateway.errors import ApiError
from gateway.observe.metrics import Family, Samples
from gateway.storage import Database, Migration, StorageError
from gateway.web.endpoint import Endpoints

if TYPE_CHECKING:
    from fastapi import APIRouter

log = logging.getLogger(__name__)


class Part(Protocol):
    """What runs beside the requests."""

    async def start(self) -> None:
        """The database is open; whatever this raises ends the start of the gateway."""

    async def stop(self) -> None:
        """The database is still open."""


class Feature:
    """What is absent is the default here: no route, no table, no setting.

    `name` stands in health and before the versions of its migrations: it never changes.
    """

    name: ClassVar[str]
    section: ClassVar[type[Section] | None] = None  # of the settings
    migrations: ClassVar[tuple[Migration, ...]] = ()
    policy_keys: ClassVar[frozenset[str]] = frozenset()  # keys of a token's policy that this feature enforces
    tags: ClassVar[Mapping[str, str]] = {}  # of its routes on the OpenAPI page, each with what it says there
    open_directories: ClassVar[tuple[str, ...]] = ()  # below them a request needs no token; each ends with a slash
    families: ClassVar[tuple[Family, ...]] = ()

    endpoints: Endpoints = ()
    parts: Sequence[Part] = ()  # started in this order, stopped in the opposite one

    def __init__(self, core: Core) -> None:
        """Nothing runs yet."""

    def router(self) -> APIRouter | None:
        """The routes that FastAPI answers, made when somebody asks for one: it imports them, and so FastAPI, then."""
        return None

    def problem(self) -> str | None:
        """Why the feature cannot do all of its work now, for operators; None when it can."""
        return None

    def samples(self) -> Iterable[tuple[Family, Samples]]:
        """The values of `families`."""
        return ()


@contextmanager
def storage_errors(message: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Iterator[None]:
    """A StorageError of the block becomes a 503 with this message; the log says why."""
    try:
        yield
    except StorageError as error:
        log.warning("%s: %s", message, error)
        message = f"{message}; the gateway's log says why"
        raise ApiError(503, message, code="storage_unavailable", headers=headers) from error


F = TypeVar("F", bound=Feature)


class Core(NamedTuple):
    """What a feature is built of. It takes its own section of the settings and no other feature's."""

    settings: Settings
    dispatcher: Dispatcher
    database: Database
    reloader: Reloader
    features: Mapping[type[Feature], Feature]  # those before it in app.FEATURES

    def find(self, kind: type[F]) -> F:
        return cast(F, self.features[kind])
