"""`/docs`: Swagger UI, with its files from this host, since a private network may have no other."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from pathlib import Path

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import FileResponse, HTMLResponse

from gateway.refusal import Refusal

SCRIPT, STYLE, ICON = "swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"
PATHS = ("/docs", *(f"/docs/{name}" for name in (SCRIPT, STYLE, ICON)))


def make_docs_router(title: str) -> APIRouter:
    """The page and the files that it loads, none of them part of the OpenAPI page."""
    router = APIRouter(include_in_schema=False)
    # The package is there for its files alone: found, never imported.
    package = find_spec("fastapi_offline")
    if package is None or package.origin is None:
        raise Refusal("the package fastapi-offline is not installed; install the gateway's wheel with its dependencies")
    files = Path(package.origin).with_name("static")

    @router.get("/docs")
    async def get_docs() -> HTMLResponse:
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title=title,
            swagger_js_url=f"/docs/{SCRIPT}",
            swagger_css_url=f"/docs/{STYLE}",
            swagger_favicon_url=f"/docs/{ICON}",
        )

    for name in (SCRIPT, STYLE, ICON):
        router.add_api_route(f"/docs/{name}", _file(files / name))
    return router


def _file(path: Path) -> Callable[[], Awaitable[FileResponse]]:
    async def get_file() -> FileResponse:
        return FileResponse(path, headers={"Cache-Control": "public, max-age=86400"})

    return get_file
