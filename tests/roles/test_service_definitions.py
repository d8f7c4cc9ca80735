"""What role `service` renders is accepted, and understood as meant, by the program that reads it."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import plistlib
import re
import shlex
import shutil
import subprocess
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingMixIn, UnixStreamServer
from threading import Thread
from typing import Any

import pytest
import yaml
from supervisor.options import ServerOptions

from tests.support.ansible_run import ROOT, STAND_IN, ansible_playbook, run_module

ROLE = ROOT / "roles/service"
specification = importlib.util.spec_from_file_location("service", ROLE / "module_utils/appliance_service.py")
assert specification and specification.loader
appliance_service: Any = importlib.util.module_from_spec(specification)
specification.loader.exec_module(appliance_service)
ARGV = ["/usr/bin/env", "serve", 'a "quoted" word', "100%", "$HOME", "back\\slash"]
ENVIRONMENT = {"GREETING": 'say "hello" to 100% of $HOME', "PLAIN": "1", "LIST": "a,b=c"}
PLAIN: dict[str, Any] = {"service_name": "llamacpp"}
CASES: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "gateway": {
        "service_name": "gateway",
        "service_writable": ["/var/lib/gateway/data", "/var/lib/gateway/tools"],
        "service_peers": ["10.10.22.0/24"],
        "service_reloads": ["/var/lib/gateway/app/backends.yaml"],
        "appliance_services_override": {"gateway": {"allow_from": ["10.10.22.0/24", "fd00::/8"]}},
    },
    "anywhere": {**PLAIN, "service_peers": ["any"]},
    "procfs": {**PLAIN, "service_sandbox_exceptions": ["procfs"]},
    "compiler": {**PLAIN, "service_sandbox_exceptions": ["jit", "gpu", "procfs"]},
    "socket": {**PLAIN, "appliance_services_override": {"llamacpp": {"socket": "run/api.sock"}}},
    "container": {**PLAIN, "service_private_users": False},
}
# The highest exposure that `systemd-analyze security` may give: 1.2 for the gateway, 1.8 with a GPU or a compiler.
EXPOSURE = {"plain": 1.2, "gateway": 1.2, "anywhere": 1.3, "procfs": 1.3, "compiler": 1.8}
# Keys of launchd.plist(5) that the templates may use, with their types.
LAUNCHD_KEYS = {
    str: "Label UserName GroupName WorkingDirectory ProcessType StandardOutPath StandardErrorPath",
    bool: "InitGroups RunAtLoad KeepAlive",
    int: "StartInterval ThrottleInterval ExitTimeOut Umask",
    list: "ProgramArguments",
    dict: "EnvironmentVariables SoftResourceLimits HardResourceLimits",
}
TEMPLATES = [path.stem for path in ROLE.glob("templates/*.j2")]
PLAY = {
    "hosts": "all",
    "gather_facts": False,
    "vars_files": [str(ROLE / "vars/main.yml")],
    "tasks": [
        {
            "stand_in": {
                "path": "{{ output }}/{{ inventory_hostname }}.{{ item }}",
                "text": f"{{{{ lookup('template', '{ROLE}/templates/' ~ item ~ '.j2') }}}}",
            },
            "loop": TEMPLATES,
        }
    ],
}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with <case>.<template> for all cases."""
    directory = tmp_path_factory.mktemp("rendered")
    for name in ("group_vars", "filter_plugins"):
        (directory / name).symlink_to(ROOT / "playbooks" / name)
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    common = {**defaults, "service_argv": ARGV, "service_environment": ENVIRONMENT, "output": str(directory / "out")}
    hosts = {name: {"ansible_connection": "local", **common, **case} for name, case in CASES.items()}
    (directory / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts}}))
    (directory / "play.yml").write_text(json.dumps([PLAY]))
    play, inventory = directory / "play.yml", directory / "hosts.json"
    ansible_playbook(play, inventory=inventory, environment=STAND_IN).succeeded()
    return directory / "out"


@pytest.fixture(scope="module")
def units(rendered: Path) -> Path:
    """The systemd units under names that end in .service."""
    for unit in rendered.glob("*.systemd.service"):
        shutil.copy(unit, rendered / unit.name.replace(".systemd", ""))
    return rendered


