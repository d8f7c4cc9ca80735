"""Run ansible-playbook as an operator does and read its recap."""

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

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

    def succeeded(self) -> "Run":
        assert self.status == 0, self.output
        return self


def ansible_playbook(playbook: Path, *arguments: str, inventory: Path, timeout: float = 300) -> Run:
    argv = [str(ANSIBLE_PLAYBOOK), str(playbook), "-i", str(inventory), *arguments]
    with tempfile.TemporaryDirectory(prefix="ssh") as sockets:
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_FORCE_COLOR": "0",
            "ANSIBLE_NOCOLOR": "1",
            # No connection that an earlier run left open is used again: its host may be another one by now.
            "ANSIBLE_SSH_CONTROL_PATH_DIR": sockets,
        }
        done = subprocess.run(
            argv,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
    return Run(done.returncode, done.stdout)
