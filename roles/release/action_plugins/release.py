"""Bring a release's wheels to the host that lacks them; the module of the same name does the rest there.

One task instead of five: ask the host for its interpreter, work out the release for it here, fetch and copy only
what is absent, install and switch.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

CHECKOUT = Path(__file__).resolve().parents[3]
HERE = ("lock", "wheels", "package")  # options of this plugin; the others are the module's


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible-core ships no types
    """`release:` with `lock`, `wheels` and `package` on the control node beside the module's own options."""

    TRANSFERS_FILES = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        try:
            present = self._option("state", "present") == "present"
            return self._present(task_vars) if present else self._module(task_vars)
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)

    def _present(self, task_vars: dict[str, Any] | None) -> dict[str, Any]:
        found = self._module(task_vars)
        if found.get("python_missing") and not self._task.check_mode:
            found = self._module(task_vars, python_archive=self._python_archive())
        if found.get("failed") or found.get("python_missing"):
            return found
        release = self._wheelhouse(found, fetch=False)
        missing = release["version"] not in found["installed"]
        if found["current"] == release["version"] and not missing:
            return {key: value for key, value in found.items() if key != "interpreter"}
        source = None
        if missing and not self._task.check_mode:
            source = self._reachable(Path(self._wheelhouse(found, fetch=True)["directory"]))
        done = self._module(task_vars, version=release["version"], source=source)
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

    def _wheelhouse(self, found: dict[str, Any], *, fetch: bool) -> dict[str, Any]:
        wheels = [f"--wheel={wheel}" for wheel in self._option("wheels", [])]
        done = subprocess.run(
            [
                *(sys.executable, "-m", "release.wheelhouse", f"--lock={self._task.args['lock']}", *wheels),
                *(f"--package={self._task.args['package']}", f"--python={found['python']}", *["--fetch"] * fetch),
            ],
            cwd=CHECKOUT,
            input=json.dumps(found["interpreter"]),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise AnsibleActionFail(done.stderr.strip().splitlines()[-1])
        if done.stderr:
            Display().v(done.stderr.strip())
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def _reachable(self, directory: Path) -> str:
        """Where the host finds the wheels: here when it is the control node itself, else in one copied archive."""
        if self._connection.transport == "local":
            return str(directory)
        with tempfile.NamedTemporaryFile(suffix=".tar") as archive:
            with tarfile.open(archive.name, "w") as tar:
                for file in sorted(directory.iterdir()):
                    tar.add(file, arcname=file.name)
            return self._copy(archive.name, "wheels.tar")

    def _python_archive(self) -> str:
        """Copy the standalone CPython's archive to the host, when it is the one that was declared."""
        archive = Path(self._option("python_archive", ""))
        if not archive.is_file():
            raise AnsibleActionFail(f"release_python_archive {archive} is missing on the control node")
        with archive.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != self._task.args["python_sha256"]:
            raise AnsibleActionFail(f"{archive} has the sha256 {digest}, not release_python_sha256")
        return str(archive) if self._connection.transport == "local" else self._copy(str(archive), "python.tar")

    def _copy(self, local: str, name: str) -> str:
        if not self._connection._shell.tmpdir:
            self._make_tmp_path()
        remote: str = self._connection._shell.join_path(self._connection._shell.tmpdir, name)
        self._transfer_file(local, remote)
        self._fixup_perms2((self._connection._shell.tmpdir, remote))
        return remote
