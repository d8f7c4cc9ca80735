"""Where the contract of role `service` is tried: one machine for each service manager, driven by ansible-playbook."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
SERVICES = ("llamacpp", "gateway_embed")
DEADLINE = 20.0


def eventually(condition: Callable[[], Any]) -> Any:
    """The first true value of `condition`; an assertion when there is none in time."""
    deadline = time.monotonic() + DEADLINE
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not true within {DEADLINE} s: {condition}"
        time.sleep(0.05)
    return value


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
        for service in SERVICES:
            self.configure(service, "first")

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
        """Play contract.yml; the counts of the recap, and `output` kept for messages."""
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
                "ANSIBLE_ROLES_PATH": str(self.directory / "roles"),
                "ANSIBLE_GATHER_SUBSET": "!all,min",
                "ANSIBLE_NOCOLOR": "1",
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
        return subprocess.run(argv, input=text, capture_output=True, text=True, check=False)

    def configure(self, service: str, text: str) -> None:
        """Write the file that the service reads."""
        self.write(f"{self.product}/{service}.conf", text)

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
    """A container with systemd as its first process."""

    manager = "systemd"
    image = os.environ.get("APPLIANCE_HOST_IMAGE", "localhost/appliance-host:12")

    def __init__(self, directory: Path) -> None:
        os.environ.setdefault("CONTAINERS_CONF", str(ROOT / "molecule/image/containers.conf"))
        self.name = f"service-{uuid4().hex[:8]}"
        command = ["podman", "run", "--detach", "--name", self.name, "--systemd=always", "--network=none"]
        options = ["--cap-add=NET_ADMIN,SYS_ADMIN", "--security-opt=seccomp=unconfined", "--security-opt=unmask=ALL"]
        subprocess.run([*command, *options, self.image, "/lib/systemd/systemd"], check=True, capture_output=True)
        super().__init__(directory)

    def install_product(self) -> None:
        eventually(lambda: self.shell("systemctl", "is-system-running").stdout.strip() in ("running", "degraded"))
        self.product = Path("/srv/product")
        self.shell("mkdir", "-p", str(self.product))
        self.write(f"{self.product}/server.py", (HERE / "server.py").read_text())
        for service in SERVICES:
            self.configure(service, "first")

    @property
    def inventory(self) -> str:
        return f"{self.name},"

    @property
    def variables(self) -> dict[str, Any]:
        return {"ansible_connection": "containers.podman.podman", "service_private_users": False}

    def shell(self, *argv: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        return super().shell("podman", "exec", "--interactive", self.name, *argv, text=text)

    def definition(self, service: str) -> str:
        return f"/etc/systemd/system/{service.replace('_', '-')}.service"

    def interrupt(self, service: str, definition: str) -> None:
        unit = service.replace("_", "-")
        self.shell("mkdir", "-p", "/run/appliance")
        self.write(f"/run/appliance/{unit}.restart", "")
        super().interrupt(service, definition)
        self.shell("systemctl", "daemon-reload")

    def close(self) -> None:
        subprocess.run(["podman", "rm", "--force", "--time", "0", self.name], check=True, capture_output=True)


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports
