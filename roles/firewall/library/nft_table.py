#!/usr/bin/python
"""Own one nftables table: replace it atomically, take it back by a timer unless confirmed, keep it over reboots."""

from __future__ import annotations

import os
import tempfile

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: nft_table
short_description: Replace one nftables table atomically
description:
  - The ruleset is checked by `nft --check`, then loaded in one transaction. What is loaded is compared with what the
    ruleset becomes in an empty network namespace, so that only a real difference counts as a change.
  - With O(revert_after) the former table comes back after that many seconds unless O(state=confirmed) is called; only
    a confirmed ruleset is written to O(path).
options:
  state: {description: What to do., choices: [present, confirmed, absent], default: present, type: str}
  family: {description: Family of the table., default: inet, type: str}
  name: {description: Name of the table., required: true, type: str}
  path: {description: File that keeps the ruleset over reboots., required: true, type: path}
  ruleset: {description: The ruleset; it must replace the table whole. Needed unless it is to be absent., type: str}
  revert_after: {description: Seconds until the former table comes back; 0 confirms at once., default: 0, type: int}
author: AI Appliance
"""

EXAMPLES = """
- name: Load the ruleset
  nft_table:
    name: appliance
    path: /etc/appliance/firewall.nft
    ruleset: "{{ lookup('ansible.builtin.template', 'appliance.nft.j2') }}"
    revert_after: 30
"""

RETURN = """
pending: {description: Whether the loaded ruleset waits for its confirmation, returned: always, type: bool}
"""

RUN = "/run/appliance-firewall"
REVERT_UNIT = "appliance-firewall-revert"


class Table:
    """The table on this host; a refusal by nft or systemd ends the module with one line."""

    def __init__(self, module: AnsibleModule, family: str, name: str) -> None:
        self.module = module
        self.ref = [family, name]
        self.nft = module.get_bin_path("nft", opt_dirs=["/usr/sbin", "/sbin"])

    def loaded(self) -> str:
        """The table as nft prints it, without counters; empty when it does not exist."""
        if self.nft is None:
            return ""
        status, stdout, _ = self.module.run_command([self.nft, "--stateless", "list", "table", *self.ref])
        return str(stdout) if status == 0 else ""

    def normal_form(self, ruleset: str) -> str:
        """How nft would print the table after loading `ruleset`, learned in a network namespace of its own."""
        self._run([self.nft, "--check", "--file", "-"], ruleset)
        script = f'"{self.nft}" --file - && exec "{self.nft}" --stateless list table "$@"'
        return self._run(["unshare", "--net", "sh", "-c", script, "sh", *self.ref], ruleset)

    def load(self, ruleset: str) -> None:
        self._run([self.nft, "--file", "-"], ruleset)

    def replacement(self, body: str) -> str:
        """A ruleset that puts `body` in the place of whatever the table holds, in one transaction."""
        table = " ".join(self.ref)
        return f"table {table}\ndelete table {table}\n{body}"

    def arm_revert(self, seconds: int) -> None:
        os.makedirs(RUN, mode=0o700, exist_ok=True)
        former = os.path.join(RUN, "former.nft")
        with open(former, "w") as file:
            file.write(self.replacement(self.loaded()))
        timer = [f"--on-active={seconds}", "--timer-property=AccuracySec=1s", f"--unit={REVERT_UNIT}"]
        self._run(["systemd-run", "--quiet", "--collect", *timer, self.nft, "--file", former])

    def revert_pending(self) -> bool:
        timer = ["systemctl", "is-active", "--quiet", f"{REVERT_UNIT}.timer"]
        return bool(self.module.run_command(timer)[0] == 0)

    def revert_now(self) -> None:
        self._run(["systemctl", "start", f"{REVERT_UNIT}.service"])
        self.disarm_revert()

    def disarm_revert(self) -> None:
        self._run(["systemctl", "stop", f"{REVERT_UNIT}.timer"])

    def _run(self, argv: list[str | None], stdin: str | None = None) -> str:
        status, stdout, stderr = self.module.run_command(argv, data=stdin)
        if status != 0:
            self.module.fail_json(msg=f"{argv[0]} refused: {' '.join((stderr or stdout).split())}")
        return str(stdout)


def read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except FileNotFoundError:
        return ""


def write(module: AnsibleModule, path: str, text: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=module.tmpdir, delete=False) as file:
        file.write(text)
    os.chmod(file.name, 0o644)
    module.atomic_move(file.name, path)


def present(module: AnsibleModule, table: Table) -> None:
    path, ruleset, revert_after = (module.params[key] for key in ("path", "ruleset", "revert_after"))
    if table.nft is None:
        if module.check_mode:
            module.exit_json(changed=True, pending=False, diff={"before": "", "after": ruleset})
        module.fail_json(msg="nft is missing; type: apt-get install nftables")
    wanted = table.normal_form(ruleset)
    # Rules that nobody confirmed are about to go: never build on them.
    if table.revert_pending() and not module.check_mode:
        table.revert_now()
    found, kept = table.loaded(), read(path)
    reload, rewrite = found != wanted, kept != ruleset
    diff = {"before": found or kept, "after": wanted, "before_header": path, "after_header": path}
    pending = reload and revert_after > 0 and not module.check_mode
    if not module.check_mode:
        if pending:
            table.arm_revert(revert_after)
        if reload:
            table.load(ruleset)
        if rewrite and not pending:
            write(module, path, ruleset)
    module.exit_json(changed=reload or rewrite, pending=pending, diff=diff)


def confirmed(module: AnsibleModule, table: Table) -> None:
    if not table.revert_pending():
        module.fail_json(msg="The former firewall rules are back: there is nothing to confirm; run the playbook again.")
    table.disarm_revert()
    if table.loaded() != table.normal_form(module.params["ruleset"]):
        module.fail_json(msg="The former firewall rules came back before the new ones were confirmed; run it again.")
    write(module, module.params["path"], module.params["ruleset"])
    module.exit_json(changed=True, pending=False)


def absent(module: AnsibleModule, table: Table) -> None:
    path = module.params["path"]
    loaded = table.loaded()
    if not module.check_mode:
        if table.revert_pending():
            table.disarm_revert()
        if loaded:
            table.load(table.replacement(""))
        if os.path.exists(path):
            os.unlink(path)
    module.exit_json(changed=bool(loaded or read(path)), pending=False, diff={"before": loaded, "after": ""})


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"choices": ["present", "confirmed", "absent"], "default": "present"},
            "family": {"default": "inet"},
            "name": {"required": True},
            "path": {"type": "path", "required": True},
            "ruleset": {},
            "revert_after": {"type": "int", "default": 0},
        },
        required_if=[("state", "present", ["ruleset"]), ("state", "confirmed", ["ruleset"])],
        supports_check_mode=True,
    )
    table = Table(module, module.params["family"], module.params["name"])
    {"present": present, "confirmed": confirmed, "absent": absent}[module.params["state"]](module, table)


if __name__ == "__main__":
    main()
