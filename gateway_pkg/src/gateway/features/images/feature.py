"""Images: made by image servers or drawn as placeholders, and stored for those that ask for a `url`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from gateway.features.face import Core, Feature
from gateway.features.images.routes import EDITS, FILES, GENERATIONS, ImageHandler
from gateway.features.images.settings import ImageSettings
from gateway.features.images.store import MediaStore
from gateway.web.settings import RequestSettings

if TYPE_CHECKING:
    from fastapi import APIRouter


class Images(Feature):
    name = "images"
    section = ImageSettings
    tags: ClassVar[Mapping[str, str]] = {"files": "Stored images, for answers with a `url`"}
    open_directories = (f"{FILES}/",)  # who knows the sha256 of an image's bytes may have the image

    def __init__(self, core: Core) -> None:
        settings = core.settings[ImageSettings]
        self._store = MediaStore(settings)
        public_base_url = core.settings[RequestSettings].public_base_url
        handler = ImageHandler(core.dispatcher, settings, self._store, public_base_url)
        self.endpoints = ((GENERATIONS, handler.generate), (EDITS, handler.edit))
        self.parts = (self._store,)

    def router(self) -> APIRouter:
        from gateway.features.images.pages import make_media_router

        return make_media_router(self._store, FILES)

    def problem(self) -> str | None:
        return self._store.problem
