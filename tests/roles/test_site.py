"""The life of a rootless appliance by the real playbooks: check, install, again, reload, a service less, remove."""

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.ansible_run import ROOT, Run, ansible_playbook
from tests.support.services import on_free_ports
from tests.support.waiting import until


class Site:
    """A copy of inventories/local with a directory and ports of its own."""

    def __init__(self, place: Path) -> None:
        self.root = place / "root"
        self.inventory = place / "inventory" / "hosts.yml"
        self.inventory.parent.mkdir()
        self.token = self.inventory.parent / "secrets" / "gateway_token"
        self.declaration: dict[str, Any] = yaml.safe_load((ROOT / "inventories/local/hosts.yml").read_text())
        self.declaration["all"]["hosts"]["localhost"] |= {
            "appliance_root": str(self.root),
            "appliance_services_override": (override := on_free_ports()),
        }
        self.api, self.llamacpp = (override[service]["port"] for service in ("gateway", "llamacpp"))

    def play(self, playbook: str, *arguments: str) -> Run:
        self.inventory.write_text(yaml.safe_dump(self.declaration))
        return ansible_playbook(ROOT / "playbooks" / playbook, *arguments, inventory=self.inventory, timeout=900)

    def write_aliases(self, more: dict[str, str]) -> None:
        shipped = json.loads((ROOT / "files/model_aliases.json").read_text())["aliases"]
        file = self.inventory.parent / "files/model_aliases.json"
        file.parent.mkdir()
        file.write_text(json.dumps({"aliases": shipped | more}))

    def models(self) -> set[str]:
        """What the gateway offers."""
        headers = {"Authorization": f"Bearer {self.token.read_text().strip()}"}
        answer = httpx.get(f"http://127.0.0.1:{self.api}/v1/models", headers=headers, trust_env=False)
        return {model["id"] for model in answer.json()["data"]}

    def gateway_pid(self) -> int:
        control = self.root / "var/lib/supervisor/env/bin/supervisorctl"
        ask: list[str | Path] = [control, "-c", self.root / "etc/appliance/supervisord.conf", "pid", "gateway"]
        return int(subprocess.run(ask, capture_output=True, text=True, check=True).stdout)

    def declared(self) -> set[str]:
        return set(json.loads((self.root / "etc/appliance/services.json").read_text())["services"])


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    if site.root.exists():
        site.play("remove.yml", "-e", "appliance_remove_confirmed=true").succeeded()


def test_the_life_of_an_appliance(site: Site) -> None:
    dry = site.play("site.yml", "--check").succeeded()
    assert dry.changed > 0
    assert not site.root.exists()
    assert not site.token.exists()

    first = site.play("site.yml", "--diff").succeeded()
    token = site.token.read_text().strip()
    assert token not in first.output
    assert site.token.stat().st_mode & 0o777 == 0o600
    declared = site.declared()
    assert declared == set(site.declaration["all"]["children"]) >= {"gateway", "llamacpp"}
    assert listens(site.llamacpp)

    assert site.play("site.yml").succeeded().changed == 0
    assert site.play("site.yml", "--check").succeeded().changed == 0

    before = site.gateway_pid()
    assert "another" not in site.models()
    site.write_aliases({"another": "llamacpp:smollm2-135m-instruct"})
    site.play("site.yml", "--tags", "install-gateway").succeeded()
    until(lambda: "another" in site.models())
    assert site.gateway_pid() == before, "aliases are reloaded"

    del site.declaration["all"]["children"]["llamacpp"]
    site.play("site.yml", "--tags", "install-gateway_embed").succeeded()
    assert listens(site.llamacpp), "installing one service removes none"
    assert "llamacpp" in site.declared(), "what is yet to be removed stays declared"
    site.play("site.yml", "--tags", "setup-gateway").succeeded()
    assert not listens(site.llamacpp)
    assert site.declared() == declared - {"llamacpp"}
    assert "llamacpp" not in (site.root / "var/lib/gateway/app/backends.yaml").read_text()

    site.play("down.yml").succeeded()
    assert not listens(site.api)
    status = site.play("status.yml").succeeded()
    assert f"gateway api on 127.0.0.1:{site.api}: down" in status.output

    refused = site.play("remove.yml")
    assert refused.status == 2
    assert "type -e appliance_remove_confirmed=true" in refused.output
    assert site.root.exists()
    site.play("remove.yml", "-e", "appliance_remove_confirmed=true").succeeded()
    assert not site.root.exists()
    assert not site.token.exists()
