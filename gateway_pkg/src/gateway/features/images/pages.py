"""The stored files, which clients fetch."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import FileResponse

from gateway.backends.protocols.image_formats import MEDIA_TYPES
from gateway.errors import ApiError
from gateway.features.images.store import MediaStore

# A browser must not run what a backend, or a prompt, has put into an SVG.
_INERT = {"content-disposition": "attachment", "content-security-policy": "sandbox; default-src 'none'"}


def make_media_router(store: MediaStore, prefix: str) -> APIRouter:
    """`GET` of `{prefix}/{name}`: an open route, since the name is the key."""
    router = APIRouter()

    async def get_file(name: str) -> FileResponse:
        path = await store.find(name)
        if path is None:
            raise ApiError(404, "There is no such image; stored ones expire", code="not_found")
        kind = path.suffix[1:]
        headers = {"cache-control": f"private, max-age={store.ttl_sec}, immutable", "x-content-type-options": "nosniff"}
        return FileResponse(path, media_type=MEDIA_TYPES[kind], headers=headers | (_INERT if kind == "svg" else {}))

    content = {media: {"schema": {"type": "string", "format": "binary"}} for media in MEDIA_TYPES.values()}
    router.add_api_route(
        f"{prefix}/{{name}}",
        get_file,
        tags=["files"],
        summary="Fetch a stored image",
        operation_id="get_image",
        response_class=FileResponse,
        responses={
            200: {"description": "The file", "content": content},
            206: {"description": "Ranges of it", "content": {**content, "multipart/byteranges": {}}},
            400: {"description": "`Range` cannot be read", "content": {"text/plain": {}}},
            404: {"description": "Unknown or expired name"},
            416: {"description": "There is no such range", "content": {"text/plain": {}}},
        },
    )
    return router
