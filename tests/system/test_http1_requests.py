"""What the upstream client sends, what it refuses to send, and where."""

from __future__ import annotations

import asyncio

import pytest
from gateway.wire.origin import Origin

from tests.support.scripted import OK, backend, pool


async def test_request_goes_out_as_given_with_host_and_length() -> None:
    async with backend() as server, pool(server) as client:
        task = asyncio.create_task(client.request(b"POST", b"/v1/x?a=b", b"x-a: 1\r\nx-b:2\r\n", b"body"))
        peer = await server.accept()
        host = f"127.0.0.1:{server.port}".encode()
        expected = b"POST /v1/x?a=b HTTP/1.1\r\nHost: %b\r\nx-a: 1\r\nx-b:2\r\nContent-Length: 4\r\n\r\nbody" % host
        assert await peer.answer(OK) == expected
        assert await (await task).read(2) == b"ok"
        task = asyncio.create_task(client.request(b"GET", b"/", b""))
        assert await peer.answer(OK) == b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n" % host
        await (await task).read(2)
        task = asyncio.create_task(client.request(b"POST", b"/", b""))
        assert b"Content-Length: 0\r\n\r\n" in await peer.answer(OK)
        await task


@pytest.mark.parametrize(
    ("method", "target", "headers"),
    [
        (b"GET\r\nX: y", b"/", b""),
        (b"GET ", b"/", b""),
        (b"", b"/", b""),
        (b"GET", b"/ HTTP/1.1\r\nX: y", b""),
        (b"GET", b"/a b", b""),
        (b"GET", b"", b""),
        (b"GET", b"x", b""),
        (b"GET", b"/#x", b""),
        (b"GET", b"/\xc3\xa4", b""),
        (b"GET", b"/", b"x: y"),
        (b"GET", b"/", b"x:"),
        (b"GET", b"/", b"a: b\r\nx:"),
        (b"GET", b"/", b"x: y\n"),
        (b"GET", b"/", b"x: y\r\n\r\n"),
        (b"GET", b"/", b"x: y\rz: a\r\n"),
        (b"GET", b"/", b"x: y\r\n z\r\n"),
        (b"GET", b"/", b"x: \x00\r\n"),
        (b"GET", b"/", b"x y: z\r\n"),
        (b"GET", b"/", b": z\r\n"),
        (b"GET", b"/", b"a: b\r\nHOST: evil\r\n"),
        (b"GET", b"/", b"Content-length: 3\r\n"),
        (b"GET", b"/", b"transfer-encoding: chunked\r\n"),
    ],
)
async def test_what_would_break_a_request_is_not_sent(method: bytes, target: bytes, headers: bytes) -> None:
    async with backend() as server, pool(server) as client:
        with pytest.raises(ValueError, match=r"method|target|header"):
            await client.request(method, target, headers)
        assert (server.accepted, client.open_connections) == (0, 0)


@pytest.mark.parametrize(
    ("url", "host", "port", "tls", "prefix", "header"),
    [
        ("http://127.0.0.1:8088/v1", "127.0.0.1", 8088, False, b"/v1", b"127.0.0.1:8088"),
        ("http://Box.lan", "box.lan", 80, False, b"", b"box.lan"),
        ("https://box.lan:443/a/b/", "box.lan", 443, True, b"/a/b", b"box.lan"),
        ("https://box.lan:80/", "box.lan", 80, True, b"", b"box.lan:80"),
        ("http://[::1]:11434/v1", "::1", 11434, False, b"/v1", b"[::1]:11434"),
    ],
)
def test_origins(url: str, host: str, port: int, tls: bool, prefix: bytes, header: bytes) -> None:
    origin = Origin.parse(url)
    assert (origin.host, origin.port, origin.tls, origin.prefix, origin.host_header) == (
        host,
        port,
        tls,
        prefix,
        header,
    )


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("", "must begin with http"),
        ("box:8080", "must begin with http"),
        ("ftp://box", "must begin with http"),
        ("http://", "no valid host"),
        ("http://:80", "no valid host"),
        ("http://a..b-", "no valid host"),
        ("http://a%20b", "no valid host"),
        ("http://box:0", "port 0"),
        ("http://box:99999", "(?i)port"),
        ("http://box:x", "(?i)port"),
        ("http://[::1", "(?i)ipv6"),
        ("http://me:secret@box", "user or password"),
        ("http://box/?q", "query or fragment"),
        ("http://box/#f", "query or fragment"),
        ("http://box/ v1", "blanks"),
        ("http://bo\r\nx/", "blanks"),
        ("http://b\u00fcx/", "non-ASCII"),
    ],
)
def test_what_is_no_origin_is_refused_in_a_line(url: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as error:
        Origin.parse(url)
    assert "\n" not in str(error.value)
