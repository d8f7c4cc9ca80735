#!/usr/bin/python
"""Read what a Linux host's firewalls do now: nftables, ufw, firewalld, and who listens."""

from __future__ import annotations

import json

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: firewall_state
short_description: Read the state of a Linux host's firewalls
description: Changes nothing. Tools that are not installed count as inactive.
options: {}
author: AI Appliance
"""

EXAMPLES = """
- name: Read the firewalls' state
  firewall_state:
  register: firewall_found
"""

RETURN = """
nft: {description: Whether nft is installed, returned: always, type: bool}
nftables: {description: The `nftables` array of `nft --json list ruleset`, returned: always, type: list}
ufw: {description: Whether ufw is active, returned: always, type: bool}
ufw_rules: {description: Rules as `ufw show added` lists them, returned: always, type: list}
firewalld: {description: Whether firewalld runs, returned: always, type: bool}
sockets: {description: Lines of `ss -Hltunp`, returned: always, type: list}
"""


def main() -> None:
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)

    def find(program: str) -> str | None:
        path: str | None = module.get_bin_path(program, opt_dirs=["/usr/sbin", "/sbin"])
        return path

    def output(program: str, *arguments: str) -> str:
        path = find(program)
        if path is None:
            return ""
        status, stdout, _ = module.run_command([path, *arguments], environ_update={"LC_ALL": "C"})
        return stdout if status == 0 else ""

    ruleset = output("nft", "--json", "list", "ruleset")
    module.exit_json(
        changed=False,
        nft=find("nft") is not None,
        nftables=json.loads(ruleset)["nftables"] if ruleset else [],
        ufw=output("ufw", "status").startswith("Status: active"),
        ufw_rules=[line for line in output("ufw", "show", "added").splitlines() if line.startswith("ufw ")],
        firewalld=output("firewall-cmd", "--state").strip() == "running",
        sockets=output("ss", "-Hltunp").splitlines(),
    )


if __name__ == "__main__":
    main()
