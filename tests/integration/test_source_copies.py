"""Copies of one table in several stores are the same data: read anew, and trained on once."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

import pytest

from mlflowkit.pipeline.run import execute
from mlflowkit.recipe.check import load
from mlflowkit.wiring import Wiring

RECIPE = """name: cars
task: regression
connections:
  wh: {{kind: sql, url: "sqlite:///cars.db"}}
data:
  source: {source}
  target: price
  drop: [id]
  split: {{kind: random}}
model: {{kind: sklearn, module: "sklearn.linear_model:LinearRegression"}}
"""
SOURCES = {
    "csv": "{kind: csv, path: cars.csv, missing: []}",
    "sql": "{kind: sql, connection: wh, query: select * from cars, order_by: [id], watermark: select 1}",
    "delta": "{kind: delta, url: cars, order_by: [id]}",
}
Row = tuple[int, str | None, float | None, float]


def lay_out(folder: Path) -> None:
    """The same rows as CSV, and in another physical order as a table of SQLite and of Delta."""
    generator = random.Random(7)
    rows: list[Row] = [
        (
            number,
            generator.choice(["petrol", "diesel", None]),
            generator.choice([None, round(generator.uniform(0, 250_000), 1)]),
            round(generator.uniform(500, 30_000), 2),
        )
        for number in range(200)
    ]
    lines = [",".join("" if value is None else str(value) for value in row) for row in rows]
    (folder / "cars.csv").write_text("\n".join(["id,fuel,kilometres,price", *lines]) + "\n")
    stored = sorted(rows, key=lambda row: row[3])
    with sqlite3.connect(folder / "cars.db") as database:
        database.execute("create table cars (id integer, fuel text, kilometres real, price real)")
        database.executemany("insert into cars values (?, ?, ?, ?)", stored)
    database.close()
    deltalake = pytest.importorskip("deltalake", reason="pip install 'mlflowkit[delta]'")
    import pyarrow as pa

    names = ("id", "fuel", "kilometres", "price")
    for part in (stored[:120], stored[120:]):
        table = pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in part])
        deltalake.write_deltalake(str(folder / "cars"), table, mode="append")


def test_copies_of_a_table_are_the_same_input_of_the_later_steps(tmp_path: Path) -> None:
    """With one rule for texts: a CSV file's own rule of missing texts (NA, null, ...) is a part of what is served."""
    lay_out(tmp_path)
    versions, digests = set(), set()
    for source in SOURCES.values():
        recipe = tmp_path / "cars.yaml"
        recipe.write_text(RECIPE.format(source=source))
        state = tmp_path / ".mlkit"
        record = execute(load(recipe), state, Wiring(state), lambda event: None, until="data")
        assert record.steps[0].action == "run"
        versions.add(record.lineage.data_version)
        digests.add(record.steps[0].digest)
    assert len(versions) == len(digests) == 1
    assert "" not in versions | digests
