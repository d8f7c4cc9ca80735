"""The longest modules begin first, so that the processes of a parallel run end at about the same time."""

import pytest

LONGEST = ("service_contract", "firewall_hosts", "site", "add_a_backend", "firewall_moves", "release", "products")
ORDER = {f"test_{name}": place for place, name in enumerate(LONGEST)}


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks at them
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: ORDER.get(item.path.stem, len(ORDER)))
