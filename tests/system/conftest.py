"""What tests of a running gateway share."""

from tests.support.gateways import backend, refused, seen, served
from tests.support.scripted import frozen, no_collector, run

__all__ = ["backend", "frozen", "no_collector", "refused", "run", "seen", "served"]
