"""The longest modules begin first, so that the processes of a parallel run end at about the same time."""

import pytest

LONGEST = ("test_site", "test_service_contract", "test_firewall_hosts", "test_firewall_moves", "test_products")


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks at them
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))
