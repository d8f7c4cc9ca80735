"""TLS on the gateway's own listener; its backends' side is in test_http1_dial.py."""

import asyncio
import contextlib
import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from gateway.app import load_settings
from gateway.backends.settings import UpstreamSettings
from gateway.backends.tls import client_context
from gateway.errors import Refusal

from tests.support.authority import LOCAL, Authority
from tests.support.gateways import gateway, write_files
from tests.support.upstream import DONE, Upstream


def test_listener_speaks_https(tmp_path: Path, backend: Upstream) -> None:
    authority = Authority(tmp_path)
    authority.server(*LOCAL)
    pem = str(tmp_path / "server.pem")
    write_files(tmp_path, backend.url)
    with gateway(tmp_path, authority.client(), GATEWAY_TLS_CERT_PATH=pem, GATEWAY_TLS_KEY_PATH=pem) as running:
        assert running.chat("fast").status_code == 200
        assert running.chat("fast", stream=True).content.endswith(DONE)


@pytest.mark.parametrize("brings", [True, False])
async def test_backend_may_ask_who_the_gateway_is(tmp_path: Path, brings: bool) -> None:
    authority = Authority(tmp_path)
    server_context = authority.server(*LOCAL)
    bundle = tmp_path / "ca.pem"
    bundle.write_bytes(authority.certificate.public_bytes(Encoding.PEM))
    server_context.verify_mode = ssl.CERT_REQUIRED
    server_context.load_verify_locations(bundle)
    own = str(tmp_path / "server.pem") if brings else ""
    context = client_context(load_settings(backend_ca_bundle=bundle, backend_client_cert=own)[UpstreamSettings])

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"welcome")
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0, ssl=server_context) as server:
        port = server.sockets[0].getsockname()[1]
        said = b""
        with contextlib.suppress(OSError):  # with TLS 1.3 a refusal is a reset, or the end
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
            said = await reader.read()
            writer.transport.abort()
        assert said == (b"welcome" if brings else b"")


def test_wrong_client_certificate_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "client.pem"
    path.write_text("none")
    with pytest.raises(Refusal, match="BACKEND_CLIENT_CERT"):
        client_context(load_settings(backend_client_cert=str(path))[UpstreamSettings])
