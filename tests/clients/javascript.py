"""JavaScript clients: their tests are in js*/, in their own language, with their packages and the lock of those."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def run(directory: Path, *argv: str, **environment: str) -> None:
    done = subprocess.run(
        argv,
        cwd=directory,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,  # packages of coding agents are a gigabyte
        check=False,
    )
    assert done.returncode == 0, done.stdout


def node_test(directory: str, name: str, **environment: str) -> None:
    """Runs the tests of a file there."""
    run(packages(directory), "node", "--test", name, **environment)


def packages(directory: str) -> Path:
    """The directory, once its packages are there; skips where there is no npm.

    They are as the lock has them, or else of the versions in package.json: a lock without the index's address cannot
    hold packages under another name, as Codex has them.
    """
    if shutil.which("npm") is None:
        pytest.skip("node and npm are missing; type: sudo apt-get install nodejs npm")
    place = HERE / directory
    lock, there = place / "package-lock.json", place / "node_modules" / ".package-lock.json"
    pinned = lock if lock.exists() else place / "package.json"
    if not there.exists() or there.stat().st_mtime < pinned.stat().st_mtime:
        run(place, "npm", *(["ci"] if lock.exists() else ["install", "--no-package-lock"]), "--no-fund", "--no-audit")
        there.touch()
    return place
