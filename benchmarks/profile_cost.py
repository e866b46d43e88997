"""What it costs the observer to count and to profile answered rows: CPU seconds a row of 10 columns (8 numbers, 2
texts) and its answer, by rows of a gathering; counting alone (bar: 1 microsecond a row), with 5 segments, with the
whylogs profile, and a pane with everything, written to the disk.

    python -m benchmarks.profile_cost
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.process import Spread, arguments, report, spread
from mlflowkit.adapters.whylogs import WhylogsProfiler
from mlflowkit.bundle import Signature, TensorSpec
from mlflowkit.judging.shift.column_cells import Cells
from mlflowkit.judging.shift.counts import WindowCounts
from mlflowkit.judging.shift.reference import ColumnReference, Reference
from mlflowkit.serving.observer.live_profile import _to_frame
from mlflowkit.serving.observer.pane_counts import count_rows, counting_plan
from mlflowkit.serving.observer.panes import Pane, PaneRange, write_pane

NUMBERS, TEXTS, CELLS = 8, 2, 20
BAR_MICROSECONDS = 1.0
SECONDS = 0.3
"""CPU time of a round, at least."""
SIGNATURE = Signature(
    task="classification",
    inputs=(TensorSpec(name="numeric", datatype="FP32", shape=(-1, NUMBERS), columns=("n0",)),),
    outputs=(),
    classes=("bad", "good"),
)


def rows_of(count: int, seed: int = 0) -> tuple[pa.Table, Reference]:
    """Rows of the log, and the reference that they are counted by."""
    rng = np.random.default_rng(seed)
    columns: dict[str, Any] = {}
    cells: dict[str, ColumnReference] = {}
    for index in range(NUMBERS):
        values = rng.normal(size=count).astype(np.float32)
        edges = np.unique(np.quantile(rng.normal(size=10_000), np.linspace(0, 1, CELLS + 1)).astype(np.float32))
        columns[f"input.n{index}"] = pa.array(values)
        cells[f"n{index}"] = ColumnReference(Cells("number", edges=tuple(map(float, edges))), (0,) * (len(edges) + 2))
    for index in range(TEXTS):
        names = tuple(f"value {number}" for number in range(30))
        columns[f"input.t{index}"] = pa.array(rng.choice(names, count), pa.string())
        cells[f"t{index}"] = ColumnReference(Cells("text", values=names), (1,) * (len(names) + 3))
    scores = rng.random(count).astype(np.float32)
    columns["label"] = pa.array(np.where(scores > 0.5, "good", "bad").astype(object), pa.string())
    columns["probability.bad"], columns["probability.good"] = pa.array(1 - scores), pa.array(scores)
    cells["output.label"] = ColumnReference(Cells("text", values=("bad", "good")), (1, 1, 0, 0, 0))
    edges = tuple(float(edge) for edge in np.linspace(0, 1, CELLS + 1).astype(np.float32))
    cells["output.score"] = ColumnReference(Cells("number", edges=edges), (0,) * (CELLS + 3))
    return pa.table(columns), Reference(cells)


def cost(work: Callable[[], object], rows: int, rounds: int) -> Spread:
    """CPU microseconds a row."""
    work()
    costs = []
    for _ in range(rounds):
        begin, times = time.process_time(), 0
        while time.process_time() - begin < SECONDS:
            work()
            times += 1
        costs.append((time.process_time() - begin) / times / rows * 1e6)
    return spread(costs, "µs")


def measure(count: int, rounds: int, folder: Path) -> dict[str, Any]:
    table, reference = rows_of(count)
    request = np.arange(count)
    plain, parts = (counting_plan(SIGNATURE, reference, segments) for segments in ((), ("t0",)))
    profiler = WhylogsProfiler()

    def pane() -> None:
        counted = count_rows(plain, table, request)
        counts = WindowCounts("v1", 0, 300, counted.total)
        write_pane(folder / "v1", Pane("s", counts, (PaneRange("w", 1, 1),), profile(), count), durable=False)

    def profile() -> bytes:
        return profiler.profile(_to_frame([table]))

    return {
        "rows": count,
        "counting": cost(lambda: count_rows(plain, table, request), count, rounds),
        "counting with 8 segments": cost(lambda: count_rows(parts, table, request), count, rounds),
        "whylogs profile": cost(profile, count, rounds),
        "pane written": cost(pane, count, rounds),
    }


def main() -> int:
    parser = arguments(__doc__ or "", rounds=9)
    parser.add_argument("--quick", action="store_true", help="two rounds of 2,000 and 20,000 rows")
    options = parser.parse_args()
    pa.set_cpu_count(1)
    with tempfile.TemporaryDirectory() as folder:
        sizes = (2_000, 20_000) if options.quick else (32, 500, 2_000, 20_000)
        rows = [measure(size, 2 if options.quick else options.rounds, Path(folder)) for size in sizes]
    report("profile_cost", rows, options.out)
    return 0 if rows[-1]["counting"].median <= BAR_MICROSECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
