"""Call the gateway over the network, from another host and with nothing but curl."""

import json
import subprocess
from dataclasses import dataclass
from typing import Any

from tests.support.podman_hosts import Host

CURL_TIMED_OUT = 28


@dataclass(frozen=True)
class Caller:
    host: Host
    server: str
    token: str

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """(status, parsed body)."""
        done = self.host.start(*self._curl(path, body, "--silent", "--max-time", "60", "--write-out", "\n%{http_code}"))
        output, _ = done.communicate(timeout=90)
        assert done.returncode == 0, f"curl ended with {done.returncode}"
        text, _, status = output.rpartition("\n")
        return int(status), json.loads(text)

    def stream(self, path: str, body: dict[str, Any]) -> subprocess.Popen[str]:
        """curl, with the answer on its standard output as it comes."""
        return self.host.start(*self._curl(path, body, "--silent", "--no-buffer", "--max-time", "300"))

    def knocks(self, port: int) -> int:
        """How curl ends that asks the port: 0 for an answer, else curl's own number."""
        asked = f"curl -s -o /dev/null --connect-timeout 3 -m 60 http://{self.server}:{port}/health"
        return int(self.host.run(asked, check=False).returncode)

    def _curl(self, path: str, body: dict[str, Any], *options: str) -> list[str]:
        headers = [f"Authorization: Bearer {self.token}", "Content-Type: application/json"]
        with_headers = [word for header in headers for word in ("--header", header)]
        return ["curl", *options, *with_headers, "--data", json.dumps(body), f"http://{self.server}:8800{path}"]
