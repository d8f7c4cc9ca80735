"""Releases on this machine: installed, switched, kept, repaired, removed. Real pip, real virtual environments."""

import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from release.lock import pins
from release.wheelhouse import WHEELHOUSE, sha256
from tests.support.ansible_run import ROOT, Run, ansible_playbook
from tests.support.tiny_wheel import tiny_wheel

PYTHON = str(Path(sys.executable).resolve())


@dataclass
class Host:
    """A directory that stands for a host's /var/lib, and the role's variables."""

    place: Path
    python: str = PYTHON

    @property
    def home(self) -> Path:
        return self.place / "lib/tiny"

    def play(self, *wheels: Path, lock: str = "", check: bool = False, **variables: Any) -> Run:
        """Run the role once for each wheel, in turn, as so many upgrades."""
        (self.place / "lock.txt").write_text(lock)
        fixed = {"release_name": "tiny", "release_lock": str(self.place / "lock.txt"), **variables}
        tasks = [
            {"ansible.builtin.include_role": {"name": "release"}, "vars": {**fixed, "release_wheels": [str(wheel)]}}
            for wheel in wheels
        ]
        facts = {"appliance_lib": str(self.place / "lib"), "appliance_python": self.python}
        play = {"hosts": "all", "gather_facts": False, "vars": facts, "tasks": tasks}
        (self.place / "play.yml").write_text(yaml.safe_dump([play]))
        inventory = self.place / "hosts.yml"
        local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        inventory.write_text(yaml.safe_dump({"all": {"hosts": {"box1": local}}}))
        arguments = ["--check", "--diff"] if check else ["--diff"]
        return ansible_playbook(self.place / "play.yml", *arguments, inventory=inventory)

    def says(self) -> str:
        return subprocess.run([self.home / "env/bin/tiny"], capture_output=True, text=True, check=True).stdout.strip()

    def links(self) -> dict[str, str]:
        return {name: (self.home / name).readlink().name for name in ("env", "previous") if (self.home / name).exists()}

    def releases(self) -> list[str]:
        return sorted(path.name for path in (self.home / "releases").iterdir())


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture
def wheel(tmp_path: Path) -> Callable[..., Path]:
    def make(version: str = "1.0", says: str = "") -> Path:
        return tiny_wheel(tmp_path / f"wheels{version}{says}", version=version, says=says)

    return make


def refusal(run: Run) -> str:
    """What a failed run tells the operator, with Ansible's line breaks taken out."""
    assert run.status != 0, run.output
    assert "Traceback" not in run.output
    return " ".join(run.output.split())


def test_a_bare_host_is_checked_then_installed_and_left_alone(host: Host, wheel: Callable[..., Path]) -> None:
    checked = host.play(wheel(), check=True).succeeded()
    assert checked.changed == 1
    assert "+env -> 1.0-" in checked.output
    assert not host.home.exists()

    assert host.play(wheel()).succeeded().changed == 1
    assert host.says() == "1.0"
    assert host.play(wheel()).succeeded().changed == 0
    assert host.play(wheel(), check=True).succeeded().changed == 0


def test_the_tree_is_compiled_and_nobody_else_may_write_it(host: Host, wheel: Callable[..., Path]) -> None:
    host.play(wheel()).succeeded()
    files = [path for path in host.home.rglob("*") if not path.is_symlink()]
    assert [path for path in files if path.stat().st_mode & 0o022] == []
    assert [path for path in files if path.name.startswith("tiny.cpython-")]
    assert not [path for path in files if path.name in {"pip", "pip3"}]


def test_an_upgrade_keeps_the_release_before_and_prunes_older_ones(host: Host, wheel: Callable[..., Path]) -> None:
    assert host.play(*map(wheel, ("1.0", "1.1", "2.0"))).succeeded().changed == 3
    assert host.says() == "2.0"
    current, previous = host.links()["env"], host.links()["previous"]
    assert (current.split("-")[0], previous.split("-")[0]) == ("2.0", "1.1")
    assert host.releases() == sorted([current, previous])

    # Going back needs no wheels: the release is still there.
    assert host.play(wheel("1.1")).succeeded().changed == 1
    assert host.links() == {"env": previous, "previous": current}
    assert host.says() == "1.1"


def test_a_changed_wheel_of_the_same_version_is_a_new_release(host: Host, wheel: Callable[..., Path]) -> None:
    assert host.play(wheel(says="before"), wheel(says="after")).succeeded().changed == 2
    assert host.says() == "1.0 after"


def test_more_releases_are_kept_when_asked(host: Host, wheel: Callable[..., Path]) -> None:
    host.play(*map(wheel, ("1.0", "1.1", "2.0")), release_keep=3).succeeded()
    assert [name.split("-")[0] for name in host.releases()] == ["1.0", "1.1", "2.0"]


