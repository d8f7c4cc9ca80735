"""The bench still runs, and what it sees of leaving clients and of events holds; no time is asserted."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.processes import tree
from tests.bench.results import NEVER
from tests.support.waiting import PATIENCE_SEC, until

ROOT = Path(__file__).parents[2]
Figures = dict[str, dict[str, list[float]]]


def figures(part: str, place: Path) -> Figures:
    """What a quick run of one part found, by row and column."""
    command = [sys.executable, "-m", "tests.bench", "--quick", "--no-peer", "--only", part]
    done = subprocess.run(
        [*command, "--json", place / "bench.json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "load average" in done.stdout
    found: Figures = json.loads((place / "bench.json").read_text())["figures"]
    return found


def test_the_upstream_sees_every_leaving(tmp_path: Path) -> None:
    found = figures("leaving", tmp_path)
    assert len(found) == 4
    for phase, columns in found.items():
        assert NEVER not in columns["gateway"], phase


def test_no_event_of_256_streams_is_lost(tmp_path: Path) -> None:
    found = figures("events", tmp_path)
    assert found["events lost"]["gateway"] == [0]
    assert NEVER not in found["prompt delay"]["gateway"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_end_before_the_end_keeps_the_figures_and_leaves_no_process(tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "bench.json"
    command = [sys.executable, "-m", "tests.bench", "--quick", "--no-peer", "--only", "requests", "--only", "streams"]
    with subprocess.Popen([*command, "--json", path], cwd=ROOT, stdout=subprocess.PIPE, text=True) as bench:
        until(path.exists, "no figure")
        children = tree(bench.pid)[1:]
        assert children
        bench.send_signal(number)
        table, _ = bench.communicate(timeout=PATIENCE_SEC)
    assert json.loads(path.read_text())["figures"]["requests"]["gateway"]
    assert bench.returncode == (1 if number == signal.SIGTERM else -number)
    assert ("requests per CPU-second" in table) == (number == signal.SIGTERM)
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children), "a process is left")
