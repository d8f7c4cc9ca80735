"""The last release, 59bad7e: a database that it has made, and its code out of the history."""

from __future__ import annotations

import io
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw
import pytest

ROOT = Path(__file__).parents[2]
COMMIT = "59bad7e"


@contextmanager
def last_release_file(path: Path) -> Iterator[apsw.Connection]:
    connection = apsw.Connection(str(path))
    connection.execute(Path(__file__).with_suffix(".sql").read_text())
    yield connection
    connection.close()


def last_release_code(directory: Path) -> Path:
    """Where its package can be imported from; skips the test where the history does not reach back to it."""
    command = ["git", "-C", str(ROOT), "archive", COMMIT, "gateway_pkg/src/gateway"]
    archive = subprocess.run(command, capture_output=True, check=False)
    if archive.returncode:
        pytest.skip(f"the last release, {COMMIT}, is not in this clone's history; type: git fetch --unshallow")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(directory, filter="data")
    return directory / "gateway_pkg/src"
