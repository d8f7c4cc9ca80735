"""The hosts that Molecule's scenario made: its server through testinfra, its clients, its networks."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import testinfra

from tests.support.podman_hosts import Host, Network
from tests.support.remote_client import Caller

EPHEMERAL = os.environ.get("MOLECULE_EPHEMERAL_DIRECTORY")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if EPHEMERAL is None and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="these tests need a provisioned host; type: molecule test"))


@pytest.fixture(scope="session")
def named() -> Callable[[str], str]:
    """The name in podman of what the scenario calls so."""
    suffix = (Path(str(EPHEMERAL)) / "suffix").read_text()
    return lambda name: f"{name}-{suffix}"


@pytest.fixture(scope="session")
def host(named: Callable[[str], str]) -> Any:
    """The provisioned server, past its firewall."""
    return testinfra.get_host(f"podman://{named('box')}")


@pytest.fixture(scope="session")
def inventory() -> Path:
    """The directory of the scenario's inventory."""
    return Path(str(EPHEMERAL)) / "inventory"


@pytest.fixture(scope="session")
def token(inventory: Path) -> str:
    return (inventory / "secrets/gateway_token").read_text().strip()


@pytest.fixture(scope="session")
def inside(named: Callable[[str], str], token: str) -> Caller:
    """A client in the range that may call."""
    inner = Network(named("inner"))
    return Caller(Host(named("inside")), Host(named("box")).address(inner), token)


@pytest.fixture(scope="session")
def outside(named: Callable[[str], str], token: str) -> Caller:
    """A client on a network that was not declared, with the right token."""
    outer = Network(named("outer"))
    return Caller(Host(named("outside")), Host(named("box")).address(outer), token)
