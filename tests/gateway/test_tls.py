"""TLS on the gateway's own listener; its backends' side is in test_http1_dial.py."""

from pathlib import Path

from tests.gateway.authority import LOCAL, Authority
from tests.gateway.conftest import gateway, write_files
from tests.gateway.upstream import DONE, Upstream


def test_listener_speaks_https(tmp_path: Path, backend: Upstream) -> None:
    authority = Authority(tmp_path)
    authority.server(*LOCAL)
    pem = str(tmp_path / "server.pem")
    write_files(tmp_path, backend.url)
    with gateway(tmp_path, authority.client(), GATEWAY_TLS_CERT_PATH=pem, GATEWAY_TLS_KEY_PATH=pem) as running:
        assert running.chat("fast").status_code == 200
        assert running.chat("fast", stream=True).content.endswith(DONE)
