"""What tests of the package's parts share."""

from tests.support.scripted import run

__all__ = ["run"]
