"""The figures of a run and the table that is printed of them."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

NEVER = -1.0  # stands for a leaving that the upstream did not see while it was waited for

# key, what it says, how a figure is written, what the gateway must reach
ROWS = (
    ("requests", "requests per CPU-second, non-streaming chat, 16 clients", "{:,.0f}", "15,000"),
    ("share", "  as a share of the bare pass-through", "{:.0f} %", "75 %"),
    ("latency", "added median latency, 1 client, ms", "{:.3f}", "0.2"),
    ("streams", "CPU per stream of 33 events paced 10 ms, 64 clients, ms", "{:.2f}", "1.3"),
    ("events lost", "256 streams paced 20 ms at once: events not there 30 s after the last", "{:,.0f}", "0"),
    ("events late", "  worst lateness of an event, in paces of 20 ms", "{:.2f}", "10"),
    ("prompt delay", "worst delay of 64 streams' events beside 900 kB prompts, ms", "{:.1f}", "50"),
    ("leaving queued", "upstream sees a leaving, ms: waiting for a connection", "{:.1f}", "25"),
    ("leaving before first token", "  before the first token", "{:.1f}", "25"),
    ("leaving mid-stream", "  mid-stream", "{:.1f}", "25"),
    ("leaving non-streaming", "  non-streaming", "{:.1f}", "25"),
    ("memory idle", "resident memory, MB: idle", "{:.0f}", "75"),
    ("memory after", "  after the requests below, 2 % aborted streams", "{:.0f}", "75, flat"),
    ("memory requests", "  requests sent for it", "{:,.0f}", "100,000"),
    ("start", "start to first 200, s", "{:.2f}", "0.4"),
)
WORST = ("events lost", "events late", "prompt delay")


FORMS = {key: form for key, _, form, _ in ROWS}


class Results:
    """Every single figure, by row and column. Each is printed and written to `path` as soon as it is there."""

    def __init__(self, path: Path, machine: dict[str, Any]) -> None:
        self.figures: dict[str, dict[str, list[float]]] = {}
        self.machine = machine
        self._path = path

    def add(self, row: str, column: str, value: float) -> None:
        self.figures.setdefault(row, {}).setdefault(column, []).append(value)
        shown = "not within 30 s" if value == NEVER else FORMS[row].format(value)
        print(f"  {row}, {column}: {shown}", file=sys.stderr, flush=True)
        self.save()

    def save(self) -> None:
        """Writes what there is; an earlier file is replaced whole."""
        report = {"machine": self.machine, "figures": self.figures}
        temporary = self._path.with_suffix(".tmp")
        temporary.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
        temporary.replace(self._path)

    def cell(self, row: str, column: str, form: str) -> str:
        """The median; for leavings with the worst one behind it; for what is a worst already, the worst of them."""
        values = self.figures.get(row, {}).get(column)
        if not values:
            return ""
        if row in WORST:
            return "too slow to tell" if NEVER in values else form.format(max(values))
        if NEVER in values:
            seen = [value for value in values if value != NEVER]
            return f"{form.format(statistics.median(seen))}, then not within 30 s" if seen else "not within 30 s"
        middle = form.format(statistics.median(values))
        return f"{middle} (worst {form.format(max(values))})" if row.startswith("leaving") else middle

    def table(self, columns: Sequence[str]) -> str:
        head = ["", "must reach", *columns]
        lines = [head]
        for key, text, form, goal in ROWS:
            if key in self.figures:
                lines.append([text, goal, *(self.cell(key, column, form) for column in columns)])
        widths = [max(len(line[index]) for line in lines) for index in range(len(head))]
        rows = [" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        rows.insert(1, "-|-".join("-" * width for width in widths))
        facts = [f"{name}: {value}" for name, value in self.machine.items()]
        return "\n".join(["", *rows, "", "median of the rounds, of worst figures the worst", *facts])
