"""What the documented pages answer where they have no answer of their own."""

from __future__ import annotations

from difflib import get_close_matches

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.routing import compile_path

from gateway.errors import ApiError

METHODS = "DELETE, GET, HEAD, OPTIONS, POST"  # of all paths together


def answer_errors(pages: FastAPI, paths: list[str]) -> None:
    """Makes `pages` answer errors in OpenAI's shape; `paths` may be meant where no such path is."""
    pages.state.paths = paths
    for error in (ApiError, HTTPException, RequestValidationError):
        pages.add_exception_handler(error, _answer_error)


def _no_such_path(request: Request) -> str:
    path = request.scope["path"][:200]
    near = get_close_matches(path, request.app.state.paths, n=1)
    return f"There is no {path}; {f'did you mean {near[0]}?' if near else '/docs lists the paths'}"


def _methods(request: Request) -> str:
    """What a path takes, for `Allow`; Starlette tells those of the first route alone."""
    methods = {"OPTIONS"}
    for route in iter_route_contexts(request.app.routes):
        if compile_path(route.path or "")[0].match(request.scope["path"]):
            methods |= route.methods or set()
    if "GET" in methods:
        methods.add("HEAD")
    return ", ".join(sorted(methods))


async def _answer_error(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        allow = METHODS if request.scope["path"] == "*" else _methods(request) if error.status_code == 405 else ""
        if allow and request.method == "OPTIONS":
            return Response(headers={"allow": allow})
        error = ApiError(
            error.status_code,
            _no_such_path(request) if error.status_code == 404 else str(error.detail),
            code={404: "not_found", 405: "method_not_allowed"}.get(error.status_code),
            headers=((b"allow", allow.encode()),) if error.status_code == 405 else (),
        )
    if isinstance(error, RequestValidationError):
        problem = error.errors()[0]
        error = ApiError(
            400, f"Invalid request: {problem['msg']}", param=".".join(map(str, problem["loc"][1:])) or None
        )
    if not isinstance(error, ApiError):
        raise error
    headers = {name.decode(): value.decode() for name, value in error.headers}
    return Response(error.body(), error.status, headers, "application/json")
