"""Releases on this machine: installed, switched, kept, repaired, removed. Real pip, real virtual environments.

A case is a host of each play, a directory that stands for its /var/lib. The tests are steps in the order of this file,
and each fixture is one run after the other.
"""

import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from release.lock import pins
from release.wheelhouse import WHEELHOUSE, sha256
from tests.support.ansible_run import ROOT, Run, play_cases
from tests.support.tiny_wheel import tiny_wheel

PYTHON = str(Path(sys.executable).resolve())
# As many upgrades in turn as the case has wheels.
TASKS = [
    {
        "include_role": {"name": "release"},
        "vars": {"release_wheels": "{{ [item] }}", "release_names": ["tiny"]},
        "loop": "{{ wheels }}",
    }
]


class Host:
    def __init__(self, lib: Path) -> None:
        self.home = lib / "tiny"

    def says(self, program: str = "tiny") -> str:
        argv = [self.home / "env/bin" / program]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()

    def links(self) -> dict[str, str]:
        return {name: (self.home / name).readlink().name for name in ("env", "previous")}

    def releases(self) -> list[str]:
        return sorted(path.name for path in (self.home / "releases").iterdir())


class Site:
    """The cases by name: what role `release` is given for each."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.archive = pack_interpreter(place / "python.tar.gz")
        self.other = tiny_wheel(place / "index", name="packaging", version="0.0.1")
        standalone = {"release_python_archive": str(self.archive), "release_python_sha256": sha256(self.archive)}
        absent = {"release_lock": self._lock(f"ai-appliance-gateway==0.0.1 --hash=sha256:{'0' * 64}")}
        own_lock = {"release_lock": self._lock(f"packaging==0.0.1 --hash=sha256:{sha256(self.other)}")}
        self.cases: dict[str, dict[str, Any]] = {
            "plain": self.wheels("1.0"),
            "upgraded": self.wheels("1.0", "1.1", "2.0"),
            "three": self.wheels("1.1", "1.0 before", "1.0 after") | {"release_keep": 3},
            "interrupted": self.wheels("1.0 interrupted"),
            "locked": self.wheels("1.0") | own_lock,
            "standalone": self.wheels("1.0") | {"appliance_python": "/nowhere/python3"} | standalone,
            "incomplete": self.wheels("1.0") | absent,
            "bare": self.wheels("1.0") | {"appliance_python": "/nowhere/python3"},
            "old": self.wheels("1.0") | {"appliance_python": self._old_python()},
        }
        self.cases["forged"] = self.cases["standalone"] | {"release_python_sha256": "0" * 64}
        self.good = tuple(self.cases)[:6]

    def wheels(self, *texts: str) -> dict[str, Any]:
        """Of these versions; after a blank stands what their program says."""
        return {"wheels": [str(self._wheel(*text.split())) for text in texts]}

    def _wheel(self, version: str, says: str = "") -> Path:
        return tiny_wheel(self.place / f"wheels{version}{says}", version=version, says=says)

    def host(self, name: str) -> Host:
        return Host(self.place / name)

    def play(self, *names: str, check: bool = False, **changes: dict[str, Any]) -> Run:
        given = {"appliance_python": PYTHON, "release_lock": self._lock("")}
        cases = {
            name: given | {"appliance_lib": str(self.place / name)} | self.cases[name] | changes.get(name, {})
            for name in names
        }
        options = ["--diff", *(["--check"] if check else [])]
        return play_cases(self.place, cases, TASKS, *options, PIP_FIND_LINKS=str(self.other.parent))

    def _lock(self, text: str) -> str:
        file = self.place / f"{text.partition('=')[0]}.lock"
        file.write_text(f"{text}\n")
        return str(file)

    def _old_python(self) -> str:
        """An interpreter that says it is CPython 3.10."""
        markers = {"implementation_name": "cpython", "platform_python_implementation": "CPython"}
        python = self.place / "python3.10"
        python.write_text(f"#!/bin/sh\necho '{json.dumps({'version': [3, 10], 'markers': markers})}'\n")
        python.chmod(0o755)
        return str(python)


def pack_interpreter(archive: Path) -> Path:
    """This machine's interpreter and its library, packed as a standalone CPython is."""
    base, name = Path(sys.base_prefix), f"python{sys.version_info.major}.{sys.version_info.minor}"

    def essential(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        unwanted = {"site-packages", "dist-packages", "test", "__pycache__", "idlelib", "ensurepip"}
        leads_out = member.issym() and (".." in Path(member.linkname).parts or member.linkname.startswith("/"))
        return None if leads_out or unwanted.intersection(Path(member.name).parts) else member

    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        tar.add(Path(PYTHON), "python/bin/python3")
        tar.add(base / "lib" / name, f"python/lib/{name}", filter=essential)
        for library in (base / "lib").glob("libpython3*.so*"):
            tar.add(library, f"python/lib/{library.name}")
    return archive


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="module")
def dry(site: Site) -> Run:
    return site.play("plain", "standalone", check=True).succeeded()


@pytest.fixture(scope="module")
def first(site: Site, dry: Run) -> Run:
    return site.play(*site.cases)


REMOVED = {"release_state": "absent"}


@pytest.fixture(scope="module")
def dry_again(site: Site, first: Run) -> Run:
    """After an installation that was interrupted."""
    release = (site.host("interrupted").home / "env").resolve()
    (release / ".complete").unlink()
    (release / "bin/tiny").unlink()
    return site.play("plain", "interrupted", "locked", check=True, locked=REMOVED).succeeded()


