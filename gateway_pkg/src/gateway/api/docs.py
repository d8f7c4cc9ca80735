"""The open pages that stay as they are: `/openapi.json`, and `/docs`, Swagger UI.

Its files come from this host, since a private network may have no other. Anybody may ask for these pages, so each is
made once and then costs no more than its sending.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from mimetypes import guess_type
from pathlib import Path

import orjson
from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.api.paths import ICON, OPENAPI, SCRIPT, STYLE
from gateway.errors import Refusal

PIECE_BYTES = 64 * 1024  # what a client that reads slowly makes the gateway hold of a page


class Page(Response):
    """An answer for many requests, sent in pieces."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        body = bytes(self.body)
        for start in range(0, len(body), PIECE_BYTES):
            piece, has_more = body[start : start + PIECE_BYTES], start + PIECE_BYTES < len(body)
            await send({"type": "http.response.body", "body": piece, "more_body": has_more})


def make_docs_router(pages: FastAPI) -> APIRouter:
    """The pages of `pages`, none of them part of the OpenAPI page."""
    router = APIRouter()

    def add(path: str, make: Callable[[], Response]) -> None:
        made = cache(make)  # not before somebody asks: the OpenAPI page takes a tenth of a second

        async def get_page(_: Request) -> Response:
            return made()

        router.add_route(path, get_page, include_in_schema=False)

    # The package is there for its files alone: found, never imported.
    package = find_spec("fastapi_offline")
    if package is None or package.origin is None:
        raise Refusal("the package fastapi-offline is not installed; install the gateway's wheel with its dependencies")
    files = Path(package.origin).with_name("static")
    for name in (SCRIPT, STYLE, ICON):
        content, headers = (files / name).read_bytes(), {"Cache-Control": "public, max-age=86400"}
        add(f"/docs/{name}", partial(Page, content, headers=headers, media_type=guess_type(name)[0]))
    docs = get_swagger_ui_html(
        openapi_url=OPENAPI,
        title=pages.title,
        swagger_js_url=f"/docs/{SCRIPT}",
        swagger_css_url=f"/docs/{STYLE}",
        swagger_favicon_url=f"/docs/{ICON}",
    )
    add("/docs", lambda: docs)
    add(OPENAPI, lambda: Page(orjson.dumps(pages.openapi()), media_type="application/json"))
    return router
