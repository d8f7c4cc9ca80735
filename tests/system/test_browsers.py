"""Pages in a browser: the answers that a browser needs before it lets a page read anything."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.support.gateways import Gateway, gateway, refused, write_files
from tests.support.upstream import Upstream

__all__ = ["refused"]

GOOD, OTHER = "https://chat.example.org", "https://chat.example.org.evil.example"
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def open_to_pages(tmp_path_factory: pytest.TempPathFactory, backend: Upstream) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("pages")
    write_files(home, backend.url)
    with gateway(home, CORS_ALLOW_ORIGINS=f"{GOOD}, http://localhost:3000") as running:
        yield running


def preflight(running: Gateway, origin: str, path: str = CHAT, headers: str = "authorization") -> httpx.Response:
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": headers}
    return httpx.options(f"http://127.0.0.1:{running.port}{path}", headers=asked, trust_env=False)


@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/v1/responses/resp_1", "/nowhere"])
def test_preflight_of_a_page_that_may_call_needs_no_token(open_to_pages: Gateway, path: str) -> None:
    answer = preflight(open_to_pages, GOOD, path, "authorization, content-type, x-stainless-os")
    assert (answer.status_code, answer.content) == (200, b"")
    allowed = {
        name.removeprefix("access-control-"): value for name, value in answer.headers.items() if "control" in name
    }
    assert allowed["allow-origin"] == GOOD
    assert "POST" in allowed["allow-methods"]
    assert allowed["allow-headers"] == "authorization, content-type, x-stainless-os"
    assert "allow-credentials" not in allowed


def test_preflight_of_another_page_names_the_setting(open_to_pages: Gateway, served: Gateway) -> None:
    for running, origin in ((open_to_pages, OTHER), (served, GOOD)):
        answer = preflight(running, origin)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "origin_not_allowed")
        assert "CORS_ALLOW_ORIGINS" in answer.text
        assert "access-control-allow-origin" not in answer.headers


def test_page_may_read_every_answer(open_to_pages: Gateway) -> None:
    client, headers = open_to_pages.client, {"Origin": GOOD}
    chat = {"model": "echo", "messages": [{"role": "user", "content": "Hi"}]}
    answers = [
        client.post(CHAT, json=chat, headers=headers),
        client.post(CHAT, json={**chat, "stream": True}, headers=headers),
        client.post(CHAT, json={**chat, "model": "nowhere"}, headers=headers),
        client.post(CHAT, content="{", headers=headers),
        client.get("/v1/models", headers=headers),
        client.get("/nowhere", headers=headers),
        httpx.get(str(client.base_url.join("/v1/models")), headers=headers, trust_env=False),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 404, 400, 200, 404, 401]
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == GOOD
        assert answer.headers["vary"] == "Origin"


def test_request_of_another_page_is_as_without_origin(open_to_pages: Gateway) -> None:
    answer = open_to_pages.client.get("/v1/models", headers={"Origin": OTHER})
    assert answer.status_code == 200
    assert not any("access-control" in name for name in answer.headers)


def test_origin_with_a_path_is_refused_at_start(refused: object) -> None:
    said = refused(CORS_ALLOW_ORIGINS=f"{GOOD}/")  # type: ignore[operator]  # a fixture that runs the gateway
    assert f"CORS_ALLOW_ORIGINS: '{GOOD}/' is no origin; write scheme and host" in said
