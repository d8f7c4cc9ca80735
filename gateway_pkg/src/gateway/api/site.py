"""The routes that are no endpoints, and the page that describes all. FastAPI is imported here and by what is only
imported here: it takes as long to import as all the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from operator import attrgetter

from fastapi import APIRouter, FastAPI
from fastapi.routing import iter_route_contexts

from gateway import __version__
from gateway.api.docs import make_docs_router
from gateway.api.errors import answer_errors
from gateway.api.openapi import openapi_page
from gateway.web.endpoint import Endpoint


def make_site(
    routers: Iterable[APIRouter],
    endpoints: Sequence[Endpoint],
    tags: Mapping[str, str],
    open_directories: tuple[str, ...],
) -> FastAPI:
    """`tags` and `open_directories` are those of the features."""
    app = FastAPI(
        title="AI Appliance gateway",
        version=__version__,
        openapi_url=None,
        generate_unique_id_function=attrgetter("name"),
    )
    for router in routers:
        app.include_router(router)
    app.include_router(make_docs_router(app))
    # FastAPI's documented way to extend the page.
    app.openapi = partial(openapi_page, app, endpoints, tags, open_directories)  # type: ignore[method-assign]
    paths = [route.path or "" for route in iter_route_contexts(app.routes)]
    answer_errors(app, [*(endpoint.path for endpoint in endpoints), *paths])
    return app
