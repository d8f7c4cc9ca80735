"""Releases that are a vendor's archive or single program: fetched, checked, unpacked safely, switched."""

from __future__ import annotations

import importlib.util
import io
import os
import stat
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from release.wheelhouse import sha256
from tests.support.ansible_run import ROOT, Run, play_cases

PLATFORM = "-".join((os.uname().sysname, os.uname().machine)).lower()
SAYS = b"#!/bin/sh\necho %s\n"
specification = importlib.util.spec_from_file_location("module", ROOT / "roles/release/library/release.py")
assert specification and specification.loader
module: Any = importlib.util.module_from_spec(specification)
specification.loader.exec_module(module)

Entry = tuple[str, bytes, int, str]  # name, tarfile's type, mode, content or target
FILE, DIRECTORY, LINK, HARD, FIFO, DEVICE = (
    tarfile.REGTYPE,
    tarfile.DIRTYPE,
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.FIFOTYPE,
    tarfile.CHRTYPE,
)
USUAL: list[Entry] = [
    ("tool-1.0/", DIRECTORY, 0o777, ""),
    ("tool-1.0/bin/tool", FILE, 0o4755, SAYS.decode() % "archive"),
    ("tool-1.0/lib/libx.so.1.2", FILE, 0o644, "library"),
    ("tool-1.0/lib/libx.so", LINK, 0o777, "libx.so.1.2"),
    ("tool-1.0/lib/again.so", LINK, 0o777, "../lib/libx.so"),
]


