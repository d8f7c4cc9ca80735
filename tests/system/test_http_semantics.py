"""Methods, versions, expectations and the ends of connections, row by row of RFC 9110 and RFC 9112."""

from __future__ import annotations

import pytest

from tests.support.gateways import TOKEN, Gateway
from tests.support.sockets import connect, read_until

ENDPOINT, PAGE, OBJECT, OPEN = "/v1/chat/completions", "/v1/models", "/v1/responses/resp_1", "/health"
OF_PAGES = "GET, HEAD, OPTIONS"


@pytest.mark.parametrize(
    ("path", "allow"),
    [(ENDPOINT, "OPTIONS, POST"), (PAGE, OF_PAGES), (OPEN, OF_PAGES), (OBJECT, f"DELETE, {OF_PAGES}")],
)
@pytest.mark.parametrize("method", ["OPTIONS", "PUT", "PATCH", "TRACE", "PROPFIND", "CONNECT"])
def test_allow_lists_what_a_path_takes(served: Gateway, path: str, allow: str, method: str) -> None:
    answer = served.client.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (200 if method == "OPTIONS" else 405, allow)


def test_every_page_answers_to_head_as_to_get(served: Gateway) -> None:
    pages = [path for path, item in served.client.get("/openapi.json").json()["paths"].items() if "get" in item]
    assert len(pages) > 8
    for path in pages:
        whole, head = served.client.get(path), served.client.head(path)
        assert head.status_code == whole.status_code, path
        assert head.headers.get("content-type") == whole.headers.get("content-type"), path
        assert head.content == b""


def test_openapi_page_lists_no_head(served: Gateway) -> None:
    assert not any("head" in item for item in served.client.get("/openapi.json").json()["paths"].values())


HOST, AUTH = b"Host: x\r\n", b"Authorization: Bearer " + TOKEN.encode() + b"\r\n"
POST, BODY = b"POST /v1/embeddings HTTP/1.1\r\n" + HOST + AUTH, b"Content-Length: 2\r\n\r\n"


@pytest.mark.parametrize(
    ("request_", "status", "closes"),
    [
        pytest.param(b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n", 200, False, id="1.1 stays open"),
        pytest.param(b"GET /health HTTP/1.1\r\nConnection: close\r\n" + HOST + b"\r\n", 200, True, id="close"),
        pytest.param(b"GET /health HTTP/1.0\r\n\r\n", 200, True, id="1.0"),
        pytest.param(b"GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", 200, True, id="1.0 keep-alive"),
        pytest.param(b"GET /health HTTP/1.2\r\n" + HOST + b"\r\n", 505, True, id="1.2"),
        pytest.param(b"GET /health HTTP/2.0\r\n" + HOST + b"\r\n", 505, True, id="2.0"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, True, id="HTTP/2 in clear"),
        pytest.param(b"GET /health\r\n\r\n", 505, True, id="0.9"),
        pytest.param(b"FOO /health HTTP/1.1\r\n" + HOST + b"\r\n", 501, True, id="unknown method"),
        pytest.param(b"get /health HTTP/1.1\r\n" + HOST + b"\r\n", 501, True, id="lower case"),
        pytest.param(b"GET http://x/health HTTP/1.1\r\n" + HOST + b"\r\n", 200, False, id="absolute form"),
        pytest.param(b"OPTIONS * HTTP/1.1\r\n" + HOST + AUTH + b"\r\n", 200, False, id="asterisk form"),
        pytest.param(b"\r\n\r\nGET /health HTTP/1.1\r\n" + HOST + b"\r\n", 200, False, id="blank lines before"),
        pytest.param(b"GET /health HTTP/1.1\n" + HOST + b"\n", 400, True, id="bare line feeds"),
        pytest.param(
            POST + b"Expect: 100-Continue\r\n" + BODY,
            100,
            False,
            id="expectation",
        ),
        pytest.param(
            b"POST /v1/embeddings HTTP/1.1\r\nExpect: 200-ok\r\n" + HOST + AUTH + BODY,
            417,
            True,
            id="other expectation",
        ),
        pytest.param(
            POST.replace(b"1.1", b"1.0", 1) + b"Expect: 100-continue\r\n" + BODY + b"{}",
            400,
            True,
            id="expectation of 1.0",
        ),
    ],
)
def test_request_on_a_bare_socket(served: Gateway, request_: bytes, status: int, closes: bool) -> None:
    with connect(served.port) as connection:
        connection.sendall(request_)
        head = read_until(connection, b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status), head
        if status == 100:
            return
        assert (b"\r\nconnection: close\r\n" in head.lower()) is closes
        if closes:
            while connection.recv(65536):
                pass


@pytest.mark.parametrize("piece", [4_000, 65_536, 1_000_000])
@pytest.mark.parametrize(("size", "status"), [(65_400, 200), (65_600, 431), (130_000, 431)])
def test_head_of_64_kib_passes_and_no_larger_one(served: Gateway, size: int, status: int, piece: int) -> None:
    request = b"GET /health HTTP/1.1\r\n" + HOST + b"X-A: " + b"a" * (size - 42) + b"\r\n\r\n"
    with connect(served.port) as connection:
        for start in range(0, len(request), piece):
            connection.sendall(request[start : start + piece])
        assert read_until(connection, b"\r\n\r\n").startswith(b"HTTP/1.1 %d " % status)
