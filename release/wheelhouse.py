"""Collect the wheels of a release for one kind of host.

The lock's markers are evaluated for that host; plain pip would evaluate this machine's. The result is a directory
`build/wheelhouse/<target>/<package>-<version>/` with every wheel, `requirements.txt` (one hash a wheel), `SHA256SUMS`
and the wheel of pip that installs them: a host needs neither pip nor a network. The directory appears only when whole;
a release is collected once, since its version names its content.

The role `release` calls `resolve` and `fetch`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename

from release.build import build_wheel
from release.lock import Pin, pins
from release.target import Target

CHECKOUT = Path(__file__).resolve().parents[1]
WHEELHOUSE = CHECKOUT / "build" / "wheelhouse"
CONTROL_LOCK = CHECKOUT / "release" / "locks" / "control.txt"
SUMS = "SHA256SUMS"


class WheelhouseError(Exception):
    """A refusal: one line that tells the operator what to do."""


@dataclass(frozen=True)
class Release:
    """The content of a release: pins for its target, wheels built here, and the host's interpreter."""

    package: str
    target: Target
    python: str
    pins: Sequence[Pin]
    wheels: Sequence[Path]

    @property
    def version(self) -> str:
        """`<version of the package>-<12 hex digits>`; a change of the installed files changes the digits."""
        content = {
            "python": [self.python, self.target.python],
            "pins": sorted([pin.name, pin.version, *pin.hashes] for pin in self.pins),
            "wheels": sorted([wheel.name, sha256(wheel)] for wheel in self.wheels),
        }
        digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        return f"{self._package_version()}-{digest[:12]}"

    def _package_version(self) -> str:
        name = canonicalize_name(self.package)
        for wheel in self.wheels:
            distribution, version, *_ = parse_wheel_filename(wheel.name)
            if distribution == name:
                return str(version)
        for pin in self.pins:
            if pin.name == name:
                return pin.version
        raise WheelhouseError(f"{self.package} is neither in the lock nor among the wheels: set release_package")


def resolve(lock: Path, wheels: Sequence[Path], package: str, python: str, target: Target) -> Release:
    """Read the lock for `target`; a directory among `wheels` is a project whose wheel is built."""
    built = [build_wheel(wheel) if wheel.is_dir() else wheel for wheel in wheels]
    for wheel in built:
        try:
            parse_wheel_filename(wheel.name)
        except InvalidWheelFilename as error:
            raise WheelhouseError(f"{wheel} is not a wheel: {error}") from error
        if not wheel.is_file():
            raise WheelhouseError(f"{wheel} is missing")
    return Release(package, target, python, pins(lock, target.markers), built)


def fetch(release: Release, root: Path = WHEELHOUSE) -> tuple[Path, int]:
    """Make the release's directory; return it and the number of downloaded wheels.

    Raises:
        WheelhouseError: a wheel is missing for the target, or has another hash than the lock.
    """
    shelf = root / release.target.name
    directory = shelf / f"{release.package}-{release.version}"
    shelf.mkdir(parents=True, exist_ok=True)
    with locked(shelf / ".lock"):
        if _whole(directory):
            return directory, 0
        with tempfile.TemporaryDirectory(dir=shelf, prefix=".unfinished-") as scratch:
            unfinished = Path(scratch) / "wheels"
            unfinished.mkdir()
            fetched = _fill(unfinished, release, shelf)
            unfinished.chmod(0o755)
            shutil.rmtree(directory, ignore_errors=True)
            unfinished.rename(directory)
    return directory, fetched


def _fill(directory: Path, release: Release, shelf: Path) -> int:
    installer = [pin for pin in pins(CONTROL_LOCK, release.target.markers) if pin.name == "pip"]
    known = _known(shelf)
    absent = []
    for pin in [*release.pins, *installer]:
        source = next((known[h] for h in pin.hashes if h in known), None)
        if source is None:
            absent.append(pin)
        else:
            os.link(source, directory / source.name)
    if absent:
        _download(absent, release.target, directory)
    for wheel in release.wheels:
        shutil.copyfile(wheel, directory / wheel.name)
    _describe(directory)
    return len(absent)


def _download(absent: Sequence[Pin], target: Target, directory: Path) -> None:
    """Download with pip, so that pip's settings (index, proxy, certificates, cache) hold."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirements:
        for pin in absent:
            hashes = " ".join(f"--hash=sha256:{digest}" for digest in pin.hashes)
            requirements.write(f"{pin.name}=={pin.version} {hashes}\n")
        requirements.flush()
        platforms = [f"--platform={platform}" for platform in target.platforms()]
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download"),
                *("--no-deps", "--only-binary=:all:", "--require-hashes", "--implementation=cp"),
                *(f"--python-version={target.python}", *platforms),
                *("--dest", str(directory), "--requirement", requirements.name),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise WheelhouseError(_refusal(done.stderr, target))


def _refusal(stderr: str, target: Target) -> str:
    if match := re.search(r"No matching distribution found for (\S+)", stderr):
        return f"no wheel of {match[1]} for {target.name}: the host needs another Python or platform"
    if match := re.search(r"DO NOT MATCH THE HASHES.*?\n\s+(\S+==\S+).*?:", stderr, re.DOTALL):
        return f"{match[1]} for {target.name} has another sha256 than the lock: nothing was kept"
    lines = [line for line in stderr.strip().splitlines() if line]
    return f"downloading wheels for {target.name} failed: {lines[-1] if lines else 'pip gave no reason'}"


def _describe(directory: Path) -> None:
    """Write `SHA256SUMS` of all wheels, and the requirements that pip installs: all wheels but pip itself."""
    sums = {wheel.name: sha256(wheel) for wheel in sorted(directory.glob("*.whl"))}
    (directory / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))
    lines = []
    for name, digest in sums.items():
        distribution, version, *_ = parse_wheel_filename(name)
        if distribution != "pip":
            lines.append(f"{distribution}=={version} --hash=sha256:{digest}\n")
    (directory / "requirements.txt").write_text("".join(lines))


def _whole(directory: Path) -> bool:
    sums = directory / SUMS
    return sums.is_file() and all((directory / name).is_file() for _, name in _sums(sums))


def _known(shelf: Path) -> dict[str, Path]:
    """Wheels of this target that are in other releases, by sha256."""
    return {
        digest: sums.parent / name
        for sums in shelf.glob(f"*/{SUMS}")
        for digest, name in _sums(sums)
        if (sums.parent / name).is_file()
    }


def _sums(path: Path) -> Iterator[tuple[str, str]]:
    for line in path.read_text().splitlines():
        digest, _, name = line.partition("  ")
        yield digest, name


def sha256(path: Path) -> str:
    """The file's sha256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """A lock for hosts of one kind that are provisioned at once: the first downloads, the others wait."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