def test_an_interrupted_installation_is_done_again(host: Host, wheel: Callable[..., Path]) -> None:
    host.play(wheel()).succeeded()
    release = (host.home / "env").resolve()
    (release / ".complete").unlink()
    (release / "bin/tiny").unlink()
    assert host.play(wheel(), check=True).succeeded().changed == 1
    assert host.play(wheel()).succeeded().changed == 1
    assert host.says() == "1.0"


def test_a_wheel_that_was_tampered_with_stops_before_the_switch(host: Host, wheel: Callable[..., Path]) -> None:
    host.play(wheel(), wheel("1.1")).succeeded()
    (brought,) = WHEELHOUSE.glob(f"*/tiny-{host.links()['previous']}/tiny-1.0-*.whl")
    genuine = brought.read_bytes()
    try:
        brought.write_bytes(genuine + b"tampered")
        (host.home / "releases" / host.links()["previous"] / ".complete").unlink()
        message = refusal(host.play(wheel()))
    finally:
        brought.write_bytes(genuine)
    assert "DO NOT MATCH THE HASHES" in message
    assert host.links()["env"].startswith("1.1-")
    assert host.says() == "1.1"


def test_a_missing_wheel_names_package_and_target(host: Host, wheel: Callable[..., Path]) -> None:
    absent = f"ai-appliance-gateway==0.0.1 --hash=sha256:{'0' * 64}\n"
    message = refusal(host.play(wheel(), lock=absent))
    assert "no wheel of ai-appliance-gateway==0.0.1 for " in message
    assert not host.home.exists()


def old_python(directory: Path) -> str:
    """An interpreter that says it is CPython 3.10."""
    markers = {"implementation_name": "cpython", "platform_python_implementation": "CPython"}
    python = directory / "python3.10"
    python.write_text(f"#!/bin/sh\necho '{json.dumps({'version': [3, 10], 'markers': markers})}'\n")
    python.chmod(0o755)
    return str(python)


def test_a_missing_or_old_python_is_refused_with_what_to_type(host: Host, wheel: Callable[..., Path]) -> None:
    for python, why in [
        ("/nowhere/python3", "/nowhere/python3: No such file or directory"),
        (old_python(host.place), "is CPython 3.10, not CPython 3.11 to 3.14"),
    ]:
        message = refusal(Host(host.place, python).play(wheel()))
        assert why in message
        assert "apt-get install python3" in message
        assert "set appliance_python" in message
    assert not host.home.exists()


def test_a_lock_of_its_own_may_contradict_the_tests_own(
    host: Host, wheel: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch of one backend and torch of another, say; here the `packaging` that Ansible runs on."""
    other = tiny_wheel(host.place / "index", name="packaging", version="0.0.1")
    tested = {pin.version for pin in pins(ROOT / "release/locks/test.txt", {}) if pin.name == "packaging"}
    assert tested and "0.0.1" not in tested
    monkeypatch.setenv("PIP_FIND_LINKS", str(other.parent))
    run = host.play(wheel(), lock=f"packaging==0.0.1 --hash=sha256:{sha256(other)}\n")
    assert run.succeeded().changed == 1
    said = subprocess.run([host.home / "env/bin/packaging"], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "0.0.1"


def test_removal_leaves_what_the_program_wrote(host: Host, wheel: Callable[..., Path]) -> None:
    host.play(wheel()).succeeded()
    (host.home / "data").mkdir()
    assert host.play(wheel(), release_state="absent", check=True).succeeded().changed == 1
    assert host.says() == "1.0"
    assert host.play(wheel(), wheel(), release_state="absent").succeeded().changed == 1  # the second time there is none
    assert [path.name for path in host.home.iterdir()] == ["data"]


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


def test_a_host_without_python_gets_the_standalone_one_that_was_named(host: Host, wheel: Callable[..., Path]) -> None:
    archive = pack_interpreter(host.place / "python.tar.gz")
    named: dict[str, Any] = {"release_python_archive": str(archive), "release_python_sha256": sha256(archive)}
    host.python = "/nowhere/python3"
    assert host.play(wheel(), check=True, **named).succeeded().changed == 1
    assert not host.home.exists()

    assert host.play(wheel(), **named).succeeded().changed == 1
    base = "import sys; print(sys.base_prefix)"
    home = subprocess.run([host.home / "env/bin/python", "-c", base], capture_output=True, text=True, check=True).stdout
    assert home.strip() == str(host.home / "python" / sha256(archive)[:12])
    assert host.says() == "1.0"
    assert host.play(wheel(), **named).succeeded().changed == 0

    named["release_python_sha256"] = "0" * 64
    assert f"has the sha256 {sha256(archive)}, not {'0' * 64}" in refusal(host.play(wheel(), **named))

    own = {"archive": str(archive), "sha256": sha256(archive)}
    assert host.play(wheel(), release_python=own).succeeded().changed == 0  # for this release alone, the same one
