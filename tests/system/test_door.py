"""Who may come in: tokens, addresses, sizes; nothing open by accident."""

import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from gateway.api.docs import make_docs_router
from gateway.api.paths import OPEN_PATHS
from gateway.app import FEATURES

from tests.support.gateways import TOKEN, Gateway, write_files
from tests.support.ports import free_ports
from tests.support.sockets import connect, read_to_end, read_until

DOCS = {"/docs", "/docs/swagger-ui-bundle.js", "/docs/swagger-ui.css", "/docs/favicon.png"}
OPEN = {"/health", "/readyz", "/openapi.json", *DOCS}
# Stored images, by the sha256 of their bytes: a name that nobody can guess.
OPEN_DIRECTORIES = ("/ui/images/",)
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")


def test_nothing_else_is_open() -> None:
    assert set(OPEN_PATHS) == OPEN
    assert tuple(directory for feature in FEATURES for directory in feature.open_directories) == OPEN_DIRECTORIES


def test_every_route_but_the_open_ones_asks_for_a_token(served: Gateway) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{served.port}", trust_env=False) as stranger:
        page = stranger.get("/openapi.json").json()
        paths = {
            *page["paths"],
            *DOCS,
            "/openapi.json",
            "/docs/oauth2-redirect",
            "/redoc",
            "/nowhere",
            "/",
            "//health",
            "/health/",
            "/HEALTH",
            "/ui/images",
        }
        assert len(page["paths"]) > 20
        for path in paths:
            is_open = path in OPEN or path.startswith(OPEN_DIRECTORIES)
            for operation in page["paths"].get(path, {}).values():
                assert ("security" not in operation) == is_open, path
            for method in METHODS:
                answer = stranger.request(method, re.sub(r"\{.*?\}", "x", path))
                if is_open:
                    assert answer.status_code != 401, (method, path)
                else:
                    assert answer.status_code == 401, (method, path)
                    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("way", ["../..", "..%2f..", "%2e%2e/%2e%2e", "..\\..", "/..", "x/../../.."])
def test_open_directories_lead_nowhere_else(served: Gateway, way: str) -> None:
    for target in (f"/ui/images/{way}/v1/models", f"/docs/{way}/v1/models"):
        with connect(served.port) as connection:
            connection.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            answer = read_to_end(connection)
        assert answer.split(b" ")[1] in (b"401", b"404"), target
        assert b"echo" not in answer


def test_docs_need_no_other_host(served: Gateway) -> None:
    with httpx.Client(base_url=f"http://127.0.0.1:{served.port}", trust_env=False) as stranger:
        page = stranger.get("/docs").text
        assert set(re.findall(r'(?:src|href)="([^"]+)"', page)) == DOCS - {"/docs"}
        for path in DOCS:
            assert stranger.get(path).status_code == 200


