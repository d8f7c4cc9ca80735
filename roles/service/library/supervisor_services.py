#!/usr/bin/python
"""Keep supervisord and its programs as their definitions say."""

from __future__ import annotations

import os
import resource
import subprocess
from typing import Any, Callable, Dict, Iterator, Tuple

from ansible.module_utils.appliance_service import ARGUMENTS, OPTIONS, Failure, Manager, Options, poll, run, tail
from ansible.module_utils.appliance_supervisor import BAD_NAME, NOT_RUNNING, SHUTDOWN_STATE, Fault, Supervisor
from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
---
module: supervisor_services
short_description: Run supervisord detached, write, load and restart its programs, and wait until they are healthy
description:
  - Restarts only what was started from another definition than the one wanted, sends SIGHUP when only a file in
    C(reloads) changed. O(state=stopped) stops supervisord with all programs, O(state=absent) removes O(services) alone.
options:
  state: {description: What to bring them to., type: str, choices: [present, stopped, absent], default: present}
  socket: {description: The unix socket of supervisord., type: path, required: true}
  daemon:
    description: supervisord's definition, with C(program) to start, and C(home) of what it runs.
    type: dict
    required: true
  services:
    description: Their definitions, in the order in which they start; C(OPTIONS) of appliance_service.py says each key.
    type: list
    elements: dict
    required: true
author: AI Appliance
"""

EXAMPLES = r"""
- name: Stop everything
  supervisor_services:
    state: stopped
    socket: /home/me/appliance/run/supervisor.sock
    daemon:
      name: supervisord
      program: /home/me/appliance/var/lib/supervisor/env/bin/supervisord
      home: /home/me/appliance/var/lib/supervisor
      path: /home/me/appliance/etc/appliance/supervisord.conf
    services: []
"""

START_SECONDS = 20
OPEN_FILES = 65536
# A socket is bound as <path>.<pid> first; sun_path holds 108 bytes on Linux, 104 on macOS, the closing zero included.
PATH_LIMIT = (104 if os.uname().sysname == "Darwin" else 108) - 1 - len(".4194304")


class Daemon(Manager):  # type: ignore[misc]  # mypy cannot follow Ansible's import paths
    """supervisord, found by its socket; its identifier is the revision that it was started from."""

    def __init__(self, socket: str, options: Options) -> None:
        self._socket = socket
        self._params = options
        self._supervisor = Supervisor(socket, timeout=10)

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
        os.makedirs(os.path.dirname(self._socket), mode=0o700, exist_ok=True)
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


class Program(Manager):  # type: ignore[misc]  # mypy cannot follow Ansible's import paths
    """One program, which is a group of one process."""

    def __init__(self, socket: str, options: Options) -> None:
        self._name = options["name"]
        # Answers to a stop come when the process is gone.
        self._supervisor = Supervisor(socket, timeout=options["stop_timeout"] + 30)

    def _info(self) -> Dict[str, Any]:
        try:
            return dict(self._supervisor.call("getProcessInfo", self._name))
        except Fault as fault:
            if fault.faultCode != BAD_NAME:
                raise
            return {}

    def _outdated(self) -> bool:
        """Whether supervisord runs the program by another configuration than the files'; reading them loads nothing."""
        try:
            added, changed, removed = self._supervisor.call("reloadConfig")[0]
        except Fault as fault:
            raise Failure(f"supervisord refuses its configuration: {fault.faultString}") from fault
        return self._name in [*added, *changed, *removed]

    def current(self, revision: str) -> bool:
        return not self._outdated()

    def running(self) -> bool:
        return self._supervisor.answers() and self._info().get("statename") in ("STARTING", "RUNNING", "BACKOFF")

    def known(self) -> bool:
        return self._supervisor.answers() and bool(self._info())

    def apply(self, restart: bool) -> None:
        if not restart:
            return
        outdated = self._outdated()
        if outdated and self._info():
            self._remove()
        if not self._info():
            self._supervisor.call("addProcessGroup", self._name)  # and starts it
        elif not self.running():
            self._supervisor.call("startProcess", self._name, False)

    def reload(self) -> None:
        try:
            self._supervisor.call("signalProcess", self._name, "HUP")
        except Fault as fault:
            if fault.faultCode != NOT_RUNNING:  # supervisord is about to start it again
                raise

    def stop(self) -> None:
        self._supervisor.call("stopProcessGroup", self._name, True)

    def _remove(self) -> None:
        self.stop()
        self._supervisor.call("removeProcessGroup", self._name)

    def forget(self, delete: Callable[[], None]) -> None:
        if self.known():
            self._remove()
        delete()

    def diagnosis(self) -> str:
        info = self._info()
        return f"supervisor: {info.get('statename')} {info.get('spawnerr') or info.get('description', '')}".rstrip()


def services(params: Dict[str, Any]) -> Iterator[Tuple[Options, Manager]]:
    """Those that the state is about, supervisord before its programs."""
    if params["state"] != "absent":
        yield params["daemon"], Daemon(params["socket"], params["daemon"])
    for options in params["services"] if params["state"] != "stopped" else ():
        yield options, Program(params["socket"], options)


def main() -> None:
    """Run the module."""
    path: Dict[str, Any] = {"type": "path", "required": True}
    module = AnsibleModule(
        argument_spec={
            "socket": path,
            "daemon": {"type": "dict", "required": True, "options": {"program": path, "home": path, **OPTIONS}},
            **ARGUMENTS,
        },
        supports_check_mode=True,
    )
    socket = module.params["socket"]
    excess = len(os.fsencode(socket)) - PATH_LIMIT
    if excess > 0:
        module.fail_json(
            msg=f"The path of supervisor's socket, {socket}, is {excess} bytes too long for a unix socket: move the "
            "checkout to a shorter path, or choose a directory with -e appliance_root=/short/path"
        )
    run(module, services(module.params))


if __name__ == "__main__":
    main()
