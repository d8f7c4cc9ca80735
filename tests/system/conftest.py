"""What tests of a running gateway share."""

from tests.support.gateways import backend, refused, seen, served
from tests.support.scripted import run

__all__ = ["backend", "refused", "run", "seen", "served"]
