"""The open pages that stay as they are: `/openapi.json`, and `/docs`, Swagger UI.

Its files come from this host, since a private network may have no other. Anybody may ask for these pages, so each is
made once and then costs no more than its sending.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
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
    # The package is there for its files alone: found, never imported.
    package = find_spec("fastapi_offline")
    if package is None or package.origin is None:
        raise Refusal("the package fastapi-offline is not installed; install the gateway's wheel with its dependencies")
    files = Path(package.origin).with_name("static")
    docs = get_swagger_ui_html(
        openapi_url=OPENAPI,
        title=pages.title,
        swagger_js_url=f"/docs/{SCRIPT}",
        swagger_css_url=f"/docs/{STYLE}",
        swagger_favicon_url=f"/docs/{ICON}",
    )
    router.add_route("/docs", _always(partial(_same, docs)), include_in_schema=False)
    # Not before somebody asks: it takes a tenth of a second.
    openapi = cache(lambda: Page(orjson.dumps(pages.openapi()), media_type="application/json"))
    router.add_route(OPENAPI, _always(openapi), include_in_schema=False)
    for name in (SCRIPT, STYLE, ICON):
        file = Page((files / name).read_bytes(), 200, {"Cache-Control": "public, max-age=86400"}, guess_type(name)[0])
        router.add_route(f"/docs/{name}", _always(partial(_same, file)), include_in_schema=False)
    return router


def _same(page: Response) -> Response:
    return page


def _always(page: Callable[[], Response]) -> Callable[[Request], Awaitable[Response]]:
    async def get_page(_: Request) -> Response:
        return page()

    return get_page
