"""What the tables and their implementations share."""

from tests.support.gateways import backend, refused, seen, served
from tests.support.studio import studio, whole_studio
from tests.support.wire import server

__all__ = ["backend", "refused", "seen", "served", "server", "studio", "whole_studio"]
