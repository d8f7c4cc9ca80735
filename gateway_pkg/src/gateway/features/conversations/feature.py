"""Conversations: responses that are kept for their caller, so that the next one can go on with them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.config.settings import Section, setting
from gateway.features.conversations import seal, store
from gateway.features.conversations.seal import Sealer
from gateway.features.conversations.store import ResponseStore
from gateway.features.face import Core, Feature

if TYPE_CHECKING:
    from fastapi import APIRouter


class ConversationSettings(Section, heading="What is stored"):
    responses_ttl_sec: int = setting(30 * 86_400, "How long a stored response is kept.", ge=1)
    responses_max_bytes: int = setting(
        1024 * 1024 * 1024,
        "Largest size of all stored responses; beyond it, the token that stores the most loses its oldest.",
        ge=1,
    )


class Conversations(Feature):
    name = "conversations"
    section = ConversationSettings
    migrations = (*store.MIGRATIONS, *seal.MIGRATIONS)

    def __init__(self, core: Core) -> None:
        settings = core.settings[ConversationSettings]
        self.store = ResponseStore(core.database, settings.responses_ttl_sec, settings.responses_max_bytes)
        self.sealer = Sealer(core.database)
        self.parts = (self.store,)

    def router(self) -> APIRouter:
        from gateway.features.conversations.pages import make_router

        return make_router(self.store)

    def problem(self) -> str | None:
        return self.store.problem
