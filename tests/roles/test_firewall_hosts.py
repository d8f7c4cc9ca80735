"""The firewall role on real hosts: a server on two networks, a client on each, reached over SSH as an operator does."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.ansible_run import ROOT, Run, ansible_playbook
from tests.support.podman_hosts import Fleet, Host, Network, eventually, why_unavailable

pytestmark = pytest.mark.skipif(why_unavailable() is not None, reason=str(why_unavailable()))

PLAYBOOK = f"""
- hosts: server
  gather_facts: false
  vars_files: ["{ROOT}/playbooks/group_vars/all/platform.yml"]
  roles: [firewall]
"""
DECLARED, OTHER = 8800, 9100


class Site:
    """A host, a client `inside` its allowed range and one `outside`."""

    def __init__(self, fleet: Fleet, directory: Path) -> None:
        self.directory = directory
        self.inner, self.outer = fleet.network("inner"), fleet.network("outer")
        self.server = fleet.host("server", self.inner, self.outer)
        self.inside, self.outside = fleet.client("inside", self.inner), fleet.client("outside", self.outer)
        self._addresses = {self.inside: self.inner, self.outside: self.outer}
        self._let_in()

    def serve(self) -> None:
        self.server.serve(DECLARED)
        self.server.serve(OTHER)

    def _let_in(self) -> None:
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.directory / "key"], check=True)
        public = (self.directory / "key.pub").read_text().strip()
        self.server.run(f"install -d -m 0700 /root/.ssh && echo '{public}' >/root/.ssh/authorized_keys")
        (self.directory / "firewall.yml").write_text(PLAYBOOK)

    def _inventory(self) -> Path:
        variables = {
            "ansible_host": self.server.address(self.inner),  # another one after a restart
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(self.directory / "key"),
            "ansible_ssh_common_args": "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
        }
        inventory = self.directory / "hosts.yml"
        inventory.write_text(json.dumps({"all": {"hosts": {"server": variables}}}))
        return inventory

    def listener(self, **values: Any) -> dict[str, Any]:
        declared = {"service": "gateway", "name": "api", "port": DECLARED, "allow_from": [self.inner.subnet]}
        return declared | values

    def firewall(self, *arguments: str, **variables: Any) -> Run:
        """Run the role; the one declared listener is the default."""
        variables = {"firewall_listeners": [self.listener()], "firewall_revert_after": 12} | variables
        extra = ["-e", json.dumps(variables), *arguments]
        return ansible_playbook(self.directory / "firewall.yml", *extra, inventory=self._inventory())

    def reach(self, port: int) -> dict[str, bool]:
        """Who of inside, outside and the server itself, by its own outer address, gets an answer from the port."""
        askers = {"inside": self.inside, "outside": self.outside}
        reached = {name: host.fetches(self._server_seen_by(host), port) for name, host in askers.items()}
        return reached | {"itself": self.server.fetches(self._server_seen_by(self.outside), port)}

    def _server_seen_by(self, client: Host) -> str:
        network: Network = self._addresses[client]
        return self.server.address(network)

    def table(self) -> str:
        return self.server.run("nft list table inet appliance", check=False).stdout


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    fleet = Fleet()
    try:
        site = Site(fleet, tmp_path)
        site.serve()
        yield site
    finally:
        fleet.close()


EVERYBODY = {"inside": True, "outside": True, "itself": True}
DECLARED_ONLY = {"inside": True, "outside": False, "itself": True}


def test_declared_ports_are_closed_to_others_for_good_and_removal_leaves_nothing(site: Site) -> None:
    before = site.server.run("nft list ruleset").stdout
    assert site.reach(DECLARED) == EVERYBODY

    assert site.firewall("--check", "--diff").succeeded().changed > 0
    assert site.table() == ""

    assert site.firewall().succeeded().changed > 0
    assert site.reach(DECLARED) == DECLARED_ONLY
    assert site.reach(OTHER) == EVERYBODY
    assert site.firewall().succeeded().changed == 0
    assert site.firewall("--check").succeeded().changed == 0

    site.server.run("nft delete table inet appliance")
    assert site.firewall().succeeded().changed > 0
    assert site.reach(DECLARED) == DECLARED_ONLY

    table = site.table()
    with site.outside.probing(site.server.address(site.outer), DECLARED, every=0.002) as found:
        for verb in ("start", "reload", "restart", "stop"):  # of the distribution's own, which flushes every table
            site.server.run(f"systemctl {verb} nftables.service")
            assert site.table() == table
    assert "+" not in found[DECLARED]
    site.server.restart()
    assert site.table() == table

    closed = [site.listener(allow_from=[])]
    assert site.firewall(firewall_listeners=closed).succeeded().changed > 0
    site.server.serve(DECLARED)
    assert site.reach(DECLARED) == {"inside": False, "outside": False, "itself": True}

    assert site.firewall(firewall_state="absent").succeeded().changed > 0
    assert site.reach(DECLARED) == EVERYBODY
    assert site.server.run("nft list ruleset").stdout == before
    assert site.server.run("ls /etc/systemd/system | grep appliance-firewall", check=False).stdout == ""
    assert site.firewall(firewall_state="absent").succeeded().changed == 0


def test_an_established_flow_is_never_cut(site: Site) -> None:
    site.server.run(
        "systemd-run --quiet --unit=slow python3 -c '\n"
        "import socket\n"
        'with socket.create_server(("", 8802)) as server:\n'
        "    client = server.accept()[0]\n"
        "    client.sendall(client.recv(8))\n'"
    )
    eventually(lambda: site.server.run("ss -Hltn sport = :8802").stdout)
    talk = (
        f"import socket; s = socket.create_connection(('{site.server.address(site.inner)}', 8802)); "
        "input(); s.sendall(b'still on'); print(s.recv(8))"
    )
    client = site.inside.start("python3", "-c", talk)
    eventually(lambda: site.server.run("ss -Htn state established sport = :8802").stdout)
    site.firewall(firewall_listeners=[site.listener(port=8802, allow_from=[])]).succeeded()
    answer, _ = client.communicate("\n", timeout=60)
    assert answer == "b'still on'\n"


def test_an_active_ufw_lets_declared_addresses_in_and_keeps_its_own_rules(site: Site) -> None:
    site.server.run("ufw allow 22/tcp && ufw allow 9100/tcp comment 'by hand' && ufw --force enable")
    assert site.reach(DECLARED) == {"inside": False, "outside": False, "itself": True}

    assert site.firewall().succeeded().changed > 0
    assert site.reach(DECLARED) == DECLARED_ONLY
    assert site.reach(OTHER) == EVERYBODY
    assert site.firewall().succeeded().changed == 0

    # Our table holds even where ufw itself lets everybody in.
    site.server.run("ufw default allow incoming")
    assert site.reach(DECLARED) == DECLARED_ONLY
    site.server.run("ufw default deny incoming")

    assert site.firewall(firewall_state="absent").succeeded().changed > 0
    assert site.reach(DECLARED) == {"inside": False, "outside": False, "itself": True}
    assert site.server.run("ufw show added").stdout.splitlines()[1:] == [
        "ufw allow 22/tcp",
        "ufw allow 9100/tcp comment 'by hand'",
    ]


def test_an_active_firewalld_lets_declared_addresses_in_by_a_policy_of_ours(site: Site) -> None:
    install = "DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 --yes --no-install-recommends firewalld"
    site.server.run(f"apt-get update --quiet=2 && {install} && systemctl enable --now firewalld")
    policies = site.server.run("firewall-cmd --permanent --get-policies").stdout
    assert site.reach(DECLARED) == {"inside": False, "outside": False, "itself": True}

    assert site.firewall().succeeded().changed > 0
    assert site.reach(DECLARED) == DECLARED_ONLY
    assert site.reach(OTHER) == {"inside": False, "outside": False, "itself": True}
    assert site.firewall().succeeded().changed == 0

    assert site.firewall(firewall_state="absent").succeeded().changed > 0
    assert site.reach(DECLARED) == {"inside": False, "outside": False, "itself": True}
    assert site.server.run("firewall-cmd --permanent --get-policies").stdout == policies


def test_a_foreign_chain_that_drops_is_refused_until_it_lets_the_port_in(site: Site) -> None:
    site.server.run(
        "nft add table inet mine && nft 'add chain inet mine input { type filter hook input priority 0; policy drop; }'"
        " && nft add rule inet mine input ct state established accept && nft add rule inet mine input iif lo accept"
        " && nft add rule inet mine input tcp dport 22 accept"
    )
    foreign = site.server.run("nft list table inet mine").stdout
    refused = site.firewall()
    command = f"nft insert rule inet mine input ip saddr {site.inner.subnet} tcp dport 8800 accept"
    assert refused.status != 0
    assert f"type: {command}" in refused.output
    assert site.table() == ""
    assert site.server.run("nft list table inet mine").stdout == foreign

    site.server.run(command)
    assert site.firewall().succeeded().changed > 0
    assert site.reach(DECLARED) == DECLARED_ONLY
    assert site.reach(OTHER) == {"inside": False, "outside": False, "itself": True}


def test_rules_that_shut_ssh_out_are_taken_back(site: Site) -> None:
    site.firewall().succeeded()
    table, kept = site.table(), site.server.run("cat /etc/appliance/firewall.nft").stdout

    shut = [site.listener(), site.listener(service="ssh", port=22, allow_from=["192.0.2.0/24"])]
    failed = site.firewall(firewall_listeners=shut)
    assert failed.status != 0
    assert "shut out SSH" in failed.output
    eventually(lambda: site.table() == table)
    assert site.server.run("cat /etc/appliance/firewall.nft").stdout == kept
    assert site.firewall().succeeded().changed == 0


def test_a_default_drop_names_what_it_cuts_and_keeps_ssh(site: Site) -> None:
    run = site.firewall(firewall_default="drop").succeeded()
    assert f"firewall_default=drop cuts: 0.0.0.0:{OTHER}" in run.output
    assert site.reach(DECLARED) == DECLARED_ONLY
    assert site.reach(OTHER) == {"inside": False, "outside": False, "itself": True}

    assert site.firewall(firewall_default="drop", firewall_keep_ports=[OTHER]).succeeded().changed > 0
    assert site.reach(OTHER) == EVERYBODY
