"""The firewall role on real hosts: each server is a case, and all servers are hosts of the same plays.

The tests are steps in the order of this file; `first` and `second` are what the first and the second run did.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.roles.firewall_site import DECLARED, OTHER, Site, table
from tests.support.ansible_run import Run
from tests.support.podman_hosts import Fleet, why_unavailable
from tests.support.waiting import until

pytestmark = pytest.mark.skipif(why_unavailable() is not None, reason=str(why_unavailable()))

EVERYBODY = {"inside": True, "outside": True, "itself": True}
DECLARED_ONLY = {"inside": True, "outside": False, "itself": True}
ITSELF_ONLY = {"inside": False, "outside": False, "itself": True}
FLOW = 8802
ABSENT = {"firewall_state": "absent"}
FIREWALLD = "apt-get install --quiet=2 --yes --no-install-recommends firewalld"
FOREIGN = (
    "nft add table inet mine && nft 'add chain inet mine input { type filter hook input priority 0; policy drop; }'"
    " && nft add rule inet mine input ct state established accept && nft add rule inet mine input iif lo accept"
    " && nft add rule inet mine input tcp dport 22 accept"
)
BY_HAND = ["ufw allow 22/tcp", "ufw allow 9100/tcp comment 'by hand'"]
# One connection that talks only when it is told to.
SLOW_SERVER = f"""systemd-run --quiet --unit=slow python3 -c '
import socket
with socket.create_server(("", {FLOW})) as server:
    client = server.accept()[0]
    client.sendall(client.recv(8))
'"""


class Cases(Site):
    """A plain server, servers with a firewall of another's, one that is to shut SSH out, one with a default drop."""

    kept: tuple[str, str]  # the table of the server `shut` and its file, after the first run

    def __init__(self, fleet: Fleet, directory: Path) -> None:
        super().__init__(fleet, directory, "plain", "ufw", "firewalld", "foreign", "shut", "dropping")
        for server in self.servers.values():
            server.serve(DECLARED)
            server.serve(OTHER)
        self.bare = self.servers["plain"].run("nft list ruleset").stdout
        self.servers["ufw"].run(" && ".join([*BY_HAND, "ufw --force enable"]))
        firewalld = self.servers["firewalld"]
        firewalld.run(f"apt-get update --quiet=2 && DEBIAN_FRONTEND=noninteractive {FIREWALLD}")
        firewalld.run("systemctl enable --now firewalld")
        self.policies = firewalld.run("firewall-cmd --permanent --get-policies").stdout
        self.servers["foreign"].run(FOREIGN)
        self.foreign = self.servers["foreign"].run("nft list table inet mine").stdout
        self.command = f"nft insert rule inet mine input ip saddr {self.inner.subnet} tcp dport {DECLARED} accept"
        self.flow = self._open_flow()

    def _open_flow(self) -> subprocess.Popen[str]:
        """A connection to the server `shut` from inside, established before there is any rule."""
        server = self.servers["shut"]
        server.run(SLOW_SERVER)
        until(lambda: server.run(f"ss -Hltn sport = :{FLOW}").stdout)
        talk = (
            f"import socket; s = socket.create_connection(('{server.address(self.inner)}', {FLOW})); "
            "input(); s.sendall(b'still on'); print(s.recv(8))"
        )
        client = self.inside.start("python3", "-c", talk)
        until(lambda: server.run(f"ss -Htn state established sport = :{FLOW}").stdout)
        return client


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cases]:
    fleet = Fleet()
    try:
        cases = Cases(fleet, tmp_path_factory.mktemp("firewall"))
        with cases.flow:
            yield cases
    finally:
        fleet.close()


@pytest.fixture(scope="module")
def first(site: Cases) -> Run:
    closed = {"firewall_listeners": [site.listener(), site.listener(name="flow", port=FLOW, allow_from=[])]}
    return site.firewall(plain={}, ufw={}, firewalld={}, foreign={}, shut=closed, dropping={"firewall_default": "drop"})


@pytest.fixture(scope="module")
def second(site: Cases, first: Run) -> Run:
    site.kept = table(site.servers["shut"]), site.servers["shut"].run("cat /etc/appliance/firewall.nft").stdout
    site.servers["foreign"].run(site.command)
    ssh = site.listener(service="ssh", port=22, allow_from=["192.0.2.0/24"])
    shut = {"firewall_listeners": [site.listener(), ssh], "firewall_revert_after": 12}
    keep = {"firewall_default": "drop", "firewall_keep_ports": [OTHER]}
    return site.firewall(plain={}, ufw={}, firewalld={}, foreign={}, shut=shut, dropping=keep)


def test_check_mode_of_a_bare_host_changes_nothing(site: Cases) -> None:
    assert site.reach("plain", DECLARED) == EVERYBODY
    assert site.firewall("--check", "--diff", plain={}).succeeded().changed > 0
    assert table(site.servers["plain"]) == ""
    for closed in ("ufw", "firewalld", "foreign"):
        assert site.reach(closed, DECLARED) == ITSELF_ONLY, closed