def test_open_pages_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody may ask for them as often as it likes."""
    pages = FastAPI(openapi_url=None)
    made = Mock(return_value={})
    monkeypatch.setattr(pages, "openapi", made)
    pages.include_router(make_docs_router(pages))
    with TestClient(pages) as client:
        assert [client.get("/openapi.json").json() for _ in range(3)] == [{}] * 3
    assert made.call_count == 1


@pytest.mark.parametrize(
    ("value", "status"),
    [
        (f"bearer {TOKEN}", 200),  # the scheme is case-insensitive
        *((wrong, 401) for wrong in ("", "Bearer", "Basic abc", f"Token {TOKEN}", "Bearer \x80")),
        *((wrong, 401) for wrong in (f"Bearer {TOKEN}x", f"Bearer x{TOKEN}")),
    ],
)
def test_tokens(served: Gateway, value: str, status: int) -> None:
    answer = served.client.get("/v1/models", headers=[(b"Authorization", value.encode("latin-1"))])
    assert answer.status_code == status
    assert TOKEN not in answer.text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("x-backend", "test"), ("x-backend", "other")], 400),
        ([("authorization", "Bearer another-token-0123456789")], 400),
        ([("x-api-key", "a"), ("x-api-key", "b")], 400),
        ([("x-backend", "test"), ("x-backend", "test"), ("x-own", "a"), ("x-own", "b")], 200),
        ([("x-api-key", "another")], 200),
    ],
)
def test_a_header_that_decides_has_one_value(served: Gateway, headers: list[tuple[str, str]], status: int) -> None:
    sent = [*served.client.headers.multi_items(), *headers]
    body = {"model": "echo", "messages": [{"role": "user", "content": "Hi"}]}
    request = httpx.Request("POST", served.client.base_url.join("/v1/chat/completions"), headers=sent, json=body)
    answer = served.client.send(request)
    assert answer.status_code == status, answer.text
    if status == 400:
        assert answer.json()["error"]["param"] == headers[-1][0]


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/images/edits"])
@pytest.mark.parametrize("again", ["model", "Model"])
def test_a_route_of_forms_refuses_a_second_model(served: Gateway, path: str, again: str) -> None:
    file = ("image" if "images" in path else "file", ("f.png", b"x"))
    fields: Any = [("model", (None, "m")), (again, (None, "m")), file, ("prompt", (None, "p"))]
    answer = served.client.post(path, files=fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model"), answer.text


def test_length_of_too_many_digits_is_too_large(served: Gateway) -> None:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
    with connect(served.port) as connection:
        connection.sendall(f"{head}Content-Length: {'0' * 5000}2\r\n\r\n".encode())
        assert read_until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"GATEWAY_BEARER_TOKEN": "abc"}, "secrets.token_urlsafe"),
        ({"GATEWAY_BEARER_TOKEN": ""}, "GATEWAY_BEARER_TOKEN is not set"),
        ({"GATEWAY_BEARER_TOKEN": "change-me-in-production"}, "placeholder"),
        ({"GATEWAY_BEARER_TOKENS": f"{TOKEN},abc"}, "GATEWAY_BEARER_TOKENS is 3 characters long"),
        ({"GATEWAY_BEARER_TOKEN": "with a space in the token"}, "printable ASCII"),
        ({"GATEWAY_PORT": "70000"}, "GATEWAY_PORT"),
        ({"IP_ALLOWLIST": "10.0.0.300"}, "IP_ALLOWLIST"),
        ({"TRUST_PROXY_CIDRS": "10.0.0.0/33"}, "TRUST_PROXY_CIDRS"),
        ({"GATEWAY_TOKEN_POLICIES_JSON": f'{{"{TOKEN}": {{"requests_per_min": 5}}}}'}, "'requests_per_minute'"),
        ({"GATEWAY_TOKEN_POLICIES_PATH": "/nowhere/policies.json"}, "does not exist"),
        ({"GATEWAY_TLS_CERT_PATH": "/dev/null"}, "set both, or neither"),
        ({"GATEWAY_TLS_CERT_PATH": "/dev/null", "GATEWAY_TLS_KEY_PATH": "/dev/null"}, "give two PEM files"),
        ({"GATEWAY_TLS_CERT_PATH": "/no.pem", "GATEWAY_TLS_KEY_PATH": "/no.pem"}, "No such file"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"}, "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ({}, "base_ulr"),
    ],
)
def test_settings_that_refuse_to_start(
    refused: Callable[..., str], tmp_path: Path, settings: dict[str, str], says: str
) -> None:
    """And a file, where it is not a setting that is wrong."""
    misspelt: Any = {} if settings else {"base_ulr": "x"}
    write_files(tmp_path, "http://127.0.0.1:9/v1", **misspelt)
    port, observe_port = map(str, free_ports(2))
    errors = refused(**{"GATEWAY_PORT": port, "OBSERVABILITY_PORT": observe_port, **settings})
    assert says in errors
    assert len(errors.splitlines()) == 1
    assert TOKEN not in errors


def test_taken_port_is_a_refusal(refused: Callable[..., str], tmp_path: Path) -> None:
    write_files(tmp_path, "http://127.0.0.1:9/v1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} on 127.0.0.1 is taken" in refused(GATEWAY_PORT=str(port))
