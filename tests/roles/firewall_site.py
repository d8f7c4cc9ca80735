"""Servers on two networks and a client on each: `inside` has an address that is let in, `outside` has not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.ansible_run import ROOT, Run, ansible_playbook
from tests.support.podman_hosts import Fleet, Host

PLAYBOOK = f"""
- hosts: all
  gather_facts: false
  strategy: free  # no server waits for another one before it confirms its rules
  vars_files: ["{ROOT}/playbooks/group_vars/all/platform.yml"]
  roles: [firewall]
"""
DECLARED, OTHER = 8800, 9100


class Site:
    """The servers are reached over SSH, as an operator does."""

    def __init__(self, fleet: Fleet, directory: Path, *names: str) -> None:
        self.directory = directory
        self.inner, self.outer = fleet.network("inner"), fleet.network("outer")
        self.inside, self.outside = fleet.client("inside", self.inner), fleet.client("outside", self.outer)
        self.servers = {name: fleet.host(name, self.inner, self.outer) for name in names}
        self._logins = {name: server.let_in(directory / "key") for name, server in self.servers.items()}
        (directory / "firewall.yml").write_text(PLAYBOOK)

    def variables(self, name: str) -> dict[str, str]:
        """Those by which Ansible reaches a server; its address is another one after a restart."""
        return {**self._logins[name], "ansible_host": self.servers[name].address(self.inner)}

    def listener(self, **values: Any) -> dict[str, Any]:
        declared = {"service": "gateway", "name": "api", "port": DECLARED, "allow_from": [self.inner.subnet]}
        return declared | values

    def firewall(self, *arguments: str, **servers: dict[str, Any]) -> Run:
        """Run the role on the named servers with their variables; the one declared listener is the default."""
        common = {"firewall_listeners": [self.listener()], "firewall_revert_after": 60}
        hosts = {name: self.variables(name) | common | variables for name, variables in servers.items()}
        inventory = self.directory / "hosts.json"
        inventory.write_text(json.dumps({"all": {"hosts": hosts}}))
        return ansible_playbook(self.directory / "firewall.yml", *arguments, inventory=inventory)

    def reach(self, name: str, port: int) -> dict[str, bool]:
        """Who of inside, outside and the server itself, by its own outer address, gets an answer from the port."""
        server = self.servers[name]
        outer = server.address(self.outer)
        return {
            "inside": self.inside.fetches(server.address(self.inner), port),
            "outside": self.outside.fetches(outer, port),
            "itself": server.fetches(outer, port),
        }


def table(server: Host) -> str:
    return server.run("nft list table inet appliance", check=False).stdout
