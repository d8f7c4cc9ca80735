"""The example fleet of inventories/lan, its three hosts bare ones in podman."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ansible_run import ROOT, ansible_playbook
from tests.support.podman_hosts import Fleet, Host

LAN = ROOT / "inventories/lan"
HOSTS = ["mini", "studio", "ada2"]


@pytest.fixture
def fleet() -> Iterator[dict[str, Host]]:
    started = Fleet()
    try:
        yield {name: started.host(name) for name in HOSTS}
    finally:
        started.close()


def test_check_mode_runs_through_on_bare_hosts_and_touches_nothing(fleet: dict[str, Host], tmp_path: Path) -> None:
    reached = {
        name: {"ansible_connection": "containers.podman.podman", "ansible_host": host.name}
        for name, host in fleet.items()
    }
    addresses = tmp_path / "addresses.yml"
    addresses.write_text(json.dumps({"all": {"hosts": reached}}))

    site = ROOT / "playbooks/site.yml"
    # The later inventory wins: the fleet's addresses are those of the hosts in podman.
    run = ansible_playbook(site, "-i", str(addresses), "--check", "--diff", inventory=LAN)
    # The groups' overrides on mini and studio, the host's own on ada2.
    for rule in ("0/24 tcp dport 8800", "10 tcp dport 8088", "10 tcp dport 8090"):
        assert f"ip saddr 10.10.22.{rule} accept" in run.succeeded().output
    for host in fleet.values():
        assert host.run("ls -d /etc/appliance /var/lib/gateway /var/lib/llamacpp", check=False).stdout == ""
