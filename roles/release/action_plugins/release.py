"""Bring a release to the host that lacks it; the module of the same name does the rest there.

One task instead of five: ask the host what it is, work out the release for it here, fetch and copy only what is absent,
install and switch.
"""

from __future__ import annotations

import json
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


def ask(module: str, *arguments: str, given: str = "") -> str:
    """What a program of the control node prints; it says in one line why it cannot."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=CHECKOUT,
        input=given,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise AnsibleActionFail(done.stderr.strip().splitlines()[-1])
    if done.stderr:
        Display().v(done.stderr.strip())
    return done.stdout


class Wheels:
    """A lock's wheels, and those that are built here, for the interpreter that the host reported."""

    def __init__(self, given: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        wheels = [f"--wheel={wheel}" for wheel in given.get("wheels") or []]
        of_whom = [f"--package={given['package']}", f"--python={found['python']}"]
        self._arguments = [f"--lock={given['lock']}", *wheels, *of_whom]
        self._interpreter = json.dumps(found["interpreter"])
        self.version: str = self._answer()["version"]
        self.options: dict[str, str] = {}

    def _answer(self, *more: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(ask("release.wheelhouse", *self._arguments, *more, given=self._interpreter))
        return answer

    def fetch(self) -> Path:
        return Path(self._answer("--fetch")["directory"])


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
        return Path(ask("release.download", self._source, self._digest).strip())


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible-core ships no types
    """`release:` with wheels or archives on the control node beside the module's own options."""

    TRANSFERS_FILES = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        try:
            present = self._option("state", "present") == "present"
            return self._present(task_vars) if present else self._module(task_vars)
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)

    def _present(self, task_vars: dict[str, Any] | None) -> dict[str, Any]:
        archives = self._option("archives")
        if archives:  # a program that needs no interpreter
            self._task.args.update(python="", python_archive="", python_sha256="")
        found = self._module(task_vars)
        if found.get("python_missing") and not self._task.check_mode:
            found = self._module(task_vars, python_archive=self._python_archive())
        if found.get("failed") or found.get("python_missing"):
            return found
        source = Archive(self._task.args, found) if archives else Wheels(self._task.args, found)
        missing = source.version not in found["installed"]
        if found["current"] == source.version and not missing:
            return {key: value for key, value in found.items() if key != "interpreter"}
        options = {"version": source.version, **source.options}
        if missing and not self._task.check_mode:
            options["source"] = self._reachable(source.fetch())
        done = self._module(task_vars, **options)
        return {**done, "changed": done.get("changed", False) or found["changed"]}

    def _option(self, name: str, default: Any = None) -> Any:
        return self._task.args.get(name) or default

    def _module(self, task_vars: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
        options = {key: value for key, value in self._task.args.items() if key not in HERE and value}
        options.pop("python_archive", None)  # a path on the control node; `more` names its copy on the host
        result: dict[str, Any] = self._execute_module(
            "release", {**options, **{key: value for key, value in more.items() if value}}, task_vars=task_vars
        )
        return result

    def _reachable(self, path: Path) -> str:
        """Where the host finds it: here when the host is the control node, else in a copy; wheels in one archive."""
        if self._connection.transport == "local":
            return str(path)
        if path.is_file():
            return self._copy(str(path), "release")
        with tempfile.NamedTemporaryFile(suffix=".tar") as archive:
            with tarfile.open(archive.name, "w") as tar:
                for file in sorted(path.iterdir()):
                    tar.add(file, arcname=file.name)
            return self._copy(archive.name, "wheels.tar")

    def _python_archive(self) -> str:
        """Where the host finds the standalone CPython's archive."""
        archive = ask("release.download", self._option("python_archive", ""), self._task.args["python_sha256"]).strip()
        return archive if self._connection.transport == "local" else self._copy(archive, "python.tar")

    def _copy(self, local: str, name: str) -> str:
        if not self._connection._shell.tmpdir:
            self._make_tmp_path()
        remote: str = self._connection._shell.join_path(self._connection._shell.tmpdir, name)
        self._transfer_file(local, remote)
        self._fixup_perms2((self._connection._shell.tmpdir, remote))
        return remote
