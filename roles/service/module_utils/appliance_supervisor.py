"""supervisord's XML-RPC interface over its unix socket."""

from __future__ import annotations

import http.client
from typing import Any
from xmlrpc.client import Fault, ServerProxy, Transport

from ansible.module_utils.appliance_service import UnixConnection

__all__ = ["BAD_NAME", "NOT_RUNNING", "SHUTDOWN_STATE", "Fault", "Supervisor"]

# supervisor.xmlrpc.Faults
SHUTDOWN_STATE = 6
BAD_NAME = 10
NOT_RUNNING = 70


class _Transport(Transport):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__()
        self._path = path
        self._timeout = timeout

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection = UnixConnection(self._path, self._timeout)
        self._connection = host, connection  # what `close` closes
        return connection

    def send_host(self, connection: Any, host: Any) -> None:
        """Nothing: http.client writes the header."""


class Supervisor:
    """Calls `supervisor.<method>`; a refused call is a `Fault`, no supervisord an `OSError`."""

    def __init__(self, path: str, timeout: float) -> None:
        self._proxy = ServerProxy("http://localhost", transport=_Transport(path, timeout))

    def call(self, method: str, *arguments: Any) -> Any:
        """The answer of one method."""
        return getattr(self._proxy.supervisor, method)(*arguments)

    def answers(self) -> bool:
        """Whether a supervisord listens, be it one that is shutting down."""
        try:
            self.call("getState")
        except Fault:
            return True
        except (OSError, http.client.HTTPException):
            return False
        return True
