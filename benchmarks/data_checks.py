"""How often a drift check of data.checks is wrong, and what it finds: tables of 100 columns of four kinds.

One table is split in two at random, so that there is no drift: a run in which any column is flagged is wrong, and may
happen in 5 % of the runs. Then one column of the second table is scaled.

    python -m benchmarks.data_checks --runs 1000 --out benchmarks/results/data_checks.json
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from mlflowkit.stages.base import DriftCheck
from mlflowkit.stages.validation.version_checks import check_drift
from mlflowkit.stages.validation.version_record import VersionRecord, write_version

COLUMNS = 100
CASES = ((60, 0.02), (400, 0.02), (400, 0.1), (2000, 0.01), (2000, 0.1))
"""Rows of each table, and the distance that is no harm: also far below what chance alone makes."""


def table(rows: int, rng: np.random.Generator) -> pa.Table:
    """Skewed, tied, sparse and categorical columns."""
    columns: dict[str, np.ndarray] = {}
    for at in range(COLUMNS):
        kind = at % 4
        values = (
            rng.lognormal(size=rows)
            if kind == 0
            else rng.poisson(0.7, rows).astype(float)
            if kind == 1
            else np.where(rng.random(rows) < 0.1, np.nan, rng.normal(size=rows))
            if kind == 2
            else rng.choice(["a", "b", "c", "rare"], rows, p=[0.6, 0.3, 0.09, 0.01])
        )
        columns[f"c{at}"] = values
    return pa.table({name: pa.array(values, from_pandas=True) for name, values in columns.items()})


def drifted_columns(rows: int, largest: float, runs: int, seed: int, scale: float = 1.0) -> Iterator[list[str]]:
    """The columns that each run flags, of two halves of one table; the first column of the second times ``scale``."""
    rng = np.random.default_rng(seed)
    check = DriftCheck(kind="drift", max=largest)
    with tempfile.TemporaryDirectory() as name:
        previous = VersionRecord("1" * 64, rows, Path(name) / "sample.parquet")
        for _ in range(runs):
            both_halves = table(2 * rows, rng)
            order = rng.permutation(2 * rows)
            write_version(Path(name), previous, both_halves.take(order[:rows]))
            after = both_halves.take(order[rows:])
            after = after.set_column(0, "c0", pa.array(np.asarray(after.column("c0")) * scale))
            results = check_drift(check, after, "2" * 64, previous)
            yield [result.column for result in results if not result.passed]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results = []
    for rows, largest in CASES:
        flagged = sum(bool(columns) for columns in drifted_columns(rows, largest, options.runs, seed=3)) / options.runs
        runs = max(options.runs // 10, 10)
        detected = sum("c0" in columns for columns in drifted_columns(rows, largest, runs, seed=4, scale=2.0)) / runs
        print(f"{rows:5} rows, max {largest:g}: {flagged:.1%} of runs flagged without drift; "
              f"one column of 100 doubled: found in {detected:.1%}", flush=True)  # fmt: skip
        results.append({"rows": rows, "max": largest, "flagged_without_drift": flagged, "detected": detected})
    if options.out is not None:
        options.out.write_text(
            json.dumps({"runs": options.runs, "columns": COLUMNS, "results": results}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
