"""The last release, 59bad7e: a database that it has made, and its code out of the history."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw

ROOT = Path(__file__).parents[2]
COMMIT = "59bad7e"


@contextmanager
def last_release_file(path: Path) -> Iterator[apsw.Connection]:
    connection = apsw.Connection(str(path))
    connection.execute(Path(__file__).with_suffix(".sql").read_text())
    yield connection
    connection.close()


def last_release_code(directory: Path) -> Path | None:
    """Where its package can be imported from; None where the clone's history does not reach back to it."""
    command = ["git", "-C", str(ROOT), "archive", COMMIT, "gateway_pkg/src/gateway"]
    archive = subprocess.run(command, capture_output=True, check=False)
    if archive.returncode:
        return None
    subprocess.run(["tar", "-x", "-C", str(directory)], input=archive.stdout, check=True)
    return directory / "gateway_pkg/src"
