"""What the tables and their implementations share."""

from tests.support.gateways import backend, refused, seen, served

__all__ = ["backend", "refused", "seen", "served"]
