"""Run ansible-playbook as an operator does and read its recap; or one module by itself."""

import io
import json
import os
import re
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import ansible.module_utils
from ansible.module_utils.common import warnings
from ansible.module_utils.testing import patch_module_args

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = {"ANSIBLE_ACTION_PLUGINS": str(ROOT / "tests/support/action_plugins")}  # its docstring says what for
ANSIBLE_PLAYBOOK = Path(sys.executable).with_name("ansible-playbook")


@dataclass(frozen=True)
class Run:
    status: int
    output: str

    @property
    def changed(self) -> int:
        """The recap's `changed`, summed over hosts."""
        return sum(map(int, re.findall(r"changed=(\d+)", self.output)))

    def counts(self, host: str) -> dict[str, int]:
        """The recap's counts of a host: ok, changed, failed and so on."""
        recap = re.search(rf"^{re.escape(host)} +: (.*)$", self.output, re.MULTILINE)
        assert recap, self.output
        return {name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", recap[1])}

    def said(self, host: str) -> str:
        """The failure that ended the run on a host."""
        found = re.search(rf"fatal: \[{re.escape(host)}\].*?(?=\nfatal: |\nPLAY RECAP)", self.output, re.DOTALL)
        assert found, self.output
        return found[0]

    def succeeded(self) -> "Run":
        assert self.status == 0, self.output
        return self


def ansible_playbook(
    playbook: Path,
    *arguments: str,
    inventory: Path,
    timeout: float = 300,
    environment: Mapping[str, str] | None = None,
    checkout: Path = ROOT,
) -> Run:
    argv = [str(ANSIBLE_PLAYBOOK), str(playbook), "-i", str(inventory), *arguments]
    with tempfile.TemporaryDirectory(prefix="ssh") as sockets:
        complete = {
            **os.environ,
            **(environment or {}),
            "ANSIBLE_CONFIG": str(checkout / "ansible.cfg"),
            "ANSIBLE_FORCE_COLOR": "0",
            "ANSIBLE_NOCOLOR": "1",
            # No connection that an earlier run left open is used again: its host may be another one by now.
            "ANSIBLE_SSH_CONTROL_PATH_DIR": sockets,
        }
        done = subprocess.run(
            argv,
            cwd=checkout,
            env=complete,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
    return Run(done.returncode, done.stdout)


def play_cases(
    place: Path, cases: Mapping[str, Mapping[str, Any]], tasks: list[Any], *arguments: str, **environment: str
) -> Run:
    """Play the tasks on this machine as on a host for each case, which the case's variables describe."""
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    hosts = {name: {**local, **case} for name, case in cases.items()}
    play, inventory = place / "play.json", place / "hosts.json"
    play.write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
    inventory.write_text(json.dumps({"all": {"hosts": hosts}}))
    return ansible_playbook(play, *arguments, inventory=inventory, environment=environment)


def run_module(
    module: Path, arguments: Mapping[str, Any], environment: Mapping[str, str] = os.environ
) -> dict[str, Any]:
    """The result of one task: a role's module in this process, without Ansible's way to a host."""
    beside = [*ansible.module_utils.__path__, str(module.parents[1] / "module_utils")]  # where Ansible merges them
    with (
        patch_module_args(dict(arguments)),
        mock.patch.object(ansible.module_utils, "__path__", beside),
        mock.patch.object(warnings, "_global_warnings", {}),
        mock.patch.dict(os.environ, dict(environment), clear=True),
        redirect_stdout(io.StringIO()) as output,
        suppress(SystemExit),
    ):
        runpy.run_path(str(module), run_name="__main__")
    return dict(json.loads(output.getvalue()))
