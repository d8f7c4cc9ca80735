"""OptiLLM's double behind the gateway; tests/heavy runs the same tests with the real one."""

from collections.abc import Iterator

import pytest

from tests.clients.optillm_tests import *  # noqa: F403 - tests and fixtures, for pytest to find
from tests.support.faces.optillm import optillm


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The API's URL."""
    with optillm() as url:
        yield url
