"""Bring one file to the control node, by URL or path, and hold it to its sha256.

What comes by URL is kept in `build/downloads/<sha256>`, once for all hosts. A download that breaks off goes on where it
stopped, in this run or in the next one.

usage: python -m release.download SOURCE SHA256 [--bytes SIZE]
prints the file's path
"""

from __future__ import annotations

import argparse
import http.client
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from release.wheelhouse import CHECKOUT, locked, sha256

DOWNLOADS = CHECKOUT / "build" / "downloads"
BLOCK = 1 << 20
RANGE_NOT_SATISFIABLE = 416
TRIES = 5  # each goes on where the one before broke off
SILENCE_SECONDS = 60
PROGRESS_SECONDS = 5


class DownloadError(Exception):
    """What the operator has to do, in one line."""


def fetch(source: str, digest: str, size: int | None = None, root: Path = DOWNLOADS) -> Path:
    """The file of `source`, a URL or a path that begins at the checkout.

    Raises:
        DownloadError: it cannot be had, is longer than `size` bytes, or has another sha256 than `digest`.
    """
    if "://" not in source:
        path = CHECKOUT / source
        if not path.is_file():
            raise DownloadError(f"{path} is missing; put the file there, or correct the path")
        return _checked(path, source, digest, size)
    if not source.startswith(("http://", "https://")):
        raise DownloadError(f"{source}: write an address that begins with https:// or http://, or a path")
    root.mkdir(parents=True, exist_ok=True)
    path, part = root / digest, root / f"{digest}.part"
    with locked(root / f".{digest}.lock"):
        if not path.exists():
            _download(source, part, size)
            try:
                _checked(part, source, digest, size)
            except DownloadError:
                part.unlink()
                raise
            part.rename(path)
    return path


def _checked(path: Path, source: str, digest: str, size: int | None) -> Path:
    have = path.stat().st_size
    if size not in (None, have):
        raise DownloadError(f"{source} has {have} bytes, not {size}; correct the size, or take another source")
    found = sha256(path)
    if found != digest:
        raise DownloadError(
            f"{source} has the sha256 {found}, not {digest}; correct the digest, or take another source"
        )
    return path


def _download(source: str, part: Path, size: int | None) -> None:
    reason: Exception | None = None
    for _ in range(TRIES):
        try:
            return _go_on(source, part, size)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == RANGE_NOT_SATISFIABLE:  # there is nothing more
                return None
            raise DownloadError(f"{source} answered {error.code} {error.reason}; correct the address") from error
        except (OSError, http.client.HTTPException) as error:
            reason = error
    raise DownloadError(f"{source}: {reason}; run again, and the download goes on where it broke off") from reason


def _go_on(source: str, part: Path, size: int | None) -> None:
    """Append what is missing; a server that cannot go on at a byte starts anew."""
    have = part.stat().st_size if part.exists() else 0
    if size is not None and have == size:
        return
    headers = {"Range": f"bytes={have}-"} if have else {}
    request = urllib.request.Request(source, headers=headers)  # noqa: S310 - fetch() lets http and https pass
    with urllib.request.urlopen(request, timeout=SILENCE_SECONDS) as answer:  # noqa: S310
        goes_on = answer.status == 206 and answer.headers["Content-Range"].startswith(f"bytes {have}-")
        have = have if goes_on else 0
        whole = have + (answer.length or 0)
        said = time.monotonic()
        with part.open("ab" if goes_on else "wb") as file:
            while block := answer.read(BLOCK):
                have += len(block)
                if size is not None and have > size:
                    raise DownloadError(
                        f"{source} is longer than {size} bytes; correct the size, or take another source"
                    )
                file.write(block)
                if time.monotonic() > said + PROGRESS_SECONDS:
                    said = time.monotonic()
                    print(
                        f"{source}: {have // 1_000_000} of {whole // 1_000_000 or '?'} MB", file=sys.stderr, flush=True
                    )
        if answer.length:
            raise http.client.IncompleteRead(b"", answer.length)


def main() -> None:
    parser = argparse.ArgumentParser(prog="release.download", description=__doc__)
    parser.add_argument("source")
    parser.add_argument("sha256")
    parser.add_argument("--bytes", type=int)
    options = parser.parse_args()
    try:
        print(fetch(options.source, options.sha256, options.bytes))
    except (DownloadError, OSError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
