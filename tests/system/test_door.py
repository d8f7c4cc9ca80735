"""Who may come in: tokens, addresses, sizes; nothing open by accident."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import httpx
import openai
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from gateway.api.docs import make_docs_router
from gateway.api.paths import OPEN_PATHS
from gateway.app import FEATURES

from tests.support.gateways import TOKEN, Gateway, gateway, write_files
from tests.support.sockets import connect, read_to_end, read_until
from tests.support.upstream import Upstream
from tests.support.waiting import PATIENCE_SEC

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


def test_trailers_are_no_headers(served: Gateway) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connect(served.port) as connection:
        connection.sendall(head + b"2\r\n{}\r\n0\r\nAuthorization: Bearer %b\r\n\r\n" % TOKEN.encode())
        assert read_until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize(("key", "status"), [("x" * 20, 401), (TOKEN, 413)])
def test_sdk_that_sends_more_than_it_may_reads_why(served: Gateway, key: str, status: int) -> None:
    """It sends all before it reads. Also when its connections are kept: none of them is one that has ended."""

    async def ask(client: openai.AsyncOpenAI) -> int:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.chat.completions.create(model="fast", messages=[{"role": "user", "content": "x" * 5_000_000}])
        return caught.value.status_code

    async def test() -> list[int]:
        url = f"http://127.0.0.1:{served.port}/v1"
        async with openai.AsyncOpenAI(api_key=key, base_url=url, max_retries=0, timeout=PATIENCE_SEC) as client:
            return await asyncio.gather(*(ask(client) for _ in range(8))) + [await ask(client) for _ in range(8)]

    assert asyncio.run(test()) == [status] * 16


@pytest.mark.parametrize(
    "value",
    ["", "Bearer", "Basic abc", f"Token {TOKEN}", f"Bearer {TOKEN}x", f"Bearer x{TOKEN}", "Bearer \x80"],
)
def test_wrong_tokens(served: Gateway, value: str) -> None:
    answer = served.client.get("/v1/models", headers=[(b"Authorization", value.encode("latin-1"))])
    assert answer.status_code == 401
    assert TOKEN not in answer.text


def test_scheme_is_case_insensitive(served: Gateway) -> None:
    assert served.client.get("/v1/models", headers={"Authorization": f"bearer {TOKEN}"}).status_code == 200


def test_several_tokens_replace_the_single_one(tmp_path: Path, backend: Upstream) -> None:
    write_files(tmp_path, backend.url)
    with gateway(
        tmp_path, GATEWAY_BEARER_TOKENS=f"first-token-0123456789, {TOKEN}", GATEWAY_BEARER_TOKEN="single-token-012345"
    ) as running:
        for token, status in (("first-token-0123456789", 200), (TOKEN, 200), ("single-token-012345", 401)):
            answer = running.client.get("/v1/models", headers={"Authorization": f"Bearer {token}"})
            assert answer.status_code == status


def test_addresses_outside_the_allowlist(tmp_path: Path, backend: Upstream) -> None:
    write_files(tmp_path, backend.url)
    with gateway(tmp_path, IP_ALLOWLIST="127.0.0.1") as running:
        assert running.chat("fast").status_code == 200
        transport = httpx.HTTPTransport(local_address="127.0.0.2")
        with httpx.Client(transport=transport, headers=dict(running.client.headers)) as other:
            answer = other.get(f"http://127.0.0.1:{running.port}/v1/models")
            assert answer.status_code == 403
            assert "IP_ALLOWLIST" in answer.json()["error"]["message"]


def test_size_guard_with_and_without_a_length(tmp_path: Path, backend: Upstream) -> None:
    write_files(tmp_path, backend.url)
    with gateway(tmp_path, MAX_REQUEST_BYTES="1000") as running:
        for content in (b"x" * 1001, (b"x" * 100 for _ in range(11))):
            answer = running.client.post("/v1/chat/completions", content=content)
            assert answer.status_code == 413
            assert "MAX_REQUEST_BYTES" in answer.json()["error"]["message"]
        assert running.chat("fast").status_code == 200


def test_length_of_too_many_digits_is_too_large(served: Gateway) -> None:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
    with connect(served.port) as connection:
        connection.sendall(f"{head}Content-Length: {'0' * 5000}2\r\n\r\n{{}}".encode())
        assert read_until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 413 ")


def test_never_ending_body_is_cut_at_the_limit(served: Gateway) -> None:
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Bearer {TOKEN}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    with connect(served.port) as connection:
        connection.sendall(head.encode())
        block = b"%x\r\n%b\r\n" % (65536, b"x" * 65536)
        sent = 0
        try:
            while sent < 50_000_000:
                sent += connection.send(block)
        except OSError:
            pass
        assert sent < 50_000_000
    assert served.client.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"GATEWAY_BEARER_TOKEN": "abc"}, "secrets.token_urlsafe"),
        ({"GATEWAY_BEARER_TOKEN": ""}, "GATEWAY_BEARER_TOKEN is not set"),
        ({"GATEWAY_BEARER_TOKEN": "change-me-in-production"}, "placeholder"),
        ({"GATEWAY_BEARER_TOKENS": f"{TOKEN},abc"}, "GATEWAY_BEARER_TOKENS is 3 characters long"),
        ({"GATEWAY_BEARER_TOKEN": "with a space in the token"}, "printable ASCII"),
        ({"GATEWAY_PORT": "70000"}, "GATEWAY_PORT"),
        ({"GATEWAY_BEARER_TOKEN": TOKEN, "IP_ALLOWLIST": "10.0.0.300"}, "IP_ALLOWLIST"),
    ],
)
def test_settings_that_refuse_to_start(
    refused: Callable[..., str], tmp_path: Path, settings: dict[str, str], says: str
) -> None:
    write_files(tmp_path, "http://127.0.0.1:9/v1")
    errors = refused(**settings)
    assert says in errors
    assert len(errors.splitlines()) == 1
    assert TOKEN not in errors
