"""Virtual environments of programs that tests start, each made from its own lock with hashes.

What a test talks to (a peer, a framework, a model server) pins much that the gateway must not be bound to; so none of
it is ever in the environment of the tests. An environment is kept under .cache/ until its lock changes.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "environments"


def environment(lock: Path, before: Path | None = None) -> Path:
    """The `bin` directory of the environment that holds what the lock names.

    `before` is the lock of what pip installs first: torch, whose build for the CPU uv does not find.

    Raises CalledProcessError when something cannot be installed; pip or uv has then said why on stderr.
    """
    content = lock.read_bytes(), before and before.read_bytes(), sys.version
    key = hashlib.sha256(repr(content).encode()).hexdigest()[:12]
    venv = CACHE / f"{lock.stem}-{key}"
    with _alone(lock.stem):
        if not (venv / "installed").exists():
            for old in CACHE.glob(f"{lock.stem}-{'?' * len(key)}"):
                shutil.rmtree(old)
            _install(lock, before, venv)
            (venv / "installed").touch()
    return venv / "bin"


def _install(lock: Path, before: Path | None, venv: Path) -> None:
    print(f"installing {lock.relative_to(ROOT)} into {venv.relative_to(ROOT)}", file=sys.stderr, flush=True)
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, venv], check=True)
    python = venv / "bin" / "python"
    # The locks are complete, so that nothing is resolved again.
    options = ["--quiet", "--no-deps", "--require-hashes", "--requirement"]
    if before:
        subprocess.run([sys.executable, "-m", "pip", "--python", python, "install", *options, before], check=True)
    subprocess.run([uv, "pip", "install", "--python", python, "--compile-bytecode", *options, lock], check=True)


@contextmanager
def _alone(name: str) -> Iterator[None]:
    """Two runs side by side do not install the same environment at once."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
