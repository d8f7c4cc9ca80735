"""Build a project's wheel, byte for byte the same from the same sources, and only when the sources have changed.

usage: python -m release.build PROJECT [DIRECTORY]
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

DIST = Path(__file__).resolve().parents[1] / "build" / "dist"
EPOCH = "1580601600"  # 2020-02-02, hatchling's own default: a file's date says nothing about its content


def build_wheel(project: Path, directory: Path = DIST) -> Path:
    """Build the wheel of `project` (hatchling) into `directory` and give its path.

    Raises:
        RuntimeError: the build failed; the message ends with what the build printed last.
    """
    directory.mkdir(parents=True, exist_ok=True)
    stamp = directory / f"{project.resolve().name}.built.json"
    sources = _digest(project)
    built: dict[str, str] = json.loads(stamp.read_text()) if stamp.exists() else {}
    if built.get("sources") == sources and (wheel := directory / built["wheel"]).exists():
        return wheel
    stamp.unlink(missing_ok=True)  # whatever happens next, it describes the wheel there or is absent
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
        described = Path(scratch) / stamp.name
        described.write_text(json.dumps({"sources": sources, "wheel": wheel.name}))
        wheel = wheel.replace(directory / wheel.name)
        described.replace(stamp)
        return wheel


def _digest(project: Path) -> str:
    """A hash of all that the wheel is made from: the project's files and hatchling's version."""
    digest = hashlib.sha256(version("hatchling").encode())
    for path in sorted(path for path in project.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        digest.update(f"\0{path.relative_to(project)}\0{path.stat().st_mode:o}\0".encode() + path.read_bytes())
    return digest.hexdigest()


if __name__ == "__main__":
    print(build_wheel(Path(sys.argv[1]), *(Path(a) for a in sys.argv[2:3])))
