"""The locks say the same as the projects, agree with each other, and hold for every target."""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from release.lock import pins

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / "release/locks").glob("*.txt"))  # cut from one resolution; a role's own lock is not
GATEWAY = tomllib.loads((ROOT / "gateway_pkg/pyproject.toml").read_text())["project"]
TARGETS = [
    {
        "sys_platform": system,
        "platform_machine": machine,
        "python_version": python,
        "python_full_version": f"{python}.1",
    }
    for system, machine in (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"))
    for python in ("3.11", "3.12", "3.13", "3.14")
]


def by_name(lock: Path) -> str:
    return lock.stem


@pytest.mark.parametrize("lock", LOCKS, ids=by_name)
def test_every_pin_has_hashes_and_no_line_names_a_registry(lock: Path) -> None:
    assert "://" not in lock.read_text()
    for pin in pins(lock, TARGETS[0]):
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in pin.hashes), pin


@pytest.mark.parametrize("lock", LOCKS, ids=by_name)
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: "-".join(list(target.values())[:3]))
def test_a_target_has_the_tested_version_of_each_package(lock: Path, target: Mapping[str, str]) -> None:
    found = [(pin.name, pin.version) for pin in pins(lock, target)]
    tested = {pin.name: pin.version for pin in pins(ROOT / "release/locks/test.txt", target)}
    assert len(dict(found)) == len(found)
    assert {name: tested[name] for name, _ in found} == dict(found)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: "-".join(list(target.values())[:3]))
@pytest.mark.parametrize(
    ("lock", "wanted"),
    [
        ("gateway", GATEWAY["dependencies"]),
        ("gateway-embed", [*GATEWAY["dependencies"], *GATEWAY["optional-dependencies"]["embed"]]),
    ],
)
def test_what_the_gateway_asks_for_is_locked(lock: str, wanted: list[str], target: Mapping[str, str]) -> None:
    locked = {pin.name: pin.version for pin in pins(ROOT / f"release/locks/{lock}.txt", target)}
    for requirement in map(Requirement, wanted):
        assert locked[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_an_unpinned_or_unhashed_line_is_refused_with_what_to_type(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    for line in ("tiny>=1.0 --hash=sha256:00\n", "tiny==1.0\n"):
        lock.write_text(line)
        with pytest.raises(ValueError, match="not pinned with a hash; type: make lock"):
            pins(lock, {})


def test_markers_are_those_of_the_target(tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text(
        "both==1 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n"
        "mac==2 ; sys_platform == 'darwin' \\\n    --hash=sha256:cc\n"
        "old==3 ; python_full_version < '3.12' \\\n    --hash=sha256:dd\n"
    )
    names = {(t["sys_platform"], t["python_version"]): [pin.name for pin in pins(lock, t)] for t in TARGETS}
    assert names["linux", "3.11"] == ["both", "old"]
    assert names["darwin", "3.14"] == ["both", "mac"]
    assert pins(lock, TARGETS[0])[0].hashes == ("aa", "bb")
