"""Where the contract of role `service` is tried: one machine for each service manager, driven by ansible-playbook."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.podman_hosts import ENVIRONMENT, Fleet, podman
from tests.support.ports import free_ports

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
SERVICES = ("llamacpp", "gateway_embed")


class Machine:
    """This machine, everything under `directory`; its services are managed by supervisor."""

    manager = "supervisor"
    first_definition: str

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.product = directory
        self.ports = dict(zip(SERVICES, free_ports(len(SERVICES)), strict=True))
        (directory / "playbooks").mkdir()
        (directory / "roles/release/tasks").mkdir(parents=True)
        (directory / "roles/service").symlink_to(ROOT / "roles/service")
        shutil.copy(HERE / "release_standin.yml", directory / "roles/release/tasks/main.yml")
        for name in ("group_vars", "filter_plugins"):
            (directory / "playbooks" / name).symlink_to(ROOT / "playbooks" / name)
        for playbook in HERE.glob("*.yml"):
            shutil.copy(playbook, directory / "playbooks")
        self.install_product()

    def install_product(self) -> None:
        shutil.copy(HERE / "server.py", self.product)
        self.configure_all()

    def configure_all(self) -> None:
        for service in SERVICES:
            self.configure(service, "first")
            self.tell(service, "first")

    @property
    def inventory(self) -> str:
        return f"{self.manager},"

    @property
    def variables(self) -> dict[str, Any]:
        return {
            "ansible_connection": "local",
            "ansible_python_interpreter": sys.executable,
            "appliance_mode": "rootless",
        }

    @property
    def environment(self) -> dict[str, str]:
        return {}

    def play(self, wanted: str = "present", *options: str, succeeds: bool = True) -> dict[str, int]:
        """Play contract.yml; returns the counts of the recap and keeps `output` for messages."""
        return self.run_playbook("contract.yml", *options, succeeds=succeeds, wanted=wanted)

    def run_playbook(self, playbook: str, *options: str, succeeds: bool = True, **variables: Any) -> dict[str, int]:
        variables = {
            **self.variables,
            "product": str(self.product),
            "appliance_host_services": list(SERVICES),
            "appliance_services_override": {service: {"port": port} for service, port in self.ports.items()},
            **variables,
        }
        command = [Path(sys.executable).parent / "ansible-playbook", self.directory / "playbooks" / playbook]
        done = subprocess.run(
            [*command, "-i", self.inventory, "-e", json.dumps(variables), *options],
            cwd=self.directory,
            env={
                **os.environ,
                "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
                "ANSIBLE_ROLES_PATH": str(self.directory / "roles"),
                "ANSIBLE_GATHER_SUBSET": "!all,min",
                "ANSIBLE_NOCOLOR": "1",
                "ANSIBLE_PIPELINING": "1",
                "ANSIBLE_SSH_CONTROL_PATH_DIR": str(self.directory / "cp"),
                "CANARY": "of the caller",
                **self.environment,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        self.output = done.stdout + done.stderr
        assert (done.returncode == 0) == succeeds, self.output
        recap = re.search(rf"^{re.escape(self.inventory[:-1])} +: (.*)$", done.stdout, re.MULTILINE)
        assert recap, self.output
        return {key: int(count) for key, count in re.findall(r"(\w+)=(\d+)", recap[1])}

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

    def definition(self, service: str) -> str:
        unit = service.replace("_", "-")
        return f"{self.directory}/.appliance/etc/appliance/supervisor.d/{unit}.conf"

    def has(self, path: str) -> bool:
        return self.shell("test", "-e", path).returncode == 0

    def interrupt(self, service: str, definition: str) -> None:
        """Leave what a run leaves that is killed after it wrote the definition and before it restarted the process."""
        self.write(self.definition(service), definition)

    def close(self) -> None:
        self.run_playbook("down.yml")


class MacMachine(Machine):
    """This machine with a launchctl of the tests' own."""

    manager = "launchd"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        (directory / "launchd").mkdir()
        (directory / "bin").mkdir()
        (directory / "bin/launchctl").symlink_to(HERE / "fake_launchctl.py")
        (directory / ".appliance/Library/LaunchDaemons").mkdir(parents=True)

    @property
    def variables(self) -> dict[str, Any]:
        return {**super().variables, "appliance_service_manager": "launchd"}

    @property
    def environment(self) -> dict[str, str]:
        path = f"{self.directory / 'bin'}:{os.environ['PATH']}"
        return {"PATH": path, "FAKE_LAUNCHD": str(self.directory / "launchd")}

    def definition(self, service: str) -> str:
        label = {"llamacpp": "com.llamacpp.server", "gateway_embed": "com.ai.gateway.embed"}[service]
        return f"{self.directory}/.appliance/Library/LaunchDaemons/{label}.plist"

    def close(self) -> None:
        self.play("absent")


class SystemdMachine(Machine):
    """A container with systemd as its first process, reached over SSH."""

    manager = "systemd"

    def __init__(self, directory: Path) -> None:
        self._fleet = Fleet()
        self._key = directory / "key"
        try:
            self._host = self._fleet.host("service")
            self._admit()
            super().__init__(directory)
        except BaseException:
            self._fleet.close()
            raise

    def _admit(self) -> None:
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self._key], check=True)
        public = self._key.with_suffix(".pub").read_text().strip()
        self._host.run(f"install -d -m 0700 /root/.ssh && echo '{public}' >/root/.ssh/authorized_keys")

    def install_product(self) -> None:
        self.product = Path("/srv/product")
        self.shell("mkdir", "-p", str(self.product))
        self.write(f"{self.product}/server.py", (HERE / "server.py").read_text())
        self.configure_all()

    @property
    def variables(self) -> dict[str, Any]:
        return {
            "ansible_host": podman("inspect", "--format", "{{.NetworkSettings.IPAddress}}", self._host.name),
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(self._key),
            "ansible_ssh_common_args": "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
            "service_private_users": False,  # a container's systemd cannot make user namespaces
        }

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
