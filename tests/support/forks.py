"""Gateways that start at once: each is forked from a process that has imported the gateway and done nothing else.

usage: python -m tests.support.forks FILE_DESCRIPTOR
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]


class Forked:
    """A process as `subprocess.Popen` has them; `line` is to the one that waits for it."""

    def __init__(self, line: socket.socket) -> None:
        self.returncode: int | None = None
        self._line = line
        self._told = line.makefile()
        self.pid = int(self._told.readline())

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._line], [], [], 0)[0]:
            self.returncode = int(self._told.readline())
            self._told.close()
            self._line.close()
        return self.returncode

    def wait(self, timeout: float) -> int:
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if not select.select([self._line], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise subprocess.TimeoutExpired(f"gateway, process {self.pid}", timeout)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it may end between the two
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(env: dict[str, str], stderr: IO[str]) -> Forked:
    """Runs `gateway serve` with just this environment; what it writes goes to `stderr`."""
    mine, its = socket.socketpair()
    with its:
        socket.send_fds(_nursery(), [json.dumps(env).encode()], [its.fileno(), stderr.fileno()])
    return Forked(mine)


@cache
def _nursery() -> socket.socket:
    """To the process that forks, which ends with this one."""
    mine, its = socket.socketpair(type=socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "tests.support.forks", str(its.fileno())]
    with its:
        process = subprocess.Popen(command, cwd=ROOT, pass_fds=[its.fileno()])

    @atexit.register
    def end() -> None:
        mine.close()
        process.wait()

    return mine


# The process that forks


def main() -> int:
    """Returns the exit code of the gateway, in its process, and 0 in that which forks, once nobody asks any more."""
    from gateway import cli, server

    assert server  # what the verb imports when it runs
    gc.collect()
    gc.freeze()
    asks = socket.socket(fileno=int(sys.argv[1]))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl+C is the test run's, which ends what it started
    while True:
        env, fds, _, _ = socket.recv_fds(asks, 1_000_000, 2)
        if not env:
            return 0
        line = socket.socket(fileno=fds[0])
        if os.fork():
            line.close()
            os.close(fds[1])
            continue
        asks.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if pid := os.fork():
            os.close(fds[1])
            line.sendall(b"%d\n" % pid)
            line.sendall(b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            os._exit(0)
        line.close()
        os.dup2(fds[1], 2)
        os.close(fds[1])
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.clear()
        os.environ.update(json.loads(env))
        return cli.main(["serve"])


if __name__ == "__main__":
    sys.exit(main())
