"""docs/add-a-backend.md followed to the letter in a copy of the tree: played, asked through the gateway, removed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from release.wheelhouse import sha256
from tests.support.ansible_run import ROOT, Run, ansible_playbook
from tests.support.ports import NOBODYS, free_ports
from tests.support.services import on_free_ports

PAGE = (ROOT / "docs/add-a-backend.md").read_text()
BLOCKS: dict[str, str] = dict(re.findall(r"^```\w+ (\S+)\n(.*?)^```$", PAGE, re.M | re.S))
(ELSEWHERE,) = re.findall(r"^```yaml\n(  \w+:\n.*?)^```$", PAGE, re.M | re.S)  # the entry of a server of others
COUNTED = 60  # lines of entry, descriptor, tasks and specs together, at most

# What the page's vendor ships: OpenAI's chat in front of a text.
SERVER = """#!/usr/bin/env python3
import argparse, json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
parser = argparse.ArgumentParser()
parser.add_argument("--host"), parser.add_argument("--port", type=int), parser.add_argument("--model")
options = parser.parse_args()
words = open(options.model).read()

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer({"data": [{"id": "echo-1", "object": "model"}]})

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        message = {"role": "assistant", "content": words}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        answer = {"id": "1", "object": "chat.completion", "created": 1, "model": "echo-1", "choices": [choice]}
        self.answer(answer)

    def answer(self, body):
        text = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

ThreadingHTTPServer((options.host, options.port), Handler).serve_forever()
"""


class Copy:
    """The checkout's files, with the page's blocks added where the page says."""

    def __init__(self, place: Path) -> None:
        self.root = place / "checkout"
        self.inventory = self.root / "inventories/local/hosts.yml"
        listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
            if (ROOT / name).is_file():
                (self.root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, self.root / name)
        (self.root / "build").mkdir()
        (self.root / "build/wheelhouse").symlink_to(ROOT / "build/wheelhouse")  # what was downloaded already
        self._ship()

    def _ship(self) -> None:
        (self.root / "build/echo.txt").write_text("words of the model")
        program = self.root / "build/echo-server"
        program.write_text(SERVER)
        program.chmod(0o755)
        with tarfile.open(self.root / "build/echo-1.0.tar.gz", "w:gz") as tar:
            tar.add(program, "echo-1.0/bin/echo-server")

    def follow(self) -> None:
        for name, text in BLOCKS.items():
            path, text = self.root / name, self._filled(text)
            if name.endswith("services.yml") and path.exists():
                after = "\nappliance_services:"
                path.write_text(path.read_text().replace(after, f"\n{text}\n{ELSEWHERE}{after}"))
            elif name.endswith("services.py"):
                path.write_text(path.read_text().replace("EXPECTED = {\n", f"EXPECTED = {{\n{text}"))
            elif path.exists():
                path.write_text(path.read_text() + text)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)

    def _filled(self, text: str) -> str:
        """The page's two placeholders, from the source that stands before them."""

        def fill(found: re.Match[str]) -> str:
            source = self.root / found[1]
            size = str(source.stat().st_size)
            return found[0].replace("<what sha256sum prints>", sha256(source)).replace("<its size>", size)

        return re.sub(r"source: ([\w./-]+)(.*?<its size>|[^\n]*)", fill, text, flags=re.S)

    def declare(self, place: Path, members: set[str]) -> None:
        """The inventory with these groups, its appliance below `place`, everything on free ports."""
        inventory: dict[str, Any] = yaml.safe_load(self.inventory.read_text())
        inventory["all"]["children"] = {name: {"hosts": {"localhost": None}} for name in members}
        host = inventory["all"]["hosts"]["localhost"]
        own = {"echo": {"port": free_ports(1)[0]}, "vllm": {"url": f"http://127.0.0.1:{NOBODYS}"}}
        host.setdefault("appliance_root", str(place))
        host.setdefault("appliance_services_override", on_free_ports() | own)
        host.setdefault("gateway_settings", {"VLLM_API_KEY": "of the other team"})
        self.override: dict[str, Any] = host["appliance_services_override"]
        self.inventory.write_text(yaml.safe_dump(inventory))

    def run(self, *argv: str) -> None:
        done = subprocess.run([sys.executable, *argv], cwd=self.root, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def play(self, playbook: str, *arguments: str) -> Run:
        book = self.root / "playbooks" / playbook
        return ansible_playbook(book, *arguments, inventory=self.inventory, timeout=900, checkout=self.root)

    def ask(self) -> tuple[int, Any]:
        token = (self.inventory.parent / "secrets/gateway_token").read_text().strip()
        port = self.override["gateway"]["port"]
        body = {"model": "echo", "messages": [{"role": "user", "content": "Say it."}]}
        url, headers = f"http://127.0.0.1:{port}/v1/chat/completions", {"Authorization": f"Bearer {token}"}
        answer = httpx.post(url, json=body, headers=headers, trust_env=False)
        return answer.status_code, answer.json()


@pytest.fixture
def copy(tmp_path: Path) -> Iterator[Copy]:
    copy = Copy(tmp_path)
    copy.follow()
    yield copy
    copy.play("remove.yml", "-e", "appliance_remove_confirmed=true").succeeded()


def test_a_backend_has_fewer_than_sixty_lines() -> None:
    counted = [name for name in BLOCKS if name.startswith(("playbooks/", "roles/"))]
    assert len(counted) == 5
    assert sum(len(BLOCKS[name].splitlines()) for name in counted) < COUNTED


def test_the_page_is_followed_to_the_letter(copy: Copy, tmp_path: Path) -> None:
    assert "echo" in yaml.safe_load(copy.inventory.read_text())["all"]["children"]
    assert yaml.safe_load((copy.root / "files/models/echo.yml").read_text())["bytes"] == len("words of the model")
    copy.declare(tmp_path / "root", {"gateway", "echo"})
    copy.run("docs/generate.py")
    copy.run("-m", "yamllint", "--strict", "files", "playbooks", "roles/echo")
    quick = "not playbook and not shipped and not nearest"
    checks = ("tests/roles/test_specs.py", "tests/roles/test_catalog.py", "tests/roles/test_preflight.py")
    copy.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", quick, *checks)

    first = copy.play("site.yml").succeeded()  # its smoke test asks echo too
    assert f"http://127.0.0.1:{NOBODYS} does not answer" in first.output
    status, answer = copy.ask()
    assert (status, answer["choices"][0]["message"]["content"]) == (200, "words of the model")
    assert copy.play("site.yml", "--check").succeeded().changed == 0

    copy.declare(tmp_path / "root", {"gateway"})
    copy.play("site.yml").succeeded()
    assert copy.ask()[0] == 404
    backends = yaml.safe_load((tmp_path / "root/var/lib/gateway/app/backends.yaml").read_text())["backends"]
    assert {name: backend["base_url"] for name, backend in backends.items()} == {
        "vllm@vllm": f"http://127.0.0.1:{NOBODYS}/v1"
    }
    home = tmp_path / "root/var/lib/echo"
    assert [path.name for path in home.iterdir()] == ["models"]
    declared = json.loads((tmp_path / "root/etc/appliance/services.json").read_text())["services"]
    assert list(declared) == ["gateway"]
    assert (home / "models/echo.txt").exists(), "models stay with the data"
