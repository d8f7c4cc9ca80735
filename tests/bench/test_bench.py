"""The bench still runs, and what it sees of leaving clients and of events holds; no time is asserted."""

import json
import subprocess
import sys
from pathlib import Path

from tests.bench.results import NEVER

Figures = dict[str, dict[str, list[float]]]


def figures(part: str, place: Path) -> Figures:
    """What a quick run of one part found, by row and column."""
    command = [sys.executable, "-m", "tests.bench", "--quick", "--no-peer", "--only", part]
    done = subprocess.run(
        [*command, "--json", place / "bench.json"],
        cwd=Path(__file__).parents[2],
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
