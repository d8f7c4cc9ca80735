"""Run ansible-playbook as an operator does and read its recap; or one module by itself."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
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


# Argument 1: the role's module_utils, where Ansible would merge them; 2: the module.
RUNNER = """
import runpy, sys
import ansible.module_utils, ansible.module_utils.basic as basic
ansible.module_utils.__path__.append(sys.argv[1])
basic._ANSIBLE_PROFILE = "legacy"
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_module(
    module: Path, arguments: Mapping[str, Any], environment: Mapping[str, str] = os.environ
) -> dict[str, Any]:
    """The result of one task, run as Ansible runs a role's module but without its way to a host."""
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, module.parents[1] / "module_utils", module],
        input=json.dumps({"ANSIBLE_MODULE_ARGS": arguments}),
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.stdout, done.stderr
    return dict(json.loads(done.stdout))
