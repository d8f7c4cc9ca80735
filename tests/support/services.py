"""What the tests expect of each service of the catalog: a row each, written by hand, which all layers read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from tests.support.ansible_run import ROOT
from tests.support.ports import free_ports

CATALOG: dict[str, Any] = yaml.safe_load((ROOT / "playbooks/group_vars/all/services.yml").read_text())[
    "appliance_catalog"
]


@dataclass(frozen=True)
class Expected:
    """Ports by listener; directories below its home that it may write; its unit's exposure, as systemd-analyze says."""

    ports: dict[str, int]
    exposure: float
    writes: frozenset[str] = frozenset()


EXPECTED = {
    "gateway": Expected({"api": 8800, "observability": 8801}, 1.2, frozenset({"data", "tools"})),
    "gateway_embed": Expected({"api": 8802}, 1.3),
    "llamacpp": Expected({"api": 8088}, 1.3),
}


def listeners(entry: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Those of an entry that have a port, by name."""
    yield from {"api": entry, **entry.get("listeners", {})}.items() if "port" in entry else ()


def on_free_ports() -> dict[str, Any]:
    """An `appliance_services_override` that gives every listener of the catalog a port that is free here."""
    override: dict[str, Any] = {}
    for service, entry in CATALOG.items():
        for name, _ in listeners(entry):
            (port,) = free_ports(1)
            of_service = override.setdefault(service, {})
            place = of_service if name == "api" else of_service.setdefault("listeners", {}).setdefault(name, {})
            place["port"] = port
    return override
