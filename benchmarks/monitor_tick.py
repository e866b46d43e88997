"""What a tick of the monitor costs in a wide service: CPU seconds and memory of the process, with 500 columns and 50
segments, each window with rows in all of them. Bars: a tenth of a window of 60 s, 400 MB.

    python -m benchmarks.monitor_tick
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.process import arguments, report
from mlflowkit.judging.shift.column_cells import Cells
from mlflowkit.judging.shift.counts import ProfileCounts, WindowCounts
from mlflowkit.judging.shift.reference import ColumnReference, Reference
from mlflowkit.monitoring.monitor_settings import MonitorSection
from tests.support.monitor_world import CELLS, MonitorWorld

ROWS = 400
"""Rows of a segment in a window."""
LENGTH = 60.0
BAR_SECONDS, BAR_MEGABYTES = LENGTH / 10, 400.0


def wide_reference(columns: int, segments: int) -> Reference:
    numbers = Cells("number", edges=tuple(float(edge) for edge in range(CELLS + 1)))
    even = (0, *(500,) * CELLS, 0, 0)
    names = [f"c{index}" for index in range(columns)]
    parts = {f"s=v{index}": dict.fromkeys(names, even) for index in range(segments)}
    return Reference({name: ColumnReference(numbers, even, importance=1 / columns) for name in names}, parts)


def window_of(reference: Reference, start: float, random: np.random.Generator) -> WindowCounts:
    def profile(rows: int) -> ProfileCounts:
        drawn = random.multinomial(rows, [1 / CELLS] * CELLS, size=len(reference.columns)).tolist()
        columns = {name: (0, *counts, 0, 0) for name, counts in zip(reference.columns, drawn, strict=True)}
        return ProfileCounts(rows, rows, rows, columns)

    total = ROWS * max(len(reference.segments), 1)
    segments = {segment: profile(ROWS) for segment in reference.segments}
    return WindowCounts("v1", start, LENGTH, profile(total), segments, total)


def measure(columns: int, segments: int, windows: int, folder: Path) -> dict[str, Any]:
    reference, random = wide_reference(columns, segments), np.random.default_rng(7)
    world = MonitorWorld(folder, MonitorSection(window="60s", grace="10s", segments=["s"]), model_reference=reference)
    seconds = []
    for _ in range(windows):
        world.panes = [window_of(reference, world.now, random)]
        begin = time.process_time()
        world.pass_window(data=False)
        seconds.append(time.process_time() - begin)
    size = sum(path.stat().st_size for path in world.files.folder.rglob("*.json"))
    return {
        "columns": columns,
        "segments": segments,
        "windows": windows,
        "CPU s a tick, median": round(float(np.median(seconds)), 2),
        "CPU s a tick, worst": round(max(seconds), 2),
        "peak memory, MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "records, MB": round(size / 1e6, 1),
    }


def main() -> int:
    parser = arguments(__doc__ or "", rounds=1)
    parser.add_argument("--quick", action="store_true", help="three windows of 100 columns and 10 segments")
    options = parser.parse_args()
    columns, segments, windows = (100, 10, 3) if options.quick else (500, 50, 16)
    with tempfile.TemporaryDirectory() as folder:
        row = measure(columns, segments, windows, Path(folder))
    report("monitor_tick", [row], options.out)
    return 0 if row["CPU s a tick, median"] <= BAR_SECONDS and row["peak memory, MB"] <= BAR_MEGABYTES else 1


if __name__ == "__main__":
    sys.exit(main())