def tarball(path: Path, entries: Iterable[Entry]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, kind, mode, content in entries:
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.uid = kind, mode, 12345
            if kind == FILE:
                info.size = len(content)
            else:
                info.linkname = content
            tar.addfile(info, io.BytesIO(content.encode()) if kind == FILE else None)
    return path


def zipped(path: Path, entries: Iterable[Entry]) -> Path:
    kinds = {FILE: stat.S_IFREG, DIRECTORY: stat.S_IFDIR, LINK: stat.S_IFLNK, FIFO: stat.S_IFIFO}
    with zipfile.ZipFile(path, "w") as archive:
        for name, kind, mode, content in entries:
            info = zipfile.ZipInfo(name)
            info.external_attr = (kinds[kind] | mode) << 16
            archive.writestr(info, content)
    return path


PACKERS = pytest.mark.parametrize("pack", [tarball, zipped])


@PACKERS
def test_an_archive_is_unpacked_without_its_outermost_directory(
    tmp_path: Path, pack: Callable[[Path, list[Entry]], Path]
) -> None:
    there = Path(module.unpack(str(pack(tmp_path / "archive", USUAL)), str(tmp_path / "there")))
    assert sorted(str(path.relative_to(there)) for path in there.rglob("*")) == [
        *("bin", "bin/tool", "lib", "lib/again.so", "lib/libx.so", "lib/libx.so.1.2")
    ]
    assert (there / "lib/again.so").read_text() == "library"
    program = (there / "bin/tool").stat()
    assert (stat.S_IMODE(program.st_mode), program.st_uid) == (0o755, os.getuid())
    assert stat.S_IMODE((there / "lib/libx.so.1.2").stat().st_mode) == 0o644


def test_a_hard_link_is_a_copy_and_several_outermost_names_stay(tmp_path: Path) -> None:
    entries = [("tool", FILE, 0o755, "text"), ("same", HARD, 0o755, "tool"), ("./d/x", FILE, 0o644, "")]
    there = Path(module.unpack(str(tarball(tmp_path / "archive", entries)), str(tmp_path / "there")))
    assert sorted(path.name for path in there.iterdir()) == ["d", "same", "tool"]
    assert (there / "same").read_text() == "text"


EVIL: list[tuple[str, list[Entry]]] = [
    ("leads out", [("../x", FILE, 0o644, "")]),
    ("leads out", [("a/../../x", FILE, 0o644, "")]),
    ("leads out", [("/etc/x", FILE, 0o644, "")]),
    ("is a link to /etc", [("a/x", LINK, 0o777, "/etc")]),
    ("leads out", [("b", FILE, 0o644, ""), ("a/x", LINK, 0o777, "../../etc")]),
    # Inside by its letters, outside where the name before `..` is a link.
    (
        "is a link to",
        [("c", FILE, 0o644, ""), ("p/q/b", LINK, 0o777, "../../top"), ("p/q/a", LINK, 0o777, "b/../../x")],
    ),
    ("lies behind a link", [("c", FILE, 0o644, ""), ("a", LINK, 0o777, "b"), ("a/x", FILE, 0o644, "")]),
    ("lies behind a link", [("c", FILE, 0o644, ""), ("a", LINK, 0o777, "b"), ("a", FILE, 0o644, "")]),
    ("is neither a file nor", [("c", FILE, 0o644, ""), ("a", FIFO, 0o644, "")]),
]


@PACKERS
@pytest.mark.parametrize(("reason", "entries"), EVIL)
@pytest.mark.filterwarnings("ignore:Duplicate name")  # zipfile's, of what is built here
def test_an_archive_that_reaches_beyond_its_directory_is_refused(
    tmp_path: Path, pack: Callable[[Path, list[Entry]], Path], reason: str, entries: list[Entry]
) -> None:
    refuse(tmp_path, pack(tmp_path / "archive", entries), reason)


def refuse(tmp_path: Path, archive: Path, reason: str) -> None:
    with pytest.raises(module.Refusal, match=reason) as refusal:
        module.unpack(str(archive), str(tmp_path / "there/inner"))
    assert "\n" not in str(refusal.value)
    assert [path for path in tmp_path.rglob("x") if tmp_path / "there/inner" not in path.parents] == []


@pytest.mark.parametrize("content", [None, b"words", b""])
def test_a_damaged_archive_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tarball(tmp_path / "archive", [("x", FILE, 0o644, "word " * 100_000)])
    path.write_bytes(path.read_bytes()[:-300] if content is None else content)
    refuse(tmp_path, path, "is not a whole archive")


def test_a_device_and_a_link_to_what_is_not_in_the_archive_are_refused(tmp_path: Path) -> None:
    refuse(tmp_path, tarball(tmp_path / "archive", [("a", DEVICE, 0o666, "")]), "is neither a file nor")
    refuse(tmp_path, tarball(tmp_path / "archive", [("a", HARD, 0o644, "/etc/passwd")]), "is not a whole archive")


def test_an_archive_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    member = module.Member("x", stat.S_IFREG, False, 1 << 60, "", lambda: None)
    with pytest.raises(module.Refusal, match=r"1152921504606 MB are needed; make room there"):
        module.place([member], str(tmp_path))


# The role, with a host for each case.


def play(place: Path, cases: dict[str, dict[str, Any]], *arguments: str) -> Run:
    common = {"release_names": ["tool"], "appliance_python": "/nowhere/python"}
    given = {name: common | {"appliance_lib": str(place / name)} | case for name, case in cases.items()}
    return play_cases(place, given, [{"include_role": {"name": "release"}}], *arguments)


def says(place: Path) -> str:
    return subprocess.run([place / "tool/env/bin/tool"], capture_output=True, text=True, check=True).stdout.strip()


def test_archives_and_programs_become_releases(tmp_path: Path) -> None:
    (tmp_path / "tool").write_bytes(SAYS % b"program")
    sources = {
        "tar": tarball(tmp_path / "tool.tgz", USUAL),
        "zip": zipped(tmp_path / "tool.zip", USUAL),
        "program": tmp_path / "tool",
    }

    def case(path: Path, digest: str = "", platform: str = PLATFORM) -> dict[str, Any]:
        archives = {platform: {"source": str(path), "sha256": digest or sha256(path)}}
        return {"release_archives": archives, "release_version": "1.0"}

    good = {name: case(path) for name, path in sources.items()}
    wrong = {
        "digest": case(sources["tar"], "0" * 64),
        "elsewhere": case(sources["tar"], platform="plan9-mips"),
        "unchecked": {"release_archives": {PLATFORM: {"source": "tool.tgz"}}, "release_version": "1.0"},
        "absent": case(tmp_path / "none.tgz", "0" * 64),
        "evil": case(tarball(tmp_path / "evil.tgz", EVIL[0][1])),
    }
    assert play(tmp_path, good, "--check").succeeded().changed == len(good)
    assert not (tmp_path / "tar").exists()

    run = play(tmp_path, good | wrong)
    said = " ".join(run.output.split())
    digest = sha256(sources["tar"])
    assert f"tool.tgz has the sha256 {digest}, not {'0' * 64}; correct the digest" in said
    assert f"tool 1.0 has no archive for {PLATFORM}: there are plan9-mips" in said
    assert f"tool: the archive for {PLATFORM} lacks sha256" in said
    assert "none.tgz is missing; put the file there, or correct the path" in said
    assert "../x leads out of the archive" in said
    assert "Traceback" not in said
    assert [name for name in wrong if (tmp_path / name / "tool/env").exists()] == []
    assert {name: says(tmp_path / name) for name in good} == {"tar": "archive", "zip": "archive", "program": "program"}
    assert (tmp_path / "tar/tool/env").readlink() == Path(f"releases/1.0-{digest[:12]}")

    other = tarball(tmp_path / "other.tgz", [("tool", FILE, 0o755, ""), ("bin/tool", FILE, 0o755, SAYS.decode() % 2)])
    again = play(tmp_path, good | {"tar": case(other)}).succeeded()
    assert [again.counts(name)["changed"] for name in good] == [1, 0, 0]
    assert says(tmp_path / "tar") == "2"
    assert (tmp_path / "tar/tool/previous").readlink() == Path(f"releases/1.0-{digest[:12]}")
