#!/usr/bin/python
"""Keep supervisord itself running, or stop it with everything it runs."""

from __future__ import annotations

import os
import resource
import subprocess
from typing import Callable, Dict

from ansible.module_utils.appliance_service import ARGUMENTS, Failure, Manager, poll, run, tail
from ansible.module_utils.appliance_supervisor import SHUTDOWN_STATE, Fault, Supervisor
from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
---
module: supervisor_daemon
short_description: Start supervisord detached, with a clean environment, or stop it and all its programs
description:
  - Restarts only when the running supervisord was started from another configuration or release than the one wanted.
options:
  name: {description: Its name in messages., type: str, default: supervisord}
  program: {description: The supervisord to start., type: path, required: true}
  socket: {description: Its unix socket., type: path, required: true}
  home: {description: HOME of what it runs., type: path, required: true}
  state: {description: What to bring it to., type: str, choices: [present, stopped, absent], default: present}
  path: {description: Where its configuration lies., type: path, required: true}
  content: {description: Its text; the identifier is C(@revision@)., type: str}
  reads: {description: What it reads at its start., type: list, elements: path, default: []}
  directories:
    description: Directories that are created and kept before anything starts.
    type: list
    elements: dict
    default: []
    suboptions:
      path: {description: The directory., type: path, required: true}
      mode: {description: Its mode., type: str, required: true}
      owner: {description: Its owner., type: str}
      group: {description: Its group., type: str}
  logs: {description: Its log., type: list, elements: path, default: []}
  user: {description: Owner of the log., type: str}
  stop_timeout: {description: Seconds that all programs together may take to stop., type: int, default: 15}
author: AI Appliance
"""

EXAMPLES = r"""
- name: Stop everything
  supervisor_daemon:
    state: stopped
    program: /home/me/appliance/var/lib/supervisor/env/bin/supervisord
    home: /home/me/appliance/var/lib/supervisor
    socket: /home/me/appliance/run/supervisor.sock
    path: /home/me/appliance/etc/appliance/supervisord.conf
"""

START_SECONDS = 20
OPEN_FILES = 65536
# A socket is bound as <path>.<pid> first; sun_path holds 108 bytes on Linux, 104 on macOS, the closing zero included.
PATH_LIMIT = (104 if os.uname().sysname == "Darwin" else 108) - 1 - len(".4194304")


class Daemon(Manager):  # type: ignore[misc]  # mypy cannot follow Ansible's import paths
    """supervisord, found by its socket; its identifier is the revision that it was started from."""

    def __init__(self, module: AnsibleModule) -> None:
        self._params = module.params
        excess = len(os.fsencode(self._params["socket"])) - PATH_LIMIT
        if excess > 0:
            module.fail_json(
                msg=f"The path of supervisor's socket, {self._params['socket']}, is {excess} bytes too long for a unix "
                "socket: move the checkout to a shorter path, or choose a directory with -e appliance_root=/short/path"
            )
        self._supervisor = Supervisor(self._params["socket"], timeout=10)

    def current(self, revision: str) -> bool:
        return bool(self._supervisor.call("getIdentification") == revision)

    def running(self) -> bool:
        return bool(self._supervisor.answers())

    def known(self) -> bool:
        return self.running()

    def apply(self, restart: bool) -> None:
        if not restart:
            return
        if self.running():
            self.stop()
        os.makedirs(os.path.dirname(self._params["socket"]), mode=0o700, exist_ok=True)
        started = subprocess.run(
            [self._params["program"], "-c", self._params["path"]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self._environment(),
            cwd="/",
            timeout=START_SECONDS,
            check=False,
        )
        if started.returncode != 0 or not poll(self.running, START_SECONDS):
            output = started.stdout.decode(errors="replace").strip()
            raise Failure("\n".join(["supervisord did not start:", output, *map(tail, self._params["logs"])]))

    def _environment(self) -> Dict[str, str]:
        """Nothing of the caller's; its programs inherit this and the limit on open files."""
        _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return {"HOME": self._params["home"], "PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}

    def stop(self) -> None:
        pid = None
        try:
            pid = self._supervisor.call("getPID")
            self._supervisor.call("shutdown")
        except Fault as fault:
            if fault.faultCode != SHUTDOWN_STATE:  # an earlier run may have asked for it
                raise
        seconds = self._params["stop_timeout"] + 10
        if not poll(lambda: not self.running() and not (pid and _alive(pid)), seconds):
            raise Failure(f"supervisord is still stopping its programs after {seconds} s: run this again")

    def forget(self, delete: Callable[[], None]) -> None:
        if self.running():
            self.stop()
        delete()


def _alive(pid: int) -> bool:
    """Whether the process exists, other than as a zombie that a container's first process does not reap."""
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except FileNotFoundError:
        return not os.path.isdir("/proc/self")


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "default": "supervisord"},
            "program": {"type": "path", "required": True},
            "socket": {"type": "path", "required": True},
            "home": {"type": "path", "required": True},
            **ARGUMENTS,
        },
        supports_check_mode=True,
    )
    run(module, Daemon(module))


if __name__ == "__main__":
    main()
