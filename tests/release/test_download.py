"""Downloads of the control node: resumed, held to size and digest, refused in one line."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from release.download import TRIES, DownloadError, fetch
from tests.support.http_server import Handler, http_server
from tests.support.ports import NOBODYS

CONTENT = bytes(range(256)) * 20_000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Server:
    """Serves CONTENT; `cuts` are the bytes after which the next answers break off, `ranges` what was asked for."""

    url: str = ""
    cuts: list[int] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)
    goes_on: bool = True


class Answers(Handler):
    protocol_version = "HTTP/1.0"  # an answer that breaks off ends its connection
    of: Server

    def do_GET(self) -> None:  # noqa: N802 - http.server's name
        asked = self.headers.get("Range")
        self.of.ranges.append(asked)
        found = re.fullmatch(r"bytes=(\d+)-", asked or "")
        start = int(found[1]) if found and self.of.goes_on else 0
        if self.path != "/model.gguf" or start >= len(CONTENT):
            self.send_error(416 if start else 404)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        end = start + self.of.cuts.pop(0) if self.of.cuts else len(CONTENT)
        with suppress(ConnectionError):  # the client has seen enough
            self.wfile.write(CONTENT[start:end])


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    with http_server(type("Of", (Answers,), {"of": server})) as port:
        server.url = f"http://127.0.0.1:{port}/model.gguf"
        yield server


def test_a_file_is_fetched_once(server: Server, tmp_path: Path) -> None:
    assert fetch(server.url, DIGEST, len(CONTENT), tmp_path).read_bytes() == CONTENT
    assert fetch(server.url, DIGEST, len(CONTENT), tmp_path) == tmp_path / DIGEST
    assert server.ranges == [None]


def test_a_download_that_breaks_off_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.cuts = [1000, 2000]
    assert fetch(server.url, DIGEST, root=tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1000-", "bytes=3000-"]


def test_the_next_run_goes_on_too(server: Server, tmp_path: Path) -> None:
    server.cuts = [10] * TRIES
    with pytest.raises(DownloadError, match="run again, and the download goes on where it broke off"):
        fetch(server.url, DIGEST, root=tmp_path)
    assert fetch(server.url, DIGEST, root=tmp_path).read_bytes() == CONTENT
    assert server.ranges[-1] == f"bytes={10 * TRIES}-"


@pytest.mark.parametrize("size", [None, len(CONTENT)])
def test_a_complete_partial_file_is_checked_without_another_request(
    server: Server, tmp_path: Path, size: int | None
) -> None:
    (tmp_path / f"{DIGEST}.part").write_bytes(CONTENT)
    assert fetch(server.url, DIGEST, size, tmp_path).read_bytes() == CONTENT


def test_a_server_that_cannot_go_on_starts_anew(server: Server, tmp_path: Path) -> None:
    server.cuts, server.goes_on = [1000], False
    assert fetch(server.url, DIGEST, root=tmp_path).read_bytes() == CONTENT


def test_a_wrong_digest_or_size_is_refused_and_nothing_kept(server: Server, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_bytes(CONTENT)
    for source in (server.url, str(own)):
        for digest, size, said in [
            ("0" * 64, None, f"{source} has the sha256 {DIGEST}, not {'0' * 64}; correct the digest"),
            (DIGEST, len(CONTENT) + 1, f"{source} has {len(CONTENT)} bytes, not {len(CONTENT) + 1}; correct the size"),
        ]:
            with pytest.raises(DownloadError, match=re.escape(said)):
                fetch(source, digest, size, tmp_path / "downloads")
    with pytest.raises(DownloadError, match="is longer than 1000 bytes; correct the size"):
        fetch(server.url, DIGEST, 1000, tmp_path / "downloads")
    assert [path for path in (tmp_path / "downloads").iterdir() if path.stat().st_size > 1000] == []


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{url}.other", "answered 404 Not Found; correct the address"),
        (f"http://127.0.0.1:{NOBODYS}/x", "Connection refused>; run again"),
        ("ftp://example.com/x", "write an address that begins with https:// or http://, or a path"),
        ("no/such/file", "no/such/file is missing; put the file there, or correct the path"),
    ],
)
def test_a_source_that_cannot_be_read_is_refused(server: Server, tmp_path: Path, source: str, said: str) -> None:
    with pytest.raises(DownloadError, match=re.escape(said)) as refusal:
        fetch(source.format(url=server.url), DIGEST, root=tmp_path)
    assert "\n" not in str(refusal.value)
