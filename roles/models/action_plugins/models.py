"""Fetch the model files that a host lacks, once on the control node, and bring them there in pieces.

The module of the same name says what is missing and from which byte on, so that a run that was interrupted goes on.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

CHECKOUT = Path(__file__).resolve().parents[3]
PIECE = 64 << 20


class ActionModule(ActionBase):  # type: ignore[misc]  # ansible-core ships no types
    """`models:` with a `source` for each file beside the module's own options."""

    TRANSFERS_FILES = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        super().run(tmp, task_vars)
        try:
            found = self._module(task_vars)
            if not self._task.check_mode and not found.get("failed"):
                files = {entry["file"]: entry for entry in self._task.args["files"]}
                for name, have in found["missing"].items():
                    last = self._bring(files[name], have, task_vars)
                    if last.get("failed"):
                        return last
            return found
        finally:
            self._remove_tmp_path(self._connection._shell.tmpdir)

    def _module(self, task_vars: dict[str, Any] | None, **piece: Any) -> dict[str, Any]:
        keys = ("file", "sha256", "bytes")
        files = [{key: entry[key] for key in keys} for entry in self._task.args["files"]]
        options = {"path": self._task.args["path"], "files": files, **({"piece": piece} if piece else {})}
        result: dict[str, Any] = self._execute_module("models", options, task_vars=task_vars)
        return result

    def _bring(self, entry: dict[str, Any], have: int, task_vars: dict[str, Any] | None) -> dict[str, Any]:
        path, size = fetch(entry), int(entry["bytes"])
        if self._connection.transport == "local":
            return self._module(task_vars, file=entry["file"], source=str(path), start=have)
        done: dict[str, Any] = {}
        with path.open("rb") as source:
            source.seek(have)
            while not done.get("failed") and (piece := source.read(PIECE)):
                done = self._module(task_vars, file=entry["file"], source=self._copy(piece))
                Display().display(f"{entry['file']}: {source.tell() * 100 // size} % at the host")
        return done

    def _copy(self, piece: bytes) -> str:
        if not self._connection._shell.tmpdir:
            self._make_tmp_path()
        remote: str = self._connection._shell.join_path(self._connection._shell.tmpdir, "piece")
        with tempfile.NamedTemporaryFile() as local:
            local.write(piece)
            local.flush()
            self._transfer_file(local.name, remote)
        self._fixup_perms2((self._connection._shell.tmpdir, remote))
        return remote


def fetch(entry: dict[str, Any]) -> Path:
    """The file on the control node; what the download says meanwhile is shown, its last line is its refusal."""
    said = ""
    command = [sys.executable, "-m", "release.download", entry["source"], entry["sha256"], f"--bytes={entry['bytes']}"]
    with subprocess.Popen(
        command, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True
    ) as download:
        for line in download.stdout or ():
            if said:
                Display().display(said)
            said = line.strip()
    if download.returncode:
        raise AnsibleActionFail(f"{entry['file']}: {said}")
    return Path(said)
