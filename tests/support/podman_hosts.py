"""Systemd hosts and networks in podman for tests; needs root and the image of molecule/setup.sh.

Every name carries a suffix of its own run, and podman picks free subnets, so that runs side by side do not meet.
"""

import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from tests.support.waiting import until

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "localhost/appliance-host:12"
ENVIRONMENT = {**os.environ, "CONTAINERS_CONF": str(ROOT / "molecule/image/containers.conf")}
SYSTEMD = ["--systemd=always", "--cap-add=NET_ADMIN,SYS_ADMIN,SYS_PTRACE", "--security-opt=seccomp=unconfined"]
SYSTEMD += ["--security-opt=unmask=ALL"]


def why_unavailable() -> str | None:
    """Why hosts cannot be started here, with what to type; None when they can."""
    if os.geteuid() != 0:
        return "test hosts need root on Debian; type: sudo make test"
    try:
        podman("image", "exists", IMAGE)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return f"the image {IMAGE} is missing; type: molecule/setup.sh"
    return None


def podman(*arguments: str) -> str:
    done = subprocess.run(["podman", *arguments], env=ENVIRONMENT, check=True, capture_output=True, text=True)
    return done.stdout.strip()


PROBE = """
import asyncio, json, sys
address, every, *ports = sys.argv[1:]
found = {port: "" for port in ports}
async def knock(port):
    mark = "+"
    try:
        _, writer = await asyncio.wait_for(asyncio.open_connection(address, port), 0.8)  # before TCP asks again
        writer.close()
    except OSError as error:
        mark = "-" if isinstance(error, ConnectionRefusedError) else "."
    except asyncio.TimeoutError:
        mark = "."
    found[port] += mark
async def main():
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    knocks = set()
    while not ended.done():
        knocks = {task for task in knocks if not task.done()} | {asyncio.create_task(knock(port)) for port in ports}
        await asyncio.sleep(float(every))
    await asyncio.gather(*knocks)
asyncio.run(main())
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Network:
    name: str

    @cached_property
    def subnet(self) -> str:
        """Such as 10.89.3.0/24."""
        return str(json.loads(podman("network", "inspect", self.name))[0]["subnets"][0]["subnet"])


@dataclass(frozen=True)
class Host:
    name: str

    def run(self, command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a shell command inside, past every firewall."""
        argv = ["podman", "exec", self.name, "sh", "-c", command]
        done = subprocess.run(argv, env=ENVIRONMENT, capture_output=True, text=True)
        if check:
            assert done.returncode == 0, f"{self.name}: {command}\n{done.stdout}{done.stderr}"
        return done

    def start(self, *argv: str) -> subprocess.Popen[str]:
        """Start a program inside, its input and output at hand."""
        command = ["podman", "exec", "--interactive", self.name, *argv]
        return subprocess.Popen(command, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def address(self, network: Network | None = None) -> str:
        """Its address on a network, podman's own when no other is named."""
        found = json.loads(podman("inspect", self.name))[0]["NetworkSettings"]
        return str((found["Networks"][network.name] if network else found)["IPAddress"])

    def let_in(self, key: Path) -> dict[str, str]:
        """Make a key that opens root's account; the variables by which Ansible uses it."""
        if not key.exists():
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
        public = key.with_suffix(".pub").read_text().strip()
        self.run(f"install -d -m 0700 /root/.ssh && echo '{public}' >/root/.ssh/authorized_keys")
        return {
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(key),
            "ansible_ssh_common_args": "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR",
        }

    def fetches(self, address: str, port: int) -> bool:
        """Whether HTTP answers there; False means a refusal or nothing within 2 s."""
        done = self.run(f"curl -s -o /dev/null -m 2 http://{address}:{port}/", check=False)
        assert done.returncode in (0, 7, 28), f"curl ended with {done.returncode}"
        return done.returncode == 0

    @contextmanager
    def probing(self, address: str, *ports: int, every: float = 0.05) -> Iterator[dict[int, str]]:
        """Knock at the ports all the while; then there is a mark for each knock: + got in, - refused, . no answer."""
        found: dict[int, str] = {}
        probe = self.start("python3", "-c", PROBE, address, str(every), *map(str, ports))
        try:
            yield found
        finally:
            output, _ = probe.communicate()
        found.update({int(port): marks for port, marks in json.loads(output).items()})

    def serve(self, port: int) -> None:
        """Start an HTTP server on all addresses and wait until it listens."""
        self.run(f"systemd-run --quiet --unit=serve-{port} python3 -m http.server {port} --directory /var/empty")
        until(lambda: self.run(f"curl -s -o /dev/null http://127.0.0.1:{port}/", check=False).returncode == 0)

    def restart(self) -> None:
        podman("restart", "--time", "5", self.name)
        self.wait()

    def wait(self) -> None:
        """Until systemd has started everything that it is to start."""
        state = "systemctl is-system-running"
        until(lambda: self.run(state, check=False).stdout.strip() in ("running", "degraded"))


@dataclass
class Fleet:
    """What one test starts; `close` removes it, and nothing else."""

    suffix: str = field(default_factory=lambda: secrets.token_hex(4))
    _stack: ExitStack = field(default_factory=ExitStack)

    def network(self, name: str) -> Network:
        network = Network(f"{name}-{self.suffix}")
        podman("network", "create", network.name)
        self._stack.callback(podman, "network", "rm", "--force", network.name)
        return network

    def host(self, name: str, *networks: Network, options: tuple[str, ...] = ()) -> Host:
        """A systemd host on all the networks; on podman's own when none is named."""
        host = self._start(name, networks, [*SYSTEMD, *options], ["/lib/systemd/systemd"])
        host.wait()
        return host

    def client(self, name: str, *networks: Network) -> Host:
        """A host that runs nothing and only asks others."""
        return self._start(name, networks, ["--init"], ["sleep", "infinity"])

    def _start(self, name: str, networks: tuple[Network, ...], options: list[str], command: list[str]) -> Host:
        host = Host(f"{name}-{self.suffix}")
        attached = [f"--network={network.name}" for network in networks]
        podman("run", "--detach", "--name", host.name, "--hostname", name, *attached, *options, IMAGE, *command)
        self._stack.callback(podman, "rm", "--force", "--time", "0", host.name)
        return host

    def close(self) -> None:
        self._stack.close()
