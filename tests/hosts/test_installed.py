"""What stands on the provisioned host: listeners, users, modes, what services may write, their sandbox."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.ansible_run import ROOT, ansible_playbook
from tests.support.services import CATALOG, EXPECTED

SCENARIO = yaml.safe_load((ROOT / "molecule/default/molecule.yml").read_text())["platforms"][0]["groups"]
SSHD = {("0.0.0.0", 22), ("::", 22)}

# The scenario opens the gateway's API; the table was written by hand, to hold what is derived to something.
LISTENERS = {
    ("0.0.0.0" if (service, name) == ("gateway", "api") else "127.0.0.1", port)
    for service in SCENARIO
    for name, port in EXPECTED[service].ports.items()
}
SERVICES = {CATALOG[service]["unit"]: EXPECTED[service] for service in SCENARIO}
UNITS = sorted(SERVICES)


def listening(host: Any, *options: str) -> set[tuple[str, int]]:
    fields = [line.split() for line in host.check_output(f"ss -Hln {' '.join(options)}").splitlines()]
    pairs = [line[3 if "-t" in options else 4].rpartition(":") for line in fields]
    return {(address.strip("[]"), int(port)) for address, _, port in pairs}


def test_the_declared_listeners_are_the_listeners(host: Any) -> None:
    declared = json.loads(host.file("/etc/appliance/services.json").content)["listeners"]
    assert {(item["bind"], item["port"]) for item in declared} == LISTENERS
    assert listening(host, "-t") == LISTENERS | SSHD
    assert host.check_output("ss -Hlnu") == ""


def test_each_listener_is_its_own_users(host: Any) -> None:
    for item in json.loads(host.file("/etc/appliance/services.json").content)["listeners"]:
        holder = host.check_output(f"ss -Hltnp sport = :{item['port']}")
        (pid,) = set(re.findall(r"pid=(\d+)", holder))
        assert host.check_output(f"ps -o user:32= -p {pid}") == item["user"]
        assert host.check_output(f"ps -o unit= -p {pid}") == f"{item['unit']}.service"
        host.check_output(f"grep -qz ^APPLIANCE_REVISION= /proc/{pid}/environ")  # as host_state knows it


@pytest.mark.parametrize("unit", UNITS)
def test_services_run_and_start_at_boot(host: Any, unit: str) -> None:
    service = host.service(unit)
    assert service.is_running, host.check_output(f"journalctl -u {unit} -n 50; tail -n 50 /var/log/{unit}/*")
    assert service.is_enabled
    assert host.service("appliance-firewall").is_enabled


@pytest.mark.parametrize("name", UNITS)
def test_users_cannot_log_in_and_share_no_group(host: Any, name: str) -> None:
    user = host.user(name)
    assert user.uid < 1000
    assert user.shell == "/usr/sbin/nologin"
    assert user.password in ("!", "!!", "*")
    assert user.groups == [name]


MODES = {
    "/etc/appliance/services.json": ("root", "root", 0o644),
    "/etc/appliance/firewall.nft": ("root", "root", 0o644),
    "/var/lib/gateway": ("root", "root", 0o755),
    "/var/lib/gateway/releases": ("root", "root", 0o755),
    "/var/lib/gateway/app": ("root", "root", 0o755),
    "/var/lib/gateway/app/.env": ("root", "gateway", 0o640),
    "/var/lib/gateway/data": ("gateway", "gateway", 0o750),
    "/var/lib/gateway/tools": ("gateway", "gateway", 0o750),
    "/var/log/gateway": ("root", "gateway", 0o750),
}


@pytest.mark.parametrize("path", MODES)
def test_owner_and_mode(host: Any, path: str) -> None:
    file = host.file(path)
    assert (file.user, file.group, file.mode) == MODES[path]


def test_the_token_stands_in_one_file_only(host: Any, token: str) -> None:
    homes = " ".join(f"/var/lib/{unit}" for unit in UNITS)
    found = host.check_output(f"grep -rlF -e %s /etc /run/systemd {homes} /var/log || true", token)
    assert found.splitlines() == ["/var/lib/gateway/app/.env"]
    assert token not in host.check_output("ps -eo args")
    assert token not in host.check_output("journalctl --no-pager")


@pytest.mark.parametrize("unit", UNITS)
def test_a_service_can_write_its_data_and_nothing_else(host: Any, unit: str) -> None:
    """Walk all of the file system as the service's user, in the mount namespace of its process."""
    pid = host.service(unit).systemd_properties["MainPID"]
    become = f"nsenter --target {pid} --mount setpriv --reuid={unit} --regid={unit} --clear-groups --no-new-privs"
    walk = (
        (
            "find / ( -path /proc -o -path /sys -o -path /dev ) -prune -o -type l -prune"
            " -o ( -type d -o -type f ) -writable -print"
        )
        .replace("(", r"\(")
        .replace(")", r"\)")
    )
    found = set(host.run(f"{become} {walk}").stdout.splitlines())
    private = {path for path in found if re.match("/(var/)?tmp", path)}  # PrivateTmp=
    state = {f"/var/lib/{unit}/{name}" for name in SERVICES[unit].writes}
    beyond = {
        path for path in found - private if not any(path == root or path.startswith(f"{root}/") for root in state)
    }
    assert beyond <= {f"/var/log/{unit}/{unit}.{stream}.log" for stream in ("out", "err")}
    assert state <= found


@pytest.fixture(scope="session")
def production(host: Any, inventory: Path) -> Callable[[str], str]:
    """The unit as rendered for production: what check mode with PrivateUsers= would write."""
    flags = ["--check", "--diff", "-e", "service_private_users=true"]
    run = ansible_playbook(ROOT / "molecule/default/converge.yml", *flags, inventory=inventory).succeeded()
    differences = [line.strip() for line in run.output.splitlines() if re.match(r" *[+-](?![+-])", line)]
    # The revision is a hash over all of the definition.
    changed = [line for line in differences if "APPLIANCE_REVISION" not in line]
    assert changed == ["+PrivateUsers=true"] * len(UNITS), run.output

    def rendered(unit: str) -> str:
        loaded: str = host.file(f"/etc/systemd/system/{unit}.service").content_string
        return loaded.replace("NoNewPrivileges=true\n", "NoNewPrivileges=true\nPrivateUsers=true\n")

    return rendered


@pytest.mark.parametrize("unit", UNITS)
def test_the_production_unit_is_confined(unit: str, production: Callable[[str], str], tmp_path: Path) -> None:
    path = tmp_path / f"{unit}.service"
    path.write_text(production(unit))
    offline = ["systemd-analyze", "security", "--offline=true", str(path)]
    output = subprocess.run(offline, check=True, capture_output=True, text=True).stdout
    (score,) = re.findall(r"Overall exposure level for .*: ([\d.]+)", output)
    assert float(score) <= SERVICES[unit].exposure, output


@pytest.mark.parametrize("unit", UNITS)
def test_systemd_has_loaded_the_unit_that_was_written(host: Any, unit: str) -> None:
    show = f"systemctl show {unit} --property=NeedDaemonReload,DropInPaths,FragmentPath"
    properties = set(host.check_output(show).splitlines())
    fragment = f"FragmentPath=/etc/systemd/system/{unit}.service"
    assert properties == {"NeedDaemonReload=no", "DropInPaths=", fragment}
