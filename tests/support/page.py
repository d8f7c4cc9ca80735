"""The OpenAPI page of a gateway that does not run, and what it is made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi.routing import RouteContext, iter_route_contexts
from gateway.app import FEATURES, App, load_settings
from gateway.features.face import Feature
from gateway.web.endpoint import Endpoint

from tests.support.gateways import TOKEN, write_files

BODIES = [
    "/rerank",
    "/v1/audio/speech",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/images/generations",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/music/generations",
    "/v1/rerank",
    "/v1/responses",
    "/v1/responses/compact",
    "/v1/responses/input_tokens",
    "/v1/tts/generations",
    "/v2/rerank",
]
FORMS = ["/v1/audio/transcriptions", "/v1/audio/translations", "/v1/images/edits"]
REQUIRED: dict[str, Any] = {
    "documents": ["a"],
    "input": "Hi",
    "max_tokens": 5,
    "messages": [{"role": "user", "content": "Hi"}],
    "model": "default",
    "prompt": "Hi",
    "query": "q",
}


@dataclass
class Page:
    """The document, and what it is made of."""

    document: dict[str, Any]
    endpoints: dict[str, Endpoint]
    routes: list[RouteContext]

    def operations(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        for path, item in self.document["paths"].items():
            for method, operation in item.items():
                yield method, path, operation

    def body(self, path: str) -> dict[str, Any]:
        """The schema of what is posted there, JSON or else a form, if there is one."""
        content = next(iter(self.document["paths"][path]["post"]["requestBody"]["content"].values()))
        schema: dict[str, Any] = content["schema"]
        if reference := schema.get("$ref"):
            schema = self.document["components"]["schemas"][reference.rpartition("/")[2]]
        return schema


def built(home: Path, features: Sequence[type[Feature]] = FEATURES, **given: Any) -> App:
    """A gateway that does not run, of the files that `write_files` writes into `home`."""
    files = {"gateway_backends_path": "backends.yaml", "model_aliases_path": "model_aliases.json"}
    given = {name: home / file for name, file in files.items()} | {"request_log_enabled": False} | given
    given |= {"gateway_bearer_token": TOKEN, "gateway_db_path": home / "data/gateway.sqlite"}
    return App(load_settings(None, features, **given), features)


def read_page(home: Path) -> Page:
    """The page of a gateway whose files are in `home`."""
    write_files(home, "http://127.0.0.1:1/v1")
    app = built(home)
    endpoints = {endpoint.path: endpoint for endpoint, _ in app.endpoints}
    pages = app.pages.made()
    return Page(pages.openapi(), endpoints, list(iter_route_contexts(pages.routes)))
