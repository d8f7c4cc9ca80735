"""InvokeAI's double behind the gateway; tests/heavy runs the same tests with the real one."""

from collections.abc import Iterator

import pytest

from tests.support.faces.invokeai import InvokeAI
from tests.support.invokeai_tests import *  # noqa: F403 - tests and fixtures, for pytest to find
from tests.support.upstream import running


@pytest.fixture(scope="module")
def invoke() -> Iterator[str]:
    """The server's URL; it has MODEL, first of those that a graph is known for."""
    with running(InvokeAI()) as double:
        yield f"http://127.0.0.1:{double.port}"
