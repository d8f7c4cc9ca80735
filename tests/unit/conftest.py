"""What tests of the package's parts share."""

from tests.support.in_memory import wires
from tests.support.scripted import pytest_pycollect_makeitem, pytest_pyfunc_call, run

__all__ = ["pytest_pycollect_makeitem", "pytest_pyfunc_call", "run", "wires"]
