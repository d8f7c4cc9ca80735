"""What the firewall role decides and renders; test_firewall_hosts.py runs it."""

import os
import plistlib
import subprocess
from pathlib import Path
from typing import Any

import pytest
from firewall import (
    firewall_cuts,
    firewall_former,
    firewall_guarded,
    firewall_kept_ports,
    firewall_left,
    firewall_refusals,
    ufw_commands,
)
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tests.support.waiting import until

TEMPLATES = Path(__file__).resolve().parents[2] / "roles/firewall/templates"

GATEWAY = {"service": "gateway", "name": "api", "port": 8800, "allow_from": ["10.10.22.0/24", "fd00:22::/64"]}
OBSERVABILITY = {"service": "gateway", "name": "observability", "port": 8801, "allow_from": []}
LISTENERS = [GATEWAY, OBSERVABILITY]
SOCKETS = [
    'tcp LISTEN 0 128 0.0.0.0:22 0.0.0.0:* users:(("sshd",pid=46,fd=3))',
    'tcp LISTEN 0 128 [::]:2222 [::]:* users:(("sshd",pid=46,fd=4))',
    'tcp LISTEN 0 128 0.0.0.0:8800 0.0.0.0:* users:(("gateway",pid=47,fd=3))',
    'tcp LISTEN 0 128 127.0.0.1:5432 0.0.0.0:* users:(("postgres",pid=48,fd=3))',
    'tcp LISTEN 0 5 *:9100 *:* users:(("node_exporter",pid=49,fd=3))',
    "udp UNCONN 0 0 0.0.0.0%eth0:68 0.0.0.0:*",
]


def found(**values: Any) -> dict[str, Any]:
    return {"nftables": [], "ufw": False, "ufw_rules": [], "firewalld": False, "sockets": [], **values}


def render(template: str, **variables: Any) -> str:
    environment = Environment(loader=FileSystemLoader(TEMPLATES), trim_blocks=True, undefined=StrictUndefined)  # noqa: S701 - no HTML
    environment.filters["firewall_kept_ports"] = firewall_kept_ports
    defaults: dict[str, Any] = {
        "ansible_managed": "Ansible managed",
        "appliance_etc": "/etc/appliance",
        "appliance_log": "/var/log",
        "firewall_default": "accept",
        "firewall_found": found(sockets=SOCKETS),
        "firewall_keep_ports": [],
        "firewall_guarded": LISTENERS,
        "firewall_pf_run": "/var/run",
        "firewall_ssh_port": 22,
    }
    return environment.get_template(template).render(defaults | variables)


