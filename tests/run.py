"""`make test`: every layer of tests, one after the other, and one line that says how it went.

usage: python -m tests.run [LAYER]…

Without a layer all but `heavy` are run: that one has what is large (torch, 3 GB) and every count in full.

Nothing is skipped in silence: each skip is named with its reason, and on Debian as root only macOS and a GPU are
reasons; any other one fails the run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree  # what pytest wrote here a moment ago

from tests.support.sampling import SEED

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
DEBIAN_ROOT = Path("/etc/debian_version").exists() and os.geteuid() == 0
CANNOT_BE_HERE = re.compile(r"macOS|GPU")
ENVIRONMENT = {
    **os.environ,
    "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
    "CONTAINERS_CONF": str(ROOT / "molecule/image/containers.conf"),
    "TEST_SEED": str(SEED),
}


@dataclass
class Tally:
    """How many tests of a layer passed; the names of those that did not, and of those that were skipped, with why."""

    passed: int = 0
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def skip(self, name: str, reason: str) -> None:
        unexpected = DEBIAN_ROOT and not CANNOT_BE_HERE.search(reason)
        (self.failed if unexpected else self.skipped).append(f"{name}: not run: {reason}")

    def check(self, name: str, ok: bool) -> None:
        if ok:
            self.passed += 1
        else:
            self.failed.append(name)

    def read(self, report: Path) -> None:
        """Count the test cases of a JUnit report."""
        for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314 - our own pytest's output
            name = f"{case.get('classname')}::{case.get('name')}"
            skipped = case.find("skipped")
            if skipped is not None:
                self.skip(name, skipped.get("message") or "no reason given")
            else:
                self.check(name, case.find("failure") is None and case.find("error") is None)


def run(*argv: str | Path, **environment: str) -> int:
    """Run a command before everybody's eyes; 127 when there is no such program."""
    print(f"$ {' '.join(str(word).removeprefix(f'{BIN}/') for word in argv)}", flush=True)
    try:
        return subprocess.run(argv, cwd=ROOT, env={**ENVIRONMENT, **environment}, check=False).returncode
    except FileNotFoundError:
        print(f"{argv[0]} is missing; type: molecule/setup.sh", file=sys.stderr)
        return 127


def counted(tally: Tally, name: str, start: Callable[[Path], int]) -> None:
    """Run what makes a JUnit report at the given path, and count it; a run that fails beyond its tests is a failure."""
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.xml"
        status = start(report)
        before = len(tally.failed)
        if report.exists():
            tally.read(report)
        if status and len(tally.failed) == before:
            tally.failed.append(f"{name}: ended with status {status}")


def pytest(*words: str, **environment: str) -> Tally:
    tally = Tally()
    counted(
        tally,
        " ".join(words),
        lambda report: run(
            BIN / "pytest", "-q", f"--junitxml={report}", f"--hypothesis-seed={SEED}", *words, **environment
        ),
    )
    return tally


def typed() -> Iterator[list[str | Path]]:
    """Runs of mypy over what goes together; a role's plugins by themselves, since their names meet elsewhere."""
    mypy: list[str | Path] = [BIN / "mypy", "--no-error-summary"]
    yield [*mypy, "gateway_pkg/src", "release", "playbooks", "docs"]
    yield [*mypy, "--package=tests"]
    for directory in sorted(ROOT.glob("roles/*/*/")):
        if any(directory.glob("*.py")):
            yield [*mypy, directory.relative_to(ROOT)]


def lint() -> Tally:
    tally = Tally()
    listed = subprocess.run(
        ["git", "ls-files", "*.sh", ".ci/run"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    checks: list[list[str | Path]] = [
        [BIN / "ruff", "check", "--quiet", "."],
        [BIN / "ruff", "format", "--check", "--quiet", "."],
        *typed(),
        ["shellcheck", *listed.stdout.split()],
        [BIN / "yamllint", "--strict", "."],
        [BIN / "ansible-lint", "-q"],
    ]
    for argv in checks:
        tally.check(" ".join(str(word).removeprefix(f"{BIN}/") for word in argv), run(*argv) == 0)
    return tally


def hosts() -> Tally:
    """Each Molecule scenario whole; its testinfra tests are counted, and the scenario itself is one more."""
    tally = Tally()
    for scenario in sorted(path.parent.name for path in (ROOT / "molecule").glob("*/molecule.yml")):
        if not DEBIAN_ROOT:
            tally.skip(f"molecule {scenario}", "test hosts need root on Debian; type: sudo make test")
            continue

        def molecule(report: Path, scenario: str = scenario) -> int:
            return run(BIN / "molecule", "test", "-s", scenario, PYTEST_ADDOPTS=f"--junitxml={report}")

        before = len(tally.failed)
        counted(tally, f"molecule {scenario}", molecule)
        tally.passed += len(tally.failed) == before
    return tally


# In this order, so that what takes long does not come last.
PACKAGE = ("tests/system", "tests/contracts", "tests/unit")
# The figures that are asked for: how many cases each property was tried with, and what took longest.
HEAVY = ("tests/heavy", *PACKAGE, "--hypothesis-show-statistics", "--durations=20")

# A file's tests in one process, in their order, since they share its gateways and hosts; two files a core, since they
# wait more than they compute. Not `--dist=loadgroup`: under pytest 9.2 pytest-xdist 3.8 loses the groups' names.
FILES_APART = ("-n", str(min(4, 2 * (os.cpu_count() or 1))), "--dist=loadfile", "--no-loadscope-reorder")

LAYERS: dict[str, Callable[[], Tally]] = {
    "lint": lint,
    "package": lambda: pytest(*PACKAGE, "tests/release", "tests/bench", *FILES_APART),
    "roles": lambda: pytest("tests/roles", *FILES_APART),
    "hosts": hosts,
    "clients": lambda: pytest("tests/clients"),
    "heavy": lambda: pytest(*HEAVY, *FILES_APART, SAMPLE_ALL="1"),
}
USUAL = tuple(name for name in LAYERS if name != "heavy")


def main(chosen: list[str]) -> int:
    if unknown := set(chosen) - set(LAYERS):
        print(f"no layer {', '.join(sorted(unknown))}; there are {', '.join(LAYERS)}", file=sys.stderr)
        return 2
    if chosen != ["lint"] and run("molecule/setup.sh") and DEBIAN_ROOT:
        return 1
    print(f"TEST_SEED={ENVIRONMENT['TEST_SEED']}", flush=True)
    tallies: dict[str, tuple[Tally, float]] = {}
    for name in chosen or USUAL:
        print(f"\n== {name}", flush=True)
        begun = time.monotonic()
        tallies[name] = LAYERS[name](), time.monotonic() - begun
    print(f"\n{'layer':10}{'passed':>8}{'failed':>8}{'skipped':>8}{'seconds':>9}")
    for name, (tally, seconds) in tallies.items():
        print(f"{name:10}{tally.passed:8}{len(tally.failed):8}{len(tally.skipped):8}{seconds:9.1f}")
    every = [tally for tally, _ in tallies.values()]
    failed = [name for tally in every for name in tally.failed]
    skipped = [name for tally in every for name in tally.skipped]
    for line in [*(f"FAILED {name}" for name in failed), *(f"SKIPPED {name}" for name in skipped)]:
        print(line)
    total = f"{sum(tally.passed for tally in every)} passed, {len(failed)} failed"
    print(f"{total}, {len(skipped)} skipped" if skipped else total)
    return 1 if failed or not any(tally.passed for tally in every) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