@pytest.mark.parametrize("case", CASES)
def test_systemd_finds_nothing_to_say_about_a_unit(units: Path, case: str) -> None:
    done = subprocess.run(["systemd-analyze", "verify", units / f"{case}.service"], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize("case", EXPOSURE)
def test_a_unit_is_sandboxed(units: Path, case: str) -> None:
    argv: list[str | Path] = ["systemd-analyze", "security", "--offline=true", units / f"{case}.service"]
    output = subprocess.run(argv, capture_output=True, text=True).stdout
    exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", output)
    assert exposure and float(exposure[1]) <= EXPOSURE[case], output


def directives(unit: Path) -> list[str]:
    return unit.read_text().splitlines()


def test_only_user_namespaces_differ_on_a_test_host(units: Path) -> None:
    plain, container = (set(directives(units / f"{case}.service")) for case in ("plain", "container"))
    assert plain - container == {"PrivateUsers=true"}
    assert container - plain == set()


def test_a_unit_takes_user_limits_and_writable_places_from_the_catalog(units: Path) -> None:
    gateway = directives(units / "gateway.service")
    limits = {"MemoryMax=1G", "LimitNOFILE=65536"}
    assert {"User=gateway", "Group=gateway", "NoNewPrivileges=true"} | limits <= set(gateway)
    writable = [line for line in gateway if line.startswith("ReadWritePaths=")]
    assert writable == ['ReadWritePaths="/var/lib/gateway/data"', 'ReadWritePaths="/var/lib/gateway/tools"']
    assert "StandardError=append:/var/log/gateway/gateway.err.log" in gateway


def test_a_service_with_a_socket_may_write_its_directory_and_is_asked_there(units: Path, tmp_path: Path) -> None:
    assert 'ReadWritePaths="/var/lib/llamacpp/run"' in (units / "socket.service").read_text().splitlines()
    path = tmp_path / "api.sock"
    with UnixServer(str(path), Healthy) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        assert [appliance_service._answer(f"unix:{path}:{asked}") for asked in ("/health", "/other")] == ["200", "404"]
        server.shutdown()
        thread.join()
    assert "refused" in appliance_service._answer(f"unix:{path}:/health")


class UnixServer(ThreadingMixIn, UnixStreamServer):
    daemon_threads = True


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *words: object) -> None:
        """Quiet: a unix socket's client has no address to name."""


def test_a_unit_whose_process_can_read_files_again_reloads(units: Path) -> None:
    def reloads(case: str) -> list[str]:
        return [line for line in directives(units / f"{case}.service") if line.startswith("ExecReload=")]

    assert reloads("gateway") == ["ExecReload=/bin/kill -HUP $MAINPID"]
    assert reloads("plain") == []


def test_a_unit_talks_to_loopback_its_callers_and_its_peers_alone(units: Path) -> None:
    def addresses(case: str) -> list[str]:
        return [line for line in directives(units / f"{case}.service") if line.startswith("IPAddress")]

    assert addresses("plain") == ["IPAddressDeny=any", "IPAddressAllow=localhost"]
    assert addresses("gateway") == ["IPAddressDeny=any", "IPAddressAllow=localhost 10.10.22.0/24 fd00::/8"]
    assert addresses("anywhere") == []


@pytest.mark.parametrize("case", CASES)
def test_a_plist_has_keys_and_types_that_launchd_knows(rendered: Path, case: str) -> None:
    for template in ("launchd.plist", "launchd_rotation.plist"):
        plist = plistlib.loads((rendered / f"{case}.{template}").read_bytes())
        for key, value in plist.items():
            assert key in LAUNCHD_KEYS[type(value)].split()
        assert all(isinstance(word, str) for word in plist["ProgramArguments"])
        assert all(isinstance(value, str) for value in plist["EnvironmentVariables"].values())


def test_a_plist_says_what_the_definition_says(rendered: Path) -> None:
    plist = plistlib.loads((rendered / "gateway.launchd.plist").read_bytes())
    assert plist["Label"] == "com.ai.gateway"
    assert (plist["UserName"], plist["GroupName"]) == ("gateway", "gateway")
    assert plist["ProgramArguments"] == ARGV
    assert plist["EnvironmentVariables"].items() >= {**ENVIRONMENT, "APPLIANCE_REVISION": "@revision@"}.items()
    assert plist["StandardOutPath"] == "/var/log/gateway/gateway.out.log"
    assert plist["SoftResourceLimits"] == plist["HardResourceLimits"] == {"NumberOfFiles": 65536, "Core": 0}
    assert plist["KeepAlive"] and plist["RunAtLoad"]


