"""Runs of a pipeline over a lakeFS branch that others commit to meanwhile: how many read another commit than they name.

A run plans, fetches and splits ten objects of `main`. Before each of its requests to the server, by chance (a seeded
half of them), a commit replaces all objects. The rows of the three parts, in the order of the source, are then compared
with the commit that the run's lineage names. Bar: 0 runs of 1,000 differ. The server is the strict fake of the tests,
over HTTP.

    python -m benchmarks.interleavings --runs 1000
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from benchmarks.process import machine
from mlflowkit.pipeline.run import execute, raise_for
from mlflowkit.recipe.check import load
from mlflowkit.stages.base import PARTS
from mlflowkit.values import RunRecord
from mlflowkit.wiring import Wiring
from tests.support.lakefs_fake import KEY, SECRET, Asked, FakeLakefs, Switch

OBJECTS, ROWS = 10, 12
RECIPE = """name: loans
task: classification
connections:
  lake: {{kind: lakefs, url: {url}, access_key: {{env: LAKE_KEY}}, secret: {{env: LAKE_SECRET}}}}
data:
  source: {{kind: lakefs, connection: lake, repository: lending, ref: main, path: loans/, format: parquet}}
  target: bad
  split: {{kind: random}}
model: {{kind: sklearn, module: "sklearn.linear_model:LogisticRegression"}}
"""


class Lake:
    """A branch whose commits are numbered: each row of a commit has its number."""

    def __init__(self) -> None:
        self.server = FakeLakefs()
        self.tables: dict[str, pa.Table] = {}
        """The rows of each commit, in the order of its objects."""
        self.commits = 0

    def commit(self) -> None:
        """Replace all objects."""
        self.commits += 1
        tables = {f"loans/{number}.parquet": _rows(self.commits, number) for number in range(OBJECTS)}
        files = {path: _parquet(table) for path, table in tables.items()}
        commit = self.server.repository().replace_all("main", files)
        self.tables[commit] = pa.concat_tables(tables.values())


def _rows(commit: int, number: int) -> pa.Table:
    return pa.table(
        {"commit": [float(commit)] * ROWS, "object": [float(number)] * ROWS, "bad": [row % 2 for row in range(ROWS)]}
    )


def _parquet(table: pa.Table) -> bytes:
    stream = io.BytesIO()
    parquet.write_table(table, stream)
    return stream.getvalue()


def rows_read(wiring: Wiring, record: RunRecord) -> pa.Table:
    """The rows of the parts of a run, in the order of the source."""
    folder = wiring.objects.path(record.steps[0].digest)
    parts = pa.concat_tables([parquet.read_table(folder / f"{part}.parquet") for part in PARTS])
    return parts.take(np.argsort(np.argsort(np.load(folder / "split.npy"), kind="stable")))


def interleave(runs: int, seed: int, folder: Path) -> Mapping[str, Any]:
    """Counts of runs, commits, and runs that differ from the commit that they name."""
    os.environ |= {"LAKE_KEY": KEY, "LAKE_SECRET": SECRET}
    lake, chance = Lake(), random.Random(seed)
    lake.commit()
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(url=lake.server.url))
    wiring, loaded = Wiring(folder / ".mlkit"), load(path, [])

    def before_request(number: int, asked: Asked) -> Switch | None:
        return Switch(act=lake.commit) if chance.random() < 0.5 else None

    lake.server.switch = before_request
    differ, moved, named, start = 0, 0, set(), time.perf_counter()
    try:
        for _ in range(runs):
            begun = lake.commits
            record = execute(loaded, folder / ".mlkit", wiring, lambda event: None, until="data")
            raise_for(record, [])
            moved += lake.commits > begun
            named.add(record.lineage.data_commit)
            differ += not rows_read(wiring, record).equals(lake.tables[record.lineage.data_commit])
    finally:
        lake.server.close()
    figures = {"runs": runs, "commits": lake.commits, "runs during which the branch moved": moved}
    figures |= {"commits named": len(named), "runs that differ from their commit": differ}
    return figures | {
        "reads by a name that moves": len(lake.server.moving_reads()),
        "seconds": time.perf_counter() - start,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mlkit-interleavings-") as name:
        figures = interleave(options.runs, options.seed, Path(name))
    print(json.dumps({"benchmark": "interleavings", "machine": machine(), **figures}, indent=1))
    if options.out is not None:
        options.out.write_text(
            json.dumps({"benchmark": "interleavings", "machine": machine(), **figures}, indent=1) + "\n"
        )
    return 1 if figures["runs that differ from their commit"] or figures["reads by a name that moves"] else 0


if __name__ == "__main__":
    sys.exit(main())