@pytest.fixture(scope="module")
def second(site: Site, dry_again: Run) -> Iterator[Run]:
    """After somebody tampered with a wheel that has to be installed again."""
    host = site.host("three")
    (brought,) = WHEELHOUSE.glob(f"*/tiny-{host.links()['previous']}/tiny-1.0-*.whl")
    genuine = brought.read_bytes()
    (host.home / "releases" / host.links()["previous"] / ".complete").unlink()
    (site.host("locked").home / "data").mkdir()
    own = {"release_python": {"archive": str(site.archive), "sha256": sha256(site.archive)}}
    try:
        brought.write_bytes(genuine + b"tampered")
        yield site.play(
            *site.good,
            upgraded=site.wheels("1.1"),
            three=site.wheels("1.0 before"),
            locked=REMOVED | site.wheels("1.0", "1.1"),  # the second time nothing is left
            standalone={"release_python_archive": "", "release_python_sha256": ""} | own,  # for this release alone
        )
    finally:
        brought.write_bytes(genuine)


def said(run: Run, host: str) -> str:
    """What a failed run tells the operator, with Ansible's line breaks taken out."""
    return " ".join(run.said(host).split())


def test_check_mode_of_a_bare_host_installs_nothing(site: Site, dry: Run) -> None:
    assert [dry.counts(name)["changed"] for name in ("plain", "standalone")] == [1, 1]
    assert "+env -> 1.0-" in dry.output
    assert not any(site.host(name).home.exists() for name in ("plain", "standalone"))


def test_the_tree_is_compiled_and_nobody_else_may_write_it(site: Site, first: Run) -> None:
    assert {name: first.counts(name)["changed"] for name in site.good} == {
        "plain": 1,
        "upgraded": 3,
        "three": 3,
        "interrupted": 1,
        "locked": 1,
        "standalone": 1,
    }
    host = site.host("plain")
    assert host.says() == "1.0"
    files = [path for path in host.home.rglob("*") if not path.is_symlink()]
    assert [path for path in files if path.stat().st_mode & 0o022] == []
    assert [path for path in files if path.name.startswith("tiny.cpython-")]
    assert not [path for path in files if path.name in {"pip", "pip3"}]


def test_an_upgrade_keeps_the_release_before_and_prunes_older_ones(site: Site, first: Run) -> None:
    host = site.host("upgraded")
    assert host.says() == "2.0"
    current, previous = host.links()["env"], host.links()["previous"]
    assert (current.split("-")[0], previous.split("-")[0]) == ("2.0", "1.1")
    assert host.releases() == sorted([current, previous])


def test_a_changed_wheel_of_the_same_version_is_a_new_release_and_more_are_kept_when_asked(
    site: Site, first: Run
) -> None:
    host = site.host("three")
    assert host.says() == "1.0 after"
    assert [name.split("-")[0] for name in host.releases()] == ["1.0", "1.0", "1.1"]


def test_a_lock_of_its_own_may_contradict_the_tests_own(site: Site, first: Run) -> None:
    """Torch of one backend and torch of another, say; here the `packaging` that Ansible runs on."""
    tested = {pin.version for pin in pins(ROOT / "release/locks/test.txt", {}) if pin.name == "packaging"}
    assert tested and "0.0.1" not in tested
    assert site.host("locked").says("packaging") == "0.0.1"


def test_a_host_without_python_gets_the_standalone_one_that_was_named(site: Site, first: Run, second: Run) -> None:
    host = site.host("standalone")
    base = "import sys; print(sys.base_prefix)"
    argv: list[str | Path] = [host.home / "env/bin/python", "-c", base]
    home = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    assert home.strip() == str(host.home / "python" / sha256(site.archive)[:12])
    assert host.says() == "1.0"
    assert second.counts("standalone")["changed"] == 0


@pytest.mark.parametrize(
    ("name", "reasons"),
    [
        ("incomplete", ["no wheel of ai-appliance-gateway==0.0.1 for "]),
        ("bare", ["/nowhere/python3: No such file or directory", "apt-get install python3", "set appliance_python"]),
        ("old", ["is CPython 3.10, not CPython 3.11 to 3.14", "apt-get install python3", "set appliance_python"]),
        ("forged", ["has the sha256 ", f", not {'0' * 64}"]),
    ],
)
def test_what_cannot_be_installed_is_refused_with_what_to_type(
    site: Site, first: Run, name: str, reasons: list[str]
) -> None:
    assert [reason for reason in reasons if reason not in said(first, name)] == []
    assert "Traceback" not in first.output
    assert not (site.host(name).home / "env").exists()


def test_check_mode_of_an_installed_host_names_what_is_to_be_repaired_and_removed(site: Site, dry_again: Run) -> None:
    changed = {name: dry_again.counts(name)["changed"] for name in ("plain", "interrupted", "locked")}
    assert changed == {"plain": 0, "interrupted": 1, "locked": 1}


def test_a_second_run_changes_nothing(second: Run) -> None:
    assert second.counts("plain")["changed"] == 0


def test_an_interrupted_installation_is_done_again(site: Site, second: Run) -> None:
    assert second.counts("interrupted")["changed"] == 1
    assert site.host("interrupted").says() == "1.0 interrupted"


def test_the_release_before_is_selected_without_its_wheels(site: Site, first: Run, second: Run) -> None:
    links = site.host("upgraded").links()
    assert second.counts("upgraded")["changed"] == 1
    assert {name: link.split("-")[0] for name, link in links.items()} == {"env": "1.1", "previous": "2.0"}
    assert site.host("upgraded").says() == "1.1"


def test_a_wheel_that_was_tampered_with_stops_before_the_switch(site: Site, second: Run) -> None:
    assert "DO NOT MATCH THE HASHES" in said(second, "three")
    assert site.host("three").says() == "1.0 after"


def test_removal_leaves_what_the_program_wrote(site: Site, second: Run) -> None:
    assert second.counts("locked")["changed"] == 1
    assert [path.name for path in site.host("locked").home.iterdir()] == ["data"]
