"""The bench still runs, and what it sees of leaving clients holds; no time is asserted."""

import json
import subprocess
import sys
from pathlib import Path

from tests.bench.results import NEVER


def test_the_upstream_sees_every_leaving(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.bench", "--quick", "--no-peer", "--only", "leaving"]
    done = subprocess.run(
        [*command, "--json", tmp_path / "bench.json"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "load average" in done.stdout
    figures = json.loads((tmp_path / "bench.json").read_text())["figures"]
    assert len(figures) == 4
    for phase, columns in figures.items():
        assert NEVER not in columns["gateway"], phase
