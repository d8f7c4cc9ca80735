#!/usr/bin/python
"""Keep systemd services as their definitions say."""

from __future__ import annotations

import contextlib
import os
from typing import Callable, Dict

from ansible.module_utils.appliance_service import ARGUMENTS, Manager, Options, command, run
from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
---
module: systemd_unit
short_description: Write, load, enable and restart systemd services, and wait until they are healthy
description:
  - Restarts only when the unit or a file in O(reads) changed, or when an earlier run was interrupted before it did;
    reloads when only a file in O(reloads) changed.
options:
  state: {description: What to bring them to., type: str, choices: [present, stopped, absent], default: present}
  services:
    description: Their definitions, in the order in which they start; C(OPTIONS) of appliance_service.py says each key.
    type: list
    elements: dict
    required: true
author: AI Appliance
"""

EXAMPLES = r"""
- name: Run the gateway
  systemd_unit:
    services:
      - name: gateway
        path: /etc/systemd/system/gateway.service
        content: "{{ lookup('ansible.builtin.template', 'systemd.service.j2') }}"
"""

PENDING = "/run/appliance"  # emptied by a reboot, which starts everything anew anyway


class Systemd(Manager):  # type: ignore[misc]  # mypy cannot follow Ansible's import paths
    """One unit, read by `systemctl show`."""

    def __init__(self, module: AnsibleModule, options: Options) -> None:
        self._module = module
        self._unit = options["name"] + ".service"
        self._marker = os.path.join(PENDING, options["name"] + ".restart")
        self._systemctl = module.get_bin_path("systemctl", required=True)

    def _run(self, *arguments: str) -> str:
        return str(command(self._module, [self._systemctl, *arguments])[1])

    def _show(self) -> Dict[str, str]:
        wanted = "LoadState,ActiveState,UnitFileState,NeedDaemonReload"
        lines = self._run("show", "--property", wanted, self._unit).splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def current(self, revision: str) -> bool:
        return not os.path.exists(self._marker) and self._show()["NeedDaemonReload"] == "no"

    def running(self) -> bool:
        return self._show()["ActiveState"] in ("active", "activating", "reloading")

    def known(self) -> bool:
        return self._show()["LoadState"] == "loaded"

    def enabled(self) -> bool:
        return self._show()["UnitFileState"] == "enabled"

    def prepare(self) -> None:
        os.makedirs(PENDING, mode=0o755, exist_ok=True)
        with open(self._marker, "w", encoding="utf-8"):
            pass

    def apply(self, restart: bool) -> None:
        self._run("daemon-reload")
        self._run("enable", "--quiet", self._unit)
        if restart:
            self._run("restart", self._unit)
            self._unmark()

    def reload(self) -> None:
        self._run("reload-or-restart", self._unit)  # a unit that waits for its next start cannot be reloaded

    def stop(self) -> None:
        self._run("stop", self._unit)

    def forget(self, delete: Callable[[], None]) -> None:
        if self.known():
            self._run("disable", "--quiet", "--now", self._unit)
        delete()
        self._run("daemon-reload")
        self._module.run_command([self._systemctl, "reset-failed", self._unit])  # fails when there is nothing to reset
        self._unmark()

    def _unmark(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._marker)

    def diagnosis(self) -> str:
        _code, out, _err = self._module.run_command(
            ["journalctl", "--unit", self._unit, "--lines", "10", "--output", "cat", "--no-pager"]
        )
        return "Last lines of the journal:\n" + out.rstrip() if out.strip() else ""


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    if module.params["state"] == "present" and not module.get_bin_path("logrotate"):
        module.warn("logrotate is not installed: the logs in /var/log grow until it is; type: apt install logrotate")
    run(module, ((options, Systemd(module, options)) for options in module.params["services"]))


if __name__ == "__main__":
    main()
