"""Bring releases to the host that lacks them; the module of the same name does the rest there.

One task for all: ask the host what it is and has, work out the releases here, fetch and copy only what is absent,
install and switch.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

CHECKOUT = Path(__file__).resolve().parents[3]
HERE = ("lock", "wheels", "package", "archives", "archive_version")  # of this plugin; the others are the module's
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.bz2", ".zip")  # what does not end so is a single program


def download(source: str, sha256: str) -> Path:
    """Where the control node has the file; it says in one line why it has not."""
    done = subprocess.run(
        [sys.executable, "-m", "release.download", source, sha256],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise AnsibleActionFail(done.stderr.strip().splitlines()[-1])
    return Path(done.stdout.strip())


class Wheels:
    """A lock's wheels, and those that are built here, for the interpreter that the host reported."""

    def __init__(self, given: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        if str(CHECKOUT) not in sys.path:
            sys.path.insert(0, str(CHECKOUT))
        self._house = importlib.import_module("release.wheelhouse")
        wheels = [Path(wheel) for wheel in given.get("wheels") or []]
        try:
            target = self._house.Target.from_facts(found["interpreter"])
            self._release = self._house.resolve(Path(given["lock"]), wheels, given["package"], found["python"], target)
            self.version: str = self._release.version
        except (self._house.WheelhouseError, RuntimeError, ValueError, OSError) as error:
            raise AnsibleActionFail(str(error)) from error
        self.options: dict[str, str] = {}

    def fetch(self) -> Path:
        try:
            directory, fetched = self._house.fetch(self._release)
        except (self._house.WheelhouseError, OSError) as error:
            raise AnsibleActionFail(str(error)) from error
        Display().v(f"{fetched} wheels downloaded to {directory}")
        return Path(directory)


class Archive:
    """A vendor's archive or program for the system and architecture that the host reported."""

    def __init__(self, given: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        archives, version = given["archives"], given["archive_version"]
        if found["platform"] not in archives:
            raise AnsibleActionFail(
                f"{given['package']} {version} has no archive for {found['platform']}: there are {', '.join(archives)}"
            )
        archive = archives[found["platform"]]
        if lacks := [key for key in ("source", "sha256") if not archive.get(key)]:
            raise AnsibleActionFail(f"{given['package']}: the archive for {found['platform']} lacks {', '.join(lacks)}")
        self._source, self._digest = archive["source"], archive["sha256"]
        self.version = f"{version}-{self._digest[:12]}"
        program = {"form": "program", "program": given["package"]}
        self.options = {"form": "archive"} if self._source.endswith(ARCHIVES) else program

    def fetch(self) -> Path:
        Display().display(f"fetching {self._source}")
        return download(self._source, self._digest)


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible-core ships no types
    """`release:` whose releases have wheels or archives on the control node beside the module's own options."""

    TRANSFERS_FILES = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        self._task_vars = task_vars
        given = self._task.args["releases"]
        try:
            asked = self._module([options(release) for release in given])
            absent = self._task.args.get("state") == "absent"
            return asked if absent else self._present(given, asked)
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)

    def _present(self, given: list[dict[str, Any]], asked: dict[str, Any]) -> dict[str, Any]:
        """Install and select what the host has not selected yet."""
        changed, wanted = asked["changed"], []
        for release, found in zip(given, asked["releases"], strict=True):
            if found.get("python_missing"):
                if self._task.check_mode:
                    continue
                more = {"python_archive": self._python_archive(release)}
                (found,) = self._module([options(release, more)])["releases"]
            source = Archive(release, found) if release.get("archives") else Wheels(release, found)
            missing = source.version not in found["installed"]
            if missing or found["current"] != source.version:
                more = {"version": source.version, **source.options}
                if missing and not self._task.check_mode:
                    more["source"] = self._reachable(source.fetch(), source.version)
                wanted.append(options(release, more))
        if not wanted:
            return {"changed": changed}
        done = self._module(wanted)
        return {**done, "changed": changed or done["changed"]}

    def _module(self, releases: list[dict[str, Any]]) -> dict[str, Any]:
        arguments = {"releases": releases, "state": self._task.args.get("state", "present")}
        result: dict[str, Any] = self._execute_module("release", arguments, task_vars=self._task_vars)
        if result.get("failed"):
            raise AnsibleActionFail(result.get("msg", "the module failed"), result=result)
        return result

    def _reachable(self, path: Path, version: str) -> str:
        """Where the host finds it: here when the host is the control node, else in a copy; wheels in one archive."""
        if self._connection.transport == "local":
            return str(path)
        if path.is_file():
            return self._copy(str(path), version)
        with tempfile.NamedTemporaryFile(suffix=".tar") as archive:
            with tarfile.open(archive.name, "w") as tar:
                for file in sorted(path.iterdir()):
                    tar.add(file, arcname=file.name)
            return self._copy(archive.name, f"{version}.tar")

    def _python_archive(self, release: Mapping[str, Any]) -> str:
        """Where the host finds the standalone CPython's archive."""
        archive = str(download(release["python_archive"], release["python_sha256"]))
        return archive if self._connection.transport == "local" else self._copy(archive, "python.tar")

    def _copy(self, local: str, name: str) -> str:
        if not self._connection._shell.tmpdir:
            self._make_tmp_path()
        remote: str = self._connection._shell.join_path(self._connection._shell.tmpdir, name)
        self._transfer_file(local, remote)
        self._fixup_perms2((self._connection._shell.tmpdir, remote))
        return remote


def options(release: Mapping[str, Any], more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The module's options; a program from an archive needs no interpreter."""
    kept = {key: value for key, value in release.items() if key not in HERE and value}
    kept.pop("python_archive", None)  # a path on the control node; `more` names its copy on the host
    if release.get("archives"):
        kept = {key: value for key, value in kept.items() if not key.startswith("python")}
    return {**kept, **(more or {})}
