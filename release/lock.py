"""Read a lock: requirement files as `make lock` writes them, every pin with its marker and its hashes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name


@dataclass(frozen=True)
class Pin:
    """One version of one distribution, and the sha256 of every file it may be installed from."""

    name: str
    version: str
    hashes: tuple[str, ...]


def pins(lock: Path, markers: Mapping[str, str]) -> list[Pin]:
    """The pins of `lock` that hold where `markers` holds, in the lock's order.

    Raises:
        ValueError: a line is not `name==version[; marker] --hash=sha256:…`; the message names file and line.
    """
    found = []
    for line in lock.read_text().replace("\\\n", " ").splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        text, *hashes = (part.strip() for part in line.split("--hash=sha256:"))
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            raise ValueError(f"{lock}: {text!r}: {error}".replace("\n", " ")) from error
        version = str(requirement.specifier).removeprefix("==")
        if not hashes or str(requirement.specifier) != f"=={version}":
            raise ValueError(f"{lock}: {text!r} is not pinned with a hash; type: make lock")
        if requirement.marker is None or requirement.marker.evaluate(dict(markers)):
            found.append(Pin(canonicalize_name(requirement.name), version, tuple(sorted(hashes))))
    return found
