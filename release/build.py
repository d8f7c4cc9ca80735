"""Build a project's wheel, byte for byte the same from the same sources.

usage: python -m release.build PROJECT [DIRECTORY]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

DIST = Path(__file__).resolve().parents[1] / "build" / "dist"
EPOCH = "1580601600"  # 2020-02-02, hatchling's own default: a file's date says nothing about its content


def build_wheel(project: Path, directory: Path = DIST) -> Path:
    """Build the wheel of `project` (hatchling) into `directory` and give its path.

    Raises:
        RuntimeError: the build failed; the message ends with what the build printed last.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        done = subprocess.run(
            [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", scratch],
            cwd=project,
            env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            reason = (done.stderr or done.stdout).strip().splitlines()
            raise RuntimeError(f"cannot build {project}: {reason[-1] if reason else done.returncode}")
        (wheel,) = Path(scratch).glob("*.whl")
        return wheel.replace(directory / wheel.name)


if __name__ == "__main__":
    print(build_wheel(Path(sys.argv[1]), *(Path(a) for a in sys.argv[2:3])))
