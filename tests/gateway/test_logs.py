"""The process log: JSON lines with the request's id, and never in the way of the requests."""

from __future__ import annotations

import json
import subprocess
import sys

CHILD = """
import logging, sys
from gateway.observe import logs
logs.configure("info")
log = logging.getLogger("test")
logs.request_id.set("req-1")
log.info("hello %s", "there")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("broken")
for number in range({lines}):
    log.info("x" * 500)
print("done", flush=True)
"""


def test_lines_say_whose_request_they_are_about_and_all_come_out() -> None:
    done = subprocess.run([sys.executable, "-c", CHILD.format(lines=0)], capture_output=True, text=True, check=True)
    first, second = map(json.loads, done.stderr.splitlines())
    assert (first["message"], first["level"], first["request_id"]) == ("hello there", "info", "req-1")
    assert second["message"] == "broken"
    assert "ZeroDivisionError" in second["traceback"]


def test_a_pipe_that_nobody_reads_stops_nothing() -> None:
    command = [sys.executable, "-c", CHILD.format(lines=20_000)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
        assert process.wait(30) == 0
