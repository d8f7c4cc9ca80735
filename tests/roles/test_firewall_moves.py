"""site.yml moves, narrows, closes, renames and removes services while a client that was never let in keeps knocking.

The playbook, the firewall and the units are the real ones; what the units run is a small listener.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.roles.firewall_site import Site, table
from tests.support.ansible_run import ROOT, Run, ansible_playbook
from tests.support.podman_hosts import Fleet, why_unavailable
from tests.support.services import CATALOG

pytestmark = pytest.mark.skipif(why_unavailable() is not None, reason=str(why_unavailable()))

CONFIRMED = {"appliance_remove_confirmed": True}
PORTS = (8800, 8801, 8802, 8805, 8088, 8090)

# Listens where its service is declared. Its first argument is there for preflight, which looks for the service's home.
LISTENER = """
import json, sys, threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
class Handler(SimpleHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
for item in json.load(open("/etc/appliance/services.json"))["listeners"]:
    if item["service"] == sys.argv[2]:
        server = ThreadingHTTPServer((item["bind"], item["port"]), Handler)
        threading.Thread(target=server.serve_forever).start()
"""


# Stands in for role `product`: runs the listener as it runs each server, up to the one that is said to be broken.
PRODUCT: list[dict[str, Any]] = [
    {
        "include_role": {"name": "service", "rolespec_validate": False},
        "vars": {
            "service_names": "{{ product_names | reject('eq', broken | default('')) }}",
            "service_state": "{{ product_state | default('present') }}",
            "service_purge": False,
            "service_private_users": False,
            "service_reads": ["/etc/appliance/services.json"],
            "service_peers": ["any"],  # as a gateway whose backends have names: its unit then filters no addresses
            "service_argv": [
                *("/usr/bin/python3", "/usr/local/lib/listener.py", "{{ service_home }}/", "{{ service_name }}")
            ],
        },
    },
    {"fail": {"msg": "broken"}, "when": "broken | default('') in product_names"},
]


class Appliance(Site):
    """The server with all three services, by the real site.yml, which finds a stand-in for the role that runs them."""

    def __init__(self, fleet: Fleet, directory: Path) -> None:
        super().__init__(fleet, directory, "server")
        self.server = self.servers["server"]
        self.server.run(f"cat >/usr/local/lib/listener.py <<'END'\n{LISTENER}END")
        # As the tasks `account` of role service would, in a tenth of the time.
        for user in (*(entry["user"] for entry in CATALOG.values() if "user" in entry), "renamed"):
            self.server.run(f"useradd --system {user}; install -d -o {user} /var/lib/{user} /var/log/{user}")
        self.override: dict[str, Any] = {}
        self.services = ["gateway", "gateway_embed", "llamacpp"]
        for role, tasks in {"product": PRODUCT, **{service: [] for service in self.services}}.items():
            for name in ("main", "preflight"):
                file = directory / "roles" / role / "tasks" / f"{name}.yml"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(yaml.safe_dump(tasks))

    def play(self, playbook: str, **variables: Any) -> Run:
        """Run one of ours with `override`, the firewall's timer short and no questions asked in the end."""
        hosts: dict[str, Any] = {"hosts": {"server": {}}}
        inventory: dict[str, Any] = dict.fromkeys(self.services, hosts)
        inventory["all"] = {"hosts": {"server": self.variables("server")}}
        inventory["all"]["vars"] = {
            "appliance_services_override": self.override,
            "gateway_bearer_token": "a-token-that-is-long-enough",
            "service_health_timeout": 10,
            "firewall_revert_after": 60,
            **variables,
        }
        file = self.directory / "site.yml"
        file.write_text(yaml.safe_dump(inventory))
        roles = {"ANSIBLE_ROLES_PATH": f"{self.directory}/roles:{ROOT}/roles"}
        return ansible_playbook(
            ROOT / "playbooks" / playbook, "--skip-tags", "verify", inventory=file, environment=roles
        )


@pytest.fixture
def appliance(tmp_path: Path) -> Iterator[Appliance]:
    fleet = Fleet()
    try:
        yield Appliance(fleet, tmp_path)
    finally:
        fleet.close()


def test_nobody_else_gets_in_while_services_move(appliance: Appliance) -> None:
    inner = [appliance.inner.subnet]

    def reached(port: int) -> bool:
        return appliance.inside.fetches(appliance.server.address(appliance.inner), port)

    def guarded() -> set[int]:
        table = appliance.server.run("nft --json list table inet appliance").stdout
        rules = [item["rule"]["expr"] for item in json.loads(table)["nftables"] if "rule" in item]
        ports = [part["match"]["right"] for rule in rules for part in rule if "dport" in str(part)]
        return set(ports)

    with appliance.outside.probing(appliance.server.address(appliance.outer), *PORTS) as found:
        appliance.override = {
            "gateway": {"port": 8800, "allow_from": inner},
            "gateway_embed": {"allow_from": [*inner, appliance.outer.subnet]},
            "llamacpp": {"allow_from": inner},
        }
        appliance.play("site.yml").succeeded()
        assert [reached(8800), reached(8802), reached(8088)] == [True, True, True]

        # A port moves, a range shrinks, a unit gets another name, user and port. The run ends before the gateway moves.
        appliance.override = {
            "gateway": {"port": 8805, "allow_from": inner},
            "gateway_embed": {"allow_from": inner},
            "llamacpp": {"port": 8090, "allow_from": inner, "unit": "renamed", "user": "renamed"},
        }
        assert "msg: broken" in appliance.play("site.yml", broken="gateway").output
        assert [reached(8800), reached(8802), reached(8090)] == [True, True, True]
        assert not appliance.outside.fetches(appliance.server.address(appliance.outer), 8802)
        assert {8800, 8805, 8088, 8090} <= guarded()

        # The next run completes that; a service leaves and a range shrinks to nobody.
        appliance.services.remove("gateway_embed")
        appliance.override["llamacpp"]["allow_from"] = []
        completed = appliance.play("site.yml").succeeded()
        assert "of the appliance listens on port 8088" in completed.output, "the unit of the former name"
        assert [reached(8800), reached(8805), reached(8802), reached(8090)] == [False, True, False, False]
        assert guarded() == {8801, 8805, 8088, 8090}
        earlier = appliance.server.run("systemctl list-dependencies --after --all --plain gateway").stdout
        assert "appliance-firewall.service" in earlier, "at boot the rules come first"

        assert "of the appliance listens on port 8088" in appliance.play("remove.yml", **CONFIRMED).output
        assert guarded() == {8801, 8805, 8088, 8090}
        appliance.server.run("systemctl disable --now llamacpp")
        appliance.play("remove.yml", **CONFIRMED).succeeded()
        assert table(appliance.server) == ""

    # Whom a range let in until it shrank is kept out before the service starts again (a slow answer counts as ".").
    assert re.fullmatch(r"[-.]*[+.]+[-.]*", found.pop(8802))
    assert {port: marks.count("+") for port, marks in found.items()} == dict.fromkeys(found, 0)
