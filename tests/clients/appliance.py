"""An appliance under test: one that is there already, or one that is provisioned here as `make up` does it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import yaml

from tests.support.ansible_run import ROOT, ansible_playbook
from tests.support.services import on_free_ports


@dataclass(frozen=True)
class Appliance:
    """Where a client finds it. `root` holds all of one that was provisioned here, None for one that was there."""

    url: str
    token: str
    root: Path | None = None

    def sdk(self, seconds: float = 60) -> openai.OpenAI:
        """OpenAI's SDK, unmodified, without its own retries so that a test sees every answer."""
        return openai.OpenAI(base_url=self.url, api_key=self.token, max_retries=0, timeout=seconds)

    def http(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.token}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False)


def existing() -> Appliance | None:
    """The appliance that APPLIANCE_URL and APPLIANCE_TOKEN_FILE name, the two lines that `make up` ends with."""
    url, token_file = os.environ.get("APPLIANCE_URL"), os.environ.get("APPLIANCE_TOKEN_FILE")
    if not url or not token_file:
        return None
    return Appliance(url.rstrip("/").removesuffix("/v1") + "/v1", Path(token_file).read_text().strip())


@contextmanager
def provisioned(place: Path) -> Iterator[Appliance]:
    """inventories/local with another directory and free ports, brought up by the real playbooks and down again."""
    inventory, port = _inventory(place)
    try:
        ansible_playbook(ROOT / "playbooks" / "site.yml", inventory=inventory, timeout=900).succeeded()
        token = (inventory.parent / "secrets" / "gateway_token").read_text().strip()
        yield Appliance(f"http://127.0.0.1:{port}/v1", token, place / "root")
    finally:
        ansible_playbook(ROOT / "playbooks" / "down.yml", inventory=inventory).succeeded()


def _inventory(place: Path) -> tuple[Path, int]:
    """A copy of inventories/local that shares no directory and no port with any other; the API's port."""
    directory = place / "inventory"
    shutil.copytree(ROOT / "inventories" / "local", directory, ignore=shutil.ignore_patterns("secrets"))
    path = directory / "hosts.yml"
    inventory: dict[str, Any] = yaml.safe_load(path.read_text())
    override = on_free_ports()
    inventory["all"]["hosts"]["localhost"] |= {
        "appliance_root": str(place / "root"),
        "appliance_services_override": override,
    }
    path.write_text(yaml.safe_dump(inventory))
    return path, override["gateway"]["port"]
