"""The process log: JSON lines with the request's id, and never in the way of the requests."""

from __future__ import annotations

import errno
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from gateway.app import load_settings
from gateway.config.core import ListenerSettings
from gateway.observe import logs
from gateway.observe.settings import ObserveSettings
from gateway.server import addresses

from tests.support.gateways import gateway, write_files
from tests.support.upstream import Upstream

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


def test_a_line_that_a_full_disk_tore_is_counted_and_ends_before_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    out, room = bytearray(), 0

    def write(_: int, data: bytes) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = data[:room]
        out.extend(taken)
        room -= len(taken)
        return len(taken)

    monkeypatch.setattr("os.write", write)
    before, writer = logs.Dropped.lines, logs._Writer(None)  # type: ignore[arg-type]  # its queue is not asked
    for room in (100, 3, 0, 1, 100, 100):  # noqa: B007  # `write` reads it
        writer.handle(logging.makeLogRecord({"msg": "line"}))
    assert bytes(out) == b"line\nlin\nline\nline\n"
    assert logs.Dropped.lines - before == 3


def test_a_file_name_that_is_not_utf_8_can_be_logged() -> None:
    line = logs.JsonFormatter().format(logging.makeLogRecord({"msg": "/x/\udcff"}))
    assert json.loads(line)["message"] == "/x/\udcff"


def test_it_says_where_it_listens_and_that_it_stops(tmp_path: Path, backend: Upstream) -> None:
    write_files(tmp_path, backend.url)
    with gateway(tmp_path) as running:
        pass
    said = [json.loads(line)["message"] for line in running.said.splitlines()]
    assert said == [
        "backend test@here: ready",
        f"the API is on http://127.0.0.1:{running.port}, health and metrics on http://127.0.0.1:{running.observe_port}",
        "stopping: a second signal closes running answers",
    ]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"gateway_host": "::", "observability_enabled": False}, "the API is on http://[::]:8800"),
        (
            {"gateway_tls_cert_path": Path("c"), "gateway_port": 443},
            "the API is on https://127.0.0.1:443, health and metrics on http://127.0.0.1:8801",
        ),
    ],
)
def test_addresses_can_be_pasted(settings: dict[str, Any], said: str) -> None:
    read = load_settings(**settings)
    assert addresses(read[ListenerSettings], read[ObserveSettings]) == said
