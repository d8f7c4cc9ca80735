"""Conversations: responses that are kept for their caller, so that the next one can go on with them."""

from __future__ import annotations

from pydantic import Field

from gateway.config.settings import Section
from gateway.features.conversations.routes import make_router
from gateway.features.conversations.store import MIGRATIONS, ResponseStore
from gateway.features.face import Core, Feature


class ConversationSettings(Section, heading="What is stored"):
    responses_ttl_sec: int = Field(30 * 86_400, ge=1, description="How long a stored response is kept.")
    responses_max_bytes: int = Field(
        1024 * 1024 * 1024,
        ge=1,
        description="Size of all stored responses; beyond it the oldest of the token with most go.",
    )


class Conversations(Feature):
    name = "conversations"
    section = ConversationSettings
    migrations = MIGRATIONS

    def __init__(self, core: Core) -> None:
        settings = core.settings[ConversationSettings]
        self.store = ResponseStore(core.database, settings.responses_ttl_sec, settings.responses_max_bytes)
        self.router = make_router(self.store)
        self.parts = (self.store,)

    def problem(self) -> str | None:
        return self.store.problem
