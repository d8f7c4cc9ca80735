#!/usr/bin/python
"""Keep one program of a running supervisord as its definition says."""

from __future__ import annotations

from typing import Any, Callable, Dict

from ansible.module_utils.appliance_service import SERVICE_ARGUMENTS, Failure, Manager, run
from ansible.module_utils.appliance_supervisor import BAD_NAME, NOT_RUNNING, Fault, Supervisor
from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
---
module: supervisor_program
short_description: Write, load and restart a supervisor program, and wait until it is healthy
description:
  - Restarts only when supervisord runs another definition than the one wanted, sends SIGHUP when only a file in
    O(reloads) changed.
options:
  name: {description: Name of the program., type: str, required: true}
  socket: {description: The unix socket of supervisord., type: path, required: true}
  state: {description: What to bring it to., type: str, choices: [present, stopped, absent], default: present}
  path: {description: Where the program's configuration lies., type: path, required: true}
  content: {description: Its text; C(@revision@) becomes the hash of it and of O(reads)., type: str}
  reads: {description: What the process reads at its start., type: list, elements: path, default: []}
  reloads: {description: What it reads again at SIGHUP, hashed as C(@loaded@)., type: list, elements: path, default: []}
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
  writable: {description: Directories of O(user)'s own., type: list, elements: path, default: []}
  logs: {description: Log files; created for O(user)., type: list, elements: path, default: []}
  user: {description: Owner of the logs and of O(writable)., type: str}
  health: {description: URL that answers 200., type: str}
  health_timeout: {description: Seconds to wait for the health path., type: int, default: 60}
  stop_timeout: {description: Seconds that the process may take to stop., type: int, default: 15}
author: AI Appliance
"""

EXAMPLES = r"""
- name: Run the gateway
  supervisor_program:
    name: gateway
    socket: /home/me/appliance/run/supervisor.sock
    path: /home/me/appliance/etc/appliance/supervisor.d/gateway.conf
    content: "{{ lookup('ansible.builtin.template', 'supervisor_program.conf.j2') }}"
"""


class Program(Manager):  # type: ignore[misc]  # mypy cannot follow Ansible's import paths
    """One program, which is a group of one process."""

    def __init__(self, module: AnsibleModule) -> None:
        self._name = module.params["name"]
        # Answers to a stop come when the process is gone.
        self._supervisor = Supervisor(module.params["socket"], timeout=module.params["stop_timeout"] + 30)

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


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "socket": {"type": "path", "required": True},
            **SERVICE_ARGUMENTS,
        },
        supports_check_mode=True,
    )
    run(module, Program(module))


if __name__ == "__main__":
    main()