@pytest.mark.parametrize(
    ("name", "other"), [("plain", EVERYBODY), ("ufw", EVERYBODY), ("firewalld", ITSELF_ONLY), ("dropping", ITSELF_ONLY)]
)
def test_declared_ports_are_open_to_declared_addresses_alone(
    site: Cases, first: Run, name: str, other: dict[str, bool]
) -> None:
    assert first.counts(name)["changed"] > 0
    assert site.reach(name, DECLARED) == DECLARED_ONLY
    assert site.reach(name, OTHER) == other


def test_an_established_flow_is_never_cut(site: Cases, first: Run) -> None:
    assert f"tcp dport {FLOW} drop" in table(site.servers["shut"])
    answer, _ = site.flow.communicate("\n", timeout=60)
    assert answer == "b'still on'\n"


def test_a_default_drop_names_what_it_cuts(first: Run) -> None:
    assert f"firewall_default=drop cuts: 0.0.0.0:{OTHER}" in first.output


def test_a_foreign_chain_that_drops_is_refused(site: Cases, first: Run) -> None:
    assert first.counts("foreign")["failed"] == 1
    assert f"type: {site.command}" in first.output
    assert table(site.servers["foreign"]) == ""
    assert site.servers["foreign"].run("nft list table inet mine").stdout == site.foreign


def test_our_table_holds_where_ufw_itself_lets_everybody_in(site: Cases, first: Run) -> None:
    site.servers["ufw"].run("ufw default allow incoming")
    assert site.reach("ufw", DECLARED) == DECLARED_ONLY
    site.servers["ufw"].run("ufw default deny incoming")


@pytest.mark.parametrize("name", ["plain", "ufw", "firewalld"])
def test_a_second_run_changes_nothing(second: Run, name: str) -> None:
    assert second.counts(name)["changed"] == 0, second.output


def test_a_foreign_chain_that_lets_the_port_in_is_accepted(site: Cases, second: Run) -> None:
    assert second.counts("foreign")["changed"] > 0
    assert site.reach("foreign", DECLARED) == DECLARED_ONLY
    assert site.reach("foreign", OTHER) == ITSELF_ONLY


def test_a_default_drop_keeps_the_ports_that_it_is_told_to(site: Cases, second: Run) -> None:
    assert second.counts("dropping")["changed"] > 0
    assert site.reach("dropping", OTHER) == EVERYBODY


def test_rules_that_shut_ssh_out_are_taken_back(site: Cases, second: Run) -> None:
    assert second.counts("shut")["failed"] == 1
    assert "shut out SSH" in second.output
    until(lambda: table(site.servers["shut"]) == site.kept[0])
    assert site.servers["shut"].run("cat /etc/appliance/firewall.nft").stdout == site.kept[1]


def test_other_firewalls_are_left_as_they_were_and_a_lost_table_comes_back(site: Cases, second: Run) -> None:
    site.servers["plain"].run("nft delete table inet appliance")
    closed = {"firewall_listeners": [site.listener(), site.listener(name="flow", port=FLOW, allow_from=[])]}
    third = site.firewall(plain={}, shut=closed, ufw=ABSENT, firewalld=ABSENT).succeeded()
    assert third.counts("plain")["changed"] > 0
    assert site.reach("plain", DECLARED) == DECLARED_ONLY
    assert third.counts("shut")["changed"] == 0, third.output
    for name in ("ufw", "firewalld"):
        assert third.counts(name)["changed"] > 0
        assert site.reach(name, DECLARED) == ITSELF_ONLY
    assert site.servers["ufw"].run("ufw show added").stdout.splitlines()[1:] == BY_HAND
    assert site.servers["firewalld"].run("firewall-cmd --permanent --get-policies").stdout == site.policies


def test_rules_stay_through_flushes_and_restarts_and_removal_leaves_nothing(site: Cases, second: Run) -> None:
    server = site.servers["plain"]
    loaded = table(server)
    with site.outside.probing(server.address(site.outer), DECLARED, every=0.002) as found:
        for verb in ("start", "reload", "restart", "stop"):  # of the distribution's own, which flushes every table
            server.run(f"systemctl {verb} nftables.service")
            assert table(server) == loaded
    assert "+" not in found[DECLARED]
    server.restart()
    assert table(server) == loaded

    closed = {"firewall_listeners": [site.listener(allow_from=[])]}
    assert site.firewall(plain=closed).succeeded().changed > 0
    server.serve(DECLARED)
    assert site.reach("plain", DECLARED) == ITSELF_ONLY

    assert site.firewall(plain=ABSENT).succeeded().changed > 0
    assert site.reach("plain", DECLARED) == EVERYBODY
    assert server.run("nft list ruleset").stdout == site.bare
    assert server.run("ls /etc/systemd/system | grep appliance-firewall", check=False).stdout == ""
    assert site.firewall(plain=ABSENT).succeeded().changed == 0
