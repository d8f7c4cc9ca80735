#!/usr/bin/python
"""Keep LaunchDaemons as their property lists say, by the launchctl of macOS 10.11 and later."""

from __future__ import annotations

import plistlib
import re
from typing import Callable, Optional

from ansible.module_utils.appliance_service import ARGUMENTS, Failure, Manager, Options, command, poll, run
from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
---
module: launchd_service
short_description: Write, load and restart LaunchDaemons, and wait until they are healthy
description:
  - Restarts only when launchd runs another definition than the one wanted. launchd loads a property list whole, so what
    is loaded is what runs; the revision in its environment tells which one it is.
  - Sends SIGHUP when only a file in O(reloads) changed.
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
  launchd_service:
    services:
      - name: com.ai.gateway
        path: /Library/LaunchDaemons/com.ai.gateway.plist
        content: "{{ lookup('ansible.builtin.template', 'launchd.plist.j2') }}"
"""

DOMAIN = "system"
# Exit codes of launchctl.
NO_SUCH_PROCESS = 3  # bootout: not loaded; kill: no process just now
IO_ERROR = 5  # bootstrap: loaded, still being booted out, or a bad property list; bootout: as 36
IN_PROGRESS = 36  # bootout: accepted, the process is still stopping
ALREADY = 37  # bootstrap: the label is loaded
NOT_FOUND = 113  # print, bootout: no such service
RETRY_SECONDS = 10


class Launchd(Manager):  # type: ignore[misc]  # mypy cannot follow Ansible's import paths
    """One job of the system domain, read by `launchctl print`."""

    def __init__(self, module: AnsibleModule, options: Options) -> None:
        self._module = module
        self._options = options
        self._label = options["name"]
        self._target = f"{DOMAIN}/{self._label}"
        self._launchctl = module.get_bin_path("launchctl", required=True)

    def _print(self) -> Optional[str]:
        """What launchd says of the job, or None when it is not loaded; a job that is being booted out still is."""
        code, out = command(self._module, [self._launchctl, "print", self._target], accepted=(0, NOT_FOUND))
        return out if code == 0 else None

    def _field(self, pattern: str) -> Optional[str]:
        found = re.search(pattern, self._print() or "", re.MULTILINE)
        return found.group(1) if found else None

    def current(self, revision: str) -> bool:
        return self._field(r"^\s*APPLIANCE_REVISION => (\S+)$") == revision

    def running(self) -> bool:
        """A job without KeepAlive, which launchd starts by the clock, counts when it is loaded."""
        return self.known() and (
            not self._kept_alive() or self._field(r"^\s*state = (.+)$") in ("running", "spawn scheduled", "xpcproxy")
        )

    def _kept_alive(self) -> bool:
        with open(self._options["path"], "rb") as file:
            return bool(plistlib.load(file).get("KeepAlive"))

    def stopped(self) -> bool:
        return not self.known()  # launchd starts again whatever it has loaded

    def known(self) -> bool:
        return self._print() is not None

    def enabled(self) -> bool:
        """Unless somebody ran `launchctl disable`; older releases of macOS print `true` for disabled."""
        _code, out = command(self._module, [self._launchctl, "print-disabled", DOMAIN])
        return not re.search(rf'^\s*"{re.escape(self._label)}" => (disabled|true)$', out, re.MULTILINE)

    def apply(self, restart: bool) -> None:
        if not self.enabled():
            command(self._module, [self._launchctl, "enable", self._target])
        if restart:
            self.stop()
            self._bootstrap()

    def _bootstrap(self) -> None:
        """Load the job. Code 5 may pass: a label can linger for a moment after `print` has stopped to show it."""
        argv = [self._launchctl, "bootstrap", DOMAIN, self._options["path"]]
        message = ""

        def loaded() -> bool:
            nonlocal message
            code, _out, message = self._module.run_command(argv)
            if code not in (0, IO_ERROR, ALREADY):
                raise Failure(f"`{' '.join(argv)}` failed with {code}: {message.strip()}")
            return bool(code == 0)

        if not poll(loaded, RETRY_SECONDS):
            raise Failure(f"`{' '.join(argv)}` failed for {RETRY_SECONDS} s: {message.strip()}")

    def reload(self) -> None:
        command(self._module, [self._launchctl, "kill", "SIGHUP", self._target], accepted=(0, NO_SUCH_PROCESS))

    def stop(self) -> None:
        """Boot the job out, which is asynchronous, and wait until launchd has forgotten it."""
        accepted = (0, NO_SUCH_PROCESS, IO_ERROR, IN_PROGRESS, NOT_FOUND)
        code, _out = command(self._module, [self._launchctl, "bootout", self._target], accepted)
        seconds = self._options["stop_timeout"] + RETRY_SECONDS
        if not poll(lambda: not self.known(), seconds):
            raise Failure(f"launchd still has {self._label} {seconds} s after `launchctl bootout` gave {code}")

    def forget(self, delete: Callable[[], None]) -> None:
        self.stop()
        delete()

    def diagnosis(self) -> str:
        code = self._field(r"^\s*last exit code = (.+)$")
        return f"launchd: state {self._field(r'^ *state = (.+)$') or 'not loaded'}, last exit code {code or 'none'}"


def main() -> None:
    """Run the module."""
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    run(module, ((options, Launchd(module, options)) for options in module.params["services"]))


if __name__ == "__main__":
    main()