def nft_check(rules: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("nft --check needs root")
    subprocess.run(["nft", "--check", "--file", "-"], input=rules, text=True, check=True)


def test_rules_close_declared_ports_and_nothing_else() -> None:
    rules = render("appliance.nft.j2")
    nft_check(rules)
    lines = [line.strip() for line in rules.splitlines()]
    assert [line for line in lines if "dport" in line] == [
        'ip saddr 10.10.22.0/24 tcp dport 8800 accept comment "gateway/api"',
        'ip6 saddr fd00:22::/64 tcp dport 8800 accept comment "gateway/api"',
        'tcp dport 8800 drop comment "gateway/api"',
        'tcp dport 8801 drop comment "gateway/observability"',
    ]
    assert "type filter hook input priority filter; policy accept;" in lines
    flows = lines.index("tcp flags & (fin | syn | rst | ack) != syn accept")
    assert lines.index('iifname "lo" accept') < flows < lines.index(next(line for line in lines if "dport" in line))
    assert rules.count("hook") == 1


def test_rules_replace_the_table_in_one_transaction() -> None:
    statements = [line for line in render("appliance.nft.j2").splitlines() if line and line[0] not in "# "]
    assert statements == [
        "table inet appliance",
        "delete table inet appliance",
        "table inet appliance {",
        "}",
    ]


@pytest.mark.parametrize("ranges", [["0.0.0.0/0", "::/0"], ["10.0.0.0/8", "10.10.22.0/24"], ["10.10.22.7/32"]])
def test_ranges_may_overlap_or_name_everybody(ranges: list[str]) -> None:
    nft_check(render("appliance.nft.j2", firewall_guarded=[{**GATEWAY, "allow_from": ranges}]))


def test_no_listeners_make_a_valid_ruleset() -> None:
    nft_check(render("appliance.nft.j2", firewall_guarded=[]))


def test_default_drop_keeps_ssh_and_the_operators_ports() -> None:
    rules = render("appliance.nft.j2", firewall_default="drop", firewall_keep_ports=[9090])
    nft_check(rules)
    assert "policy drop;" in rules
    kept = [line.split()[8] for line in rules.splitlines() if '"kept"' in line]
    assert kept == ["22", "2222", "9090"]


def test_default_drop_names_what_it_cuts() -> None:
    assert firewall_cuts(found(sockets=SOCKETS), LISTENERS, [22, 2222]) == [
        '*:9100 users:(("node_exporter",pid=49,fd=3))'
    ]


@pytest.mark.parametrize("template", ["appliance.nft.j2", "appliance.pf.j2"])
def test_what_the_rules_guard_is_read_back_from_their_file(template: str) -> None:
    assert firewall_former(render(template, firewall_default="drop")) == LISTENERS


A, B, A7 = "10.1.0.0/16", "10.2.0.0/16", "10.1.7.0/24"


def of(service: str, port: int, *networks: str) -> dict[str, Any]:
    return {"service": service, "name": "api", "port": port, "allow_from": list(networks)}


@pytest.mark.parametrize(
    ("former", "declared", "meanwhile"),
    [
        ([], [of("a", 1, A)], [of("a", 1, A)]),
        ([of("a", 1, A)], [of("a", 1, A, B)], [of("a", 1, A, B)]),  # grows
        ([of("a", 1, A, B)], [of("a", 1, A)], [of("a", 1, A)]),  # shrinks
        ([of("a", 1, A)], [of("a", 1)], [of("a", 1)]),  # to nobody
        ([of("a", 1, A)], [], [of("a", 1, A)]),  # leaves
        ([of("a", 1, A)], [of("a", 2, A)], [of("a", 2, A), of("a", 1, A)]),  # moves
        ([of("a", 1, A)], [of("a", 2, A7, B)], [of("a", 2, A7, B), of("a", 1, A7)]),  # moves, and shrinks as it grows
        ([of("a", 1, A)], [of("a", 2)], [of("a", 2), of("a", 1)]),  # moves to loopback
        ([of("a", 1, A)], [of("b", 1, A7, B)], [of("a", 1, A7)]),  # makes room for another service
        ([of("a", 1, A), of("b", 2, B)], [of("a", 2, A), of("b", 1, B)], [of("b", 2), of("a", 1)]),  # change places
        ([of("a", 1, "fd00::/8")], [of("a", 2, "::/0", A)], [of("a", 2, "::/0", A), of("a", 1, "fd00::/8")]),
    ],
)
def test_former_ports_stay_guarded_until_nothing_of_ours_listens_there(
    former: list[Any], declared: list[Any], meanwhile: list[Any]
) -> None:
    held = [{"port": 1, "pid": 4, "name": "python3", "ours": True}, {"port": 3, "pid": 5, "name": "x", "ours": False}]
    assert firewall_guarded(declared, former, False, []) == meanwhile
    # A run that ended halfway leaves the rules of its beginning; the next one begins with the same.
    assert firewall_guarded(declared, meanwhile, False, []) == meanwhile
    assert firewall_guarded(declared, meanwhile, True, held[1:]) == declared

    left = [one for one in meanwhile if one["port"] == 1 and 1 not in {new["port"] for new in declared}]
    assert firewall_guarded(declared, meanwhile, True, held) == [*declared, *left]
    assert [line.split(";")[0] for line in firewall_left(left, held)] == [
        "python3 (pid 4) of the appliance listens on port 1, which was a/api's" for _ in left
    ]


def chain(**values: Any) -> dict[str, Any]:
    base = {"family": "inet", "table": "mine", "name": "input", "hook": "input", "policy": "drop"}
    return {"chain": base | values}


def accept(right: Any, table: str = "mine") -> dict[str, Any]:
    match = {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": right}
    return {"rule": {"family": "inet", "table": table, "expr": [{"match": match}, {"accept": None}]}}


def test_a_foreign_chain_that_drops_is_refused_with_the_rule_to_add() -> None:
    assert firewall_refusals(found(nftables=[chain()]), LISTENERS) == [
        "inet mine input drops what it does not know; type: "
        "nft insert rule inet mine input ip saddr 10.10.22.0/24 tcp dport 8800 accept",
        "inet mine input drops what it does not know; type: "
        "nft insert rule inet mine input ip6 saddr fd00:22::/64 tcp dport 8800 accept",
    ]


@pytest.mark.parametrize(
    "right", [8800, {"set": [22, 8800]}, {"range": [8000, 9000]}, {"set": [{"range": [8800, 8810]}]}]
)
def test_a_foreign_chain_with_a_rule_for_the_port_is_content(right: Any) -> None:
    assert firewall_refusals(found(nftables=[chain(), accept(right)]), LISTENERS) == []


@pytest.mark.parametrize("rule", [accept(22), accept({"set": [22, 443]}), accept(8800, table="other")])
def test_a_rule_for_another_port_or_table_does_not_count(rule: dict[str, Any]) -> None:
    assert len(firewall_refusals(found(nftables=[chain(), rule]), LISTENERS)) == 2


@pytest.mark.parametrize(
    "state",
    [
        found(nftables=[chain(policy="accept")]),
        found(nftables=[chain(hook="forward")]),
        found(nftables=[chain(table="appliance")]),
        found(nftables=[chain(family="ip", table="filter", name="INPUT")], ufw=True),
    ],
)
def test_other_chains_are_left_alone(state: dict[str, Any]) -> None:
    assert firewall_refusals(state, LISTENERS) == []


def test_a_chain_of_one_family_is_asked_for_that_family_only() -> None:
    refusals = firewall_refusals(found(nftables=[chain(family="ip6")]), LISTENERS)
    assert ["ip6 saddr" in line for line in refusals] == [True]


def test_loopback_listeners_need_no_opening() -> None:
    assert firewall_refusals(found(nftables=[chain()]), [OBSERVABILITY]) == []


OURS = "ufw allow from 10.10.22.0/24 to any port 8800 proto tcp comment 'appliance: gateway/api'"
STALE = "ufw allow from 192.168.7.0/24 to any port 8800 proto tcp comment 'appliance: gateway/api'"
FOREIGN = "ufw allow from 192.168.7.0/24 to any port 8800 proto tcp comment 'by hand'"
NARROW = [{**GATEWAY, "allow_from": ["10.10.22.0/24"]}]


def rule(source: str) -> list[str]:
    return ["allow", "proto", "tcp", "from", source, "to", "any", "port", "8800"]


def test_ufw_rules_are_added_once_and_stale_ones_removed() -> None:
    added = [*rule("10.10.22.0/24"), "comment", "appliance: gateway/api"]
    assert ufw_commands(found(ufw=True), NARROW) == [added]
    assert ufw_commands(found(ufw=True, ufw_rules=[OURS, FOREIGN, "ufw allow 22/tcp"]), NARROW) == []
    assert ufw_commands(found(ufw=True, ufw_rules=[OURS, STALE]), NARROW) == [["delete", *rule("192.168.7.0/24")]]


@pytest.mark.parametrize(("ufw", "listeners"), [(True, []), (False, NARROW)])
def test_no_declaration_or_an_inactive_ufw_keeps_none_of_our_rules(ufw: bool, listeners: list[Any]) -> None:
    commands = ufw_commands(found(ufw=ufw, ufw_rules=[OURS, FOREIGN]), listeners)
    assert commands == [["delete", *rule("10.10.22.0/24")]]


def test_the_unit_is_valid_and_confined(tmp_path: Path) -> None:
    unit = tmp_path / "appliance-firewall.service"
    unit.write_text(render("appliance-firewall.service.j2"))
    subprocess.run(["systemd-analyze", "verify", "--man=no", unit], check=True)
    offline = [
        "systemd-analyze",
        "security",
        "--offline=true",
        "--threshold=14",
    ]  # root on the host's network
    subprocess.run([*offline, unit], check=True, stdout=subprocess.DEVNULL)


def test_pf_closes_declared_ports_to_new_connections_and_nothing_else() -> None:
    rules = [line for line in render("appliance.pf.j2").splitlines() if not line.startswith("#")]
    assert rules == [
        "table <appliance_8800> const { 10.10.22.0/24 fd00:22::/64 }",
        "block drop in quick on ! lo0 proto tcp from ! <appliance_8800> to any port 8800 flags S/SA",
        "block drop in quick on ! lo0 proto tcp from any to any port 8801 flags S/SA",
    ]


def test_launchd_loads_the_pf_rules_at_start() -> None:
    job = plistlib.loads(render("com.ai.appliance.firewall.plist.j2").encode())
    assert job == {
        "Label": "com.ai.appliance.firewall",
        "ProgramArguments": ["/bin/sh", "/etc/appliance/firewall.sh", "load"],
        "RunAtLoad": True,
        "StandardErrorPath": "/var/log/appliance-firewall.err.log",
    }


class Pf:
    """The rendered script with a pfctl that records its calls, in place of a Mac."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.calls_file = directory / "calls"
        self.script = directory / "firewall.sh"
        self.script.write_text(render("firewall.sh.j2", appliance_etc=directory, firewall_pf_run=directory))
        fake = directory / "pfctl"
        fake.write_text(f'#!/bin/sh\necho "$*" >>{self.calls_file}\ncase $1 in -E) echo "Token : 42" >&2 ;; esac\n')
        fake.chmod(0o755)

    def run(self, *arguments: str) -> int:
        environment = {**os.environ, "PATH": f"{self.directory}:{os.environ['PATH']}"}
        return subprocess.run(["sh", self.script, *arguments], env=environment).returncode

    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines() if self.calls_file.exists() else []


@pytest.fixture
def pf(tmp_path: Path) -> Pf:
    return Pf(tmp_path)


def test_the_pf_script_is_clean_shell(pf: Pf) -> None:
    subprocess.run(["shellcheck", pf.script], check=True)


def test_pf_is_enabled_once_and_its_token_given_back(pf: Pf) -> None:
    rules = pf.directory / "firewall.pf"
    rules.write_text("")
    assert pf.run("load") == 0
    assert pf.run("load") == 0
    assert pf.run("unload") == 0
    load = f"-q -a com.apple/appliance -f {rules}"
    assert pf.calls() == [load, "-E", load, "-q -a com.apple/appliance -F all", "-X 42"]
    assert not rules.exists()


def test_confirmed_pf_rules_stay_and_unconfirmed_ones_go(pf: Pf) -> None:
    new, rules = pf.directory / "new", pf.directory / "firewall.pf"
    new.write_text("new")
    assert pf.run("try", str(new), "60") == 0
    assert pf.run("confirm", str(new)) == 0
    assert rules.read_text() == "new"

    new.write_text("worse")
    assert pf.run("try", str(new), "0") == 0
    until(lambda: not (pf.directory / "appliance-pf.waiting").exists(), "the rules before do not come back")
    assert pf.run("confirm", str(new)) != 0
    assert rules.read_text() == "new"
