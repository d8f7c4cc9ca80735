"""Where the contract of role `service` is tried: one machine for each service manager, hosts of the same plays."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.ansible_run import ROOT, ansible_playbook
from tests.support.podman_hosts import ENVIRONMENT, Fleet
from tests.support.ports import free_ports

HERE = Path(__file__).parent
SERVICES = ("llamacpp", "gateway_embed")
Counts = dict[str, int]


class Machine:
    """This machine, everything under `directory`; its services are managed by supervisor."""

    manager = "supervisor"
    first_definition: str

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = directory / ".appliance"
        self.ports = dict(zip(SERVICES, free_ports(len(SERVICES)), strict=True))
        self.product = self.make_product()
        self.write(f"{self.product}/server.py", (HERE / "server.py").read_text())
        for service in SERVICES:
            self.configure(service, "first")
            self.tell(service, "first")

    def make_product(self) -> Path:
        supervisor = self.root / "var/lib/supervisor"  # role `product` installs it
        supervisor.mkdir(parents=True)
        (supervisor / "env").symlink_to(sys.prefix)
        return self.directory

    @property
    def variables(self) -> dict[str, Any]:
        return {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "appliance_mode": "rootless",
            "appliance_root": str(self.root),
        }

    def shell(self, *argv: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command where the services run."""
        return subprocess.run(argv, input=text, env=ENVIRONMENT, capture_output=True, text=True, check=False)

    def configure(self, service: str, text: str) -> None:
        """Write the file that the service reads when it starts."""
        self.write(f"{self.product}/{service}.conf", text)

    def tell(self, service: str, text: str) -> None:
        """Write the file that the service reads again at SIGHUP."""
        self.write(f"{self.product}/{service}.txt", text)

    def write(self, path: str, text: str) -> None:
        done = self.shell("tee", path, text=text)
        assert done.returncode == 0, done.stderr

    def read(self, path: str) -> str:
        done = self.shell("cat", path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def ask(self, service: str) -> dict[str, Any]:
        """The answer of the service; empty when it does not listen."""
        done = self.shell("curl", "-s", "--noproxy", "*", f"http://127.0.0.1:{self.ports[service]}/")
        return dict(json.loads(done.stdout)) if done.returncode == 0 else {}

    def pid(self, service: str) -> int:
        return int(self.ask(service).get("pid", 0))

    def pids(self) -> list[int]:
        return [self.pid(service) for service in SERVICES]

    def alive(self, pid: int) -> bool:
        return self.shell("kill", "-0", str(pid)).returncode == 0

    def definition(self, service: str) -> str:
        return f"{self.root}/etc/appliance/supervisor.d/{service.replace('_', '-')}.conf"

    def has(self, path: str) -> bool:
        return self.shell("test", "-e", path).returncode == 0

    def interrupt(self, service: str, definition: str) -> None:
        """Leave what a run leaves that is killed after it wrote the definition and before it restarted the process."""
        self.write(self.definition(service), definition)

    def close(self) -> None:
        """Give back what outlives the services."""


class MacMachine(Machine):
    """This machine with a launchctl of the tests' own."""

    manager = "launchd"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        (directory / "launchd").mkdir()
        (directory / "bin").mkdir()
        (directory / "bin/launchctl").symlink_to(HERE / "fake_launchctl.py")
        (self.root / "Library/LaunchDaemons").mkdir(parents=True)

    @property
    def variables(self) -> dict[str, Any]:
        path = f"{self.directory / 'bin'}:{os.environ['PATH']}"
        environment = {"PATH": path, "FAKE_LAUNCHD": str(self.directory / "launchd")}
        return super().variables | {"appliance_service_manager": "launchd", "environment_of_tasks": environment}

    def definition(self, service: str) -> str:
        label = {"llamacpp": "com.llamacpp.server", "gateway_embed": "com.ai.gateway.embed"}[service]
        return f"{self.root}/Library/LaunchDaemons/{label}.plist"


class SystemdMachine(Machine):
    """A container with systemd as its first process, reached over SSH."""

    manager = "systemd"

    def __init__(self, directory: Path) -> None:
        self._fleet = Fleet()
        try:
            self._host = self._fleet.host("service")
            self._login = self._host.let_in(directory / "key")
            super().__init__(directory)
        except BaseException:
            self._fleet.close()
            raise

    def make_product(self) -> Path:
        self.shell("mkdir", "/srv/product")
        return Path("/srv/product")

    @property
    def variables(self) -> dict[str, Any]:
        # A container's systemd cannot make user namespaces.
        return {**self._login, "ansible_host": self._host.address(), "service_private_users": False}

    def shell(self, *argv: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        return super().shell("podman", "exec", "--interactive", self._host.name, *argv, text=text)

    def definition(self, service: str) -> str:
        return f"/etc/systemd/system/{service.replace('_', '-')}.service"

    def interrupt(self, service: str, definition: str) -> None:
        self.shell("mkdir", "-p", "/run/appliance")
        self.write(f"/run/appliance/{service.replace('_', '-')}.restart", "")
        super().interrupt(service, definition)
        self.shell("systemctl", "daemon-reload")

    def close(self) -> None:
        self._fleet.close()


class Machines(list[Machine]):
    """All of them, in one inventory."""

    def __init__(self, directory: Path, kinds: list[type[Machine]]) -> None:
        super().__init__()
        self.directory = directory
        (directory / "playbooks").mkdir()
        (directory / "roles").mkdir()
        (directory / "roles/service").symlink_to(ROOT / "roles/service")
        for name in ("group_vars", "filter_plugins"):
            (directory / "playbooks" / name).symlink_to(ROOT / "playbooks" / name)
        for playbook in HERE.glob("*.yml"):
            shutil.copy(playbook, directory / "playbooks")
        for kind in kinds:
            (directory / kind.manager).mkdir()
            self.append(kind(directory / kind.manager))

    def play(
        self, wanted: str = "present", *options: str, services: Sequence[str] = SERVICES, succeeds: bool = True
    ) -> list[Counts]:
        """Play contract.yml; the counts of each machine in the recap, and `output` for messages."""
        return self.run_playbook("contract.yml", *options, succeeds=succeeds, wanted=wanted, services=services)

    def changed(self, *options: str) -> list[int]:
        """How much a run that is about llamacpp alone changes on each machine."""
        return [counts["changed"] for counts in self.play("present", *options, services=["llamacpp"])]

    def run_playbook(self, playbook: str, *options: str, succeeds: bool = True, **variables: Any) -> list[Counts]:
        inventory = self.directory / "hosts.json"
        hosts = {machine.manager: self._variables(machine) for machine in self}
        inventory.write_text(json.dumps({"all": {"hosts": hosts}}))
        arguments = ["-e", json.dumps(variables), *options]
        environment = {
            "ANSIBLE_ROLES_PATH": str(self.directory / "roles"),
            "ANSIBLE_GATHER_SUBSET": "!all,min",
            "ANSIBLE_CACHE_PLUGIN": "jsonfile",  # facts are gathered once
            "ANSIBLE_CACHE_PLUGIN_CONNECTION": str(self.directory / "facts"),
            "CANARY": "of the caller",
        }
        self._run = ansible_playbook(
            self.directory / "playbooks" / playbook, *arguments, inventory=inventory, environment=environment
        )
        assert (self._run.status == 0) == succeeds, self.output
        return [self._run.counts(machine.manager) for machine in self if f"\n{machine.manager} " in self.output]

    @staticmethod
    def _variables(machine: Machine) -> dict[str, Any]:
        return {
            "product": str(machine.product),
            "appliance_host_services": list(SERVICES),
            "appliance_services_override": {service: {"port": port} for service, port in machine.ports.items()},
            **machine.variables,
        }

    def said(self, machine: Machine) -> str:
        """With what message the last run ended on a machine."""
        return self._run.said(machine.manager)

    @property
    def output(self) -> str:
        return self._run.output

    def close(self) -> None:
        self.run_playbook("down.yml")
        for machine in self:
            machine.close()
