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
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def node_test(directory: str, name: str, **environment: str) -> None:
    """Runs the tests of a file there, after its packages are as the lock has them; skips where there is no npm."""
    if shutil.which("npm") is None:
        pytest.skip("node and npm are missing; type: sudo apt-get install nodejs npm")
    place = HERE / directory
    there, lock = place / "node_modules" / ".package-lock.json", place / "package-lock.json"
    if not there.exists() or there.stat().st_mtime < lock.stat().st_mtime:
        run(place, "npm", "ci", "--no-fund", "--no-audit")
        there.touch()
    run(place, "node", "--test", name, **environment)
