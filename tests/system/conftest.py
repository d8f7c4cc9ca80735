"""What tests of a running gateway share."""

from tests.support.chat_script import script
from tests.support.gateways import backend, refused, seen, served
from tests.support.scripted import frozen, no_collector, pytest_pycollect_makeitem, pytest_pyfunc_call, run
from tests.support.wire import server

__all__ = [
    "backend",
    "frozen",
    "no_collector",
    "pytest_pycollect_makeitem",
    "pytest_pyfunc_call",
    "refused",
    "run",
    "script",
    "seen",
    "served",
    "server",
]