def test_supervisor_reads_a_program_as_it_was_meant(rendered: Path, tmp_path: Path) -> None:
    text = (rendered / "gateway.supervisor_program.conf").read_text().replace("/var/log", str(tmp_path))
    (tmp_path / "gateway").mkdir()
    (tmp_path / "supervisor").mkdir()
    (tmp_path / "supervisor.d").mkdir()
    (tmp_path / "supervisor.d/gateway.conf").write_text(text)
    daemon = (rendered / "gateway.supervisord.conf").read_text().replace("/var/l", str(tmp_path / "l"))
    (tmp_path / "supervisord.conf").write_text(re.sub(r"(?m)^(directory|logfile)=.*\n", "", daemon))
    options = ServerOptions()
    options.realize(["-c", str(tmp_path / "supervisord.conf")])
    (group,) = options.process_group_configs
    (program,) = group.process_configs
    assert options.identifier == "@revision@"
    assert shlex.split(program.command) == ARGV
    assert program.environment.items() >= {**ENVIRONMENT, "APPLIANCE_REVISION": "@revision@"}.items()
    assert program.stopasgroup and program.killasgroup and program.autorestart
    assert program.stopwaitsecs == 15


def test_logrotate_copies_and_truncates(rendered: Path, tmp_path: Path) -> None:
    if not (logrotate := shutil.which("logrotate", path=f"{os.environ['PATH']}:/usr/sbin")):
        pytest.skip("logrotate is missing; type: molecule/setup.sh")
    logs = tmp_path / "llamacpp"
    logs.mkdir(mode=0o750)
    log = logs / "llamacpp.err.log"
    config = tmp_path / "logrotate.conf"
    config.write_text((rendered / "plain.logrotate").read_text().replace("/var/log", str(tmp_path)))
    config.chmod(0o644)
    with log.open("a") as writer:
        for _ in range(2):
            writer.write("x" * (11 << 20))
            writer.flush()
            subprocess.run([logrotate, "--state", tmp_path / "state", config], check=True)
        writer.write("after")
        writer.flush()
    assert log.read_text() == "after"
    assert [len(gzip.decompress((logs / f"{log.name}.{n}.gz").read_bytes())) for n in (1, 2)] == [11 << 20] * 2


def test_launchds_rotation_copies_and_truncates(rendered: Path, tmp_path: Path) -> None:
    plist = plistlib.loads((rendered / "plain.launchd_rotation.plist").read_bytes())
    (tmp_path / "llamacpp").mkdir()
    argv = [word.replace("/var/log", str(tmp_path)) for word in plist["ProgramArguments"]]
    out, err = (tmp_path / f"llamacpp/llamacpp.{kind}.log" for kind in ("out", "err"))
    out.write_text("small")
    with err.open("a") as writer:
        for number in range(7):
            writer.write(str(number) * (11 << 20))
            writer.flush()
            subprocess.run(argv, env=plist["EnvironmentVariables"], check=True)
        writer.write("after")
        writer.flush()
    assert out.read_text() == "small" and err.read_text() == "after"
    kept = sorted(err.parent.glob("*.gz"))
    assert [path.name for path in kept] == [f"llamacpp.err.log.{number}.gz" for number in range(1, 6)]
    assert [gzip.decompress(path.read_bytes())[:1] for path in kept] == [b"6", b"5", b"4", b"3", b"2"]


def test_a_socket_path_that_is_too_long_is_refused(tmp_path: Path) -> None:
    daemon = {"name": "supervisord", "program": "/nowhere/supervisord", "home": "/", "path": str(tmp_path / "conf")}
    given = {"daemon": daemon, "services": [], "state": "stopped"}
    module = ROLE / "library/supervisor_services.py"
    long, longer = (run_module(module, given | {"socket": f"/{'d' * length}"}) for length in (98, 99))
    assert not long.get("failed"), long
    assert "1 bytes too long for a unix socket: move the checkout to a shorter path" in longer["msg"]
