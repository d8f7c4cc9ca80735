"""The kind of host that wheels are for: the host's markers and platform tags, never this machine's."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from packaging.tags import mac_platforms

# The old names of manylinux levels, before PEP 600 named them by glibc's version.
LEGACY_MANYLINUX = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}


@dataclass(frozen=True)
class Target:
    """A Python on a platform. `markers` is the PEP 508 environment of the host's own interpreter."""

    markers: Mapping[str, str]
    glibc: str = ""
    macos: str = ""

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Target:
        """A target from the `interpreter` that the module `release` reports.

        Raises:
            ValueError: the host is neither Linux with glibc nor macOS; one line for the operator.
        """
        target = cls(facts["markers"], facts["glibc"], facts["macos"])
        if not target.glibc and not target.macos:
            raise ValueError(f"no wheels for {target.markers['sys_platform']} here: use Linux with glibc, or macOS")
        return target

    @property
    def python(self) -> str:
        """The Python's minor version, such as `3.11`."""
        return self.markers["python_version"]

    @property
    def name(self) -> str:
        """Directory of the target's wheels, such as `linux-x86_64-glibc2.36-cp311`."""
        system = f"macos{self.macos.split('.')[0]}" if self.macos else f"glibc{self.glibc}"
        platform = f"{self.markers['sys_platform']}-{self.markers['platform_machine']}"
        return f"{platform}-{system}-cp{self.python.replace('.', '')}"

    def platforms(self) -> list[str]:
        """The host's platform tags, best first."""
        machine = self.markers["platform_machine"]
        if self.macos:
            version = [int(part) for part in re.findall(r"\d+", self.macos)]
            return list(mac_platforms((version[0], version[1] if len(version) > 1 else 0), machine))
        return list(_manylinux(machine, int(self.glibc.split(".")[1])))


def _manylinux(machine: str, minor: int) -> Iterator[str]:
    lowest = 5 if machine in {"x86_64", "i686"} else 17
    for level in range(minor, lowest - 1, -1):
        yield f"manylinux_2_{level}_{machine}"
        if level in LEGACY_MANYLINUX:
            yield f"{LEGACY_MANYLINUX[level]}_{machine}"
