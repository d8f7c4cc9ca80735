"""Wheels come once, for the host's platform, with the hashes of the lock, or not at all. The index is a directory."""

import subprocess
from pathlib import Path

import pytest

from release import wheelhouse
from release.build import build_wheel
from release.lock import Pin
from release.target import Target
from tests.support.tiny_wheel import tiny_wheel

ROOT = Path(__file__).parents[2]
MARKERS = {"sys_platform": "linux", "platform_machine": "x86_64", "python_version": "3.11"}
TARGET = Target(MARKERS, glibc="2.36")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only place that pip downloads from; holds a stand-in for pip's own wheel."""
    directory = tmp_path / "index"
    installer = tiny_wheel(directory, "pip", "99.0")
    lock = tmp_path / "control.txt"
    lock.write_text(f"pip==99.0 --hash=sha256:{wheelhouse.sha256(installer)}\n")
    monkeypatch.setattr(wheelhouse, "CONTROL_LOCK", lock)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    return directory


def pin(wheel: Path) -> Pin:
    name, version, *_ = wheel.name.split("-")
    return Pin(name, version, (wheelhouse.sha256(wheel),))


def release(*pins: Pin, wheels: tuple[Path, ...] = (), package: str = "tiny", python: str = "/p") -> wheelhouse.Release:
    return wheelhouse.Release(package, TARGET, python, pins, wheels)


def test_a_release_is_whole_and_comes_once(index: Path, tmp_path: Path) -> None:
    tiny = tiny_wheel(index)
    wanted = release(pin(tiny))
    directory, fetched = wheelhouse.fetch(wanted, tmp_path / "house")
    assert fetched == 2
    assert directory.parent.name == TARGET.name
    assert sorted(path.name for path in directory.iterdir()) == [
        "SHA256SUMS",
        "pip-99.0-py3-none-any.whl",
        "requirements.txt",
        tiny.name,
    ]
    assert (directory / "requirements.txt").read_text() == f"tiny==1.0 --hash=sha256:{wheelhouse.sha256(tiny)}\n"
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=directory, check=True)

    for wheel in index.iterdir():
        wheel.unlink()  # a second download would fail
    assert wheelhouse.fetch(wanted, tmp_path / "house") == (directory, 0)


def test_what_another_release_brought_is_not_downloaded_again(index: Path, tmp_path: Path) -> None:
    tiny, other = tiny_wheel(index), tiny_wheel(index, "other")
    wheelhouse.fetch(release(pin(tiny)), tmp_path / "house")
    directory, fetched = wheelhouse.fetch(release(pin(tiny), pin(other)), tmp_path / "house")
    assert fetched == 1
    assert {tiny.name, other.name} < {path.name for path in directory.iterdir()}


def test_a_directory_that_lost_a_wheel_is_made_again(index: Path, tmp_path: Path) -> None:
    tiny = tiny_wheel(index)
    directory, _ = wheelhouse.fetch(release(pin(tiny)), tmp_path / "house")
    (directory / tiny.name).unlink()
    wheelhouse.fetch(release(pin(tiny)), tmp_path / "house")
    assert (directory / tiny.name).is_file()


def test_a_missing_wheel_names_package_and_target(index: Path, tmp_path: Path) -> None:
    foreign = tiny_wheel(index, tag="cp311-cp311-macosx_11_0_arm64")
    with pytest.raises(wheelhouse.WheelhouseError) as refusal:
        wheelhouse.fetch(release(pin(foreign)), tmp_path / "house")
    assert str(refusal.value).startswith("no wheel of tiny==1.0 for linux-x86_64-glibc2.36-cp311: ")
    assert not list((tmp_path / "house").glob("*/*/"))


def test_the_newest_manylinux_level_below_the_hosts_glibc_is_taken(index: Path, tmp_path: Path) -> None:
    levels = [tiny_wheel(index, tag=f"py3-none-manylinux_2_{level}_x86_64", says=str(level)) for level in (17, 36, 39)]
    hashes = tuple(wheelhouse.sha256(wheel) for wheel in levels)
    directory, _ = wheelhouse.fetch(release(Pin("tiny", "1.0", hashes)), tmp_path / "house")
    assert [path.name for path in directory.glob("tiny*")] == [levels[1].name]


def test_a_wheel_with_another_hash_is_refused_and_not_kept(index: Path, tmp_path: Path) -> None:
    tiny_wheel(index)
    with pytest.raises(wheelhouse.WheelhouseError, match="has another sha256 than the lock"):
        wheelhouse.fetch(release(Pin("tiny", "1.0", ("0" * 64,))), tmp_path / "house")
    assert not list((tmp_path / "house").glob("*/*/"))


def test_the_version_names_everything_that_is_installed(tmp_path: Path) -> None:
    one, two = Pin("tiny", "1.0", ("aa",)), Pin("tiny", "1.0", ("bb",))
    local = tiny_wheel(tmp_path / "a")
    changed = tiny_wheel(tmp_path / "b", says="more")
    versions = [
        release(one).version,
        release(two).version,
        release(one, python="/other").version,
        release(one, wheels=(local,)).version,
        release(one, wheels=(changed,)).version,
    ]
    assert len(set(versions)) == len(versions)
    assert all(version.startswith("1.0-") for version in versions)
    assert release(one, wheels=(local,)).version == versions[3]


def test_a_package_that_is_nowhere_is_refused() -> None:
    with pytest.raises(wheelhouse.WheelhouseError, match="set release_package"):
        _ = release(Pin("tiny", "1.0", ("aa",)), package="huge").version


def test_the_gateways_wheel_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    first, second = (build_wheel(ROOT / "gateway_pkg", tmp_path / name) for name in ("a", "b"))
    assert first.name.startswith("ai_appliance_gateway-")
    assert first.read_bytes() == second.read_bytes()


def test_a_wheel_is_built_again_for_other_sources_alone(tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    (project / "pyproject.toml").write_text("[project]\nname = 'x'\nversion = '1'\n")
    (project / "x.py").write_text("one")
    first = build_wheel(project, tmp_path / "out")
    bytes_of_first = first.read_bytes()
    first.write_bytes(b"kept")
    assert build_wheel(project, tmp_path / "out").read_bytes() == b"kept"
    (project / "x.py").write_text("two")
    assert build_wheel(project, tmp_path / "out").read_bytes() not in (b"kept", bytes_of_first)
    first.unlink()
    assert build_wheel(project, tmp_path / "out").exists()


def test_a_project_that_cannot_be_built_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    with pytest.raises(RuntimeError, match=r"^cannot build [^\n]+$"):
        build_wheel(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("line", ["tiny", "-e .", "tiny @ file:///tmp/tiny.whl --hash=sha256:00"])
def test_a_broken_lock_is_refused_in_one_line(line: str, tmp_path: Path) -> None:
    lock = tmp_path / "lock.txt"
    lock.write_text(line + "\n")
    with pytest.raises(ValueError, match=f"^{lock}: .*$") as refusal:
        wheelhouse.resolve(lock, [], "tiny", "/p", Target(MARKERS, "2.36"))
    assert "\n" not in str(refusal.value)
