"""`mlkit validate` reads the header of a file: a column that is not there is named at its place in the recipe."""

from __future__ import annotations

import bz2
import gzip
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from mlflowkit.errors import Fault, RecipeError
from mlflowkit.recipe.check import load

HEADER = "id,age,town,joined,churned"
ROW = "1,41,Bonn,2024-01-31,no"
RECIPE = """\
name: churn
task: classification
data:
  source: {source}
  target: {target}
  drop: [{drop}]
  columns: {{{column}: categorical}}
  checks: [{{kind: nulls, column: {checked}}}]
  split: {{kind: time, column: {time}}}
model: {{kind: sklearn, module: "sklearn.linear_model:LogisticRegression"}}
"""
NAMES = {"target": "churned", "drop": "id", "column": "town", "checked": "age", "time": "joined"}


def write_csv(folder: Path) -> str:
    (folder / "rows.csv").write_text(f"{HEADER}\n{ROW}\n")
    return "{kind: csv, path: rows.csv}"


def write_semicolons(folder: Path) -> str:
    (folder / "rows.csv").write_text(f"\ufeff{HEADER}\r\n{ROW}\r\n".replace(",", ";"))
    return "{kind: csv, path: rows.csv, separator: ';'}"


def write_gzip(folder: Path) -> str:
    (folder / "rows.csv.gz").write_bytes(gzip.compress(f"{HEADER}\n{ROW}\n".encode()))
    return "{kind: csv, path: rows.csv.gz}"


def write_bzip2(folder: Path) -> str:
    (folder / "rows.csv.bz2").write_bytes(bz2.compress(f"{HEADER}\n{ROW}\n".encode()))
    return "{kind: csv, path: rows.csv.bz2}"


def write_parquet(folder: Path) -> str:
    columns = {name: [value] for name, value in zip(HEADER.split(","), ROW.split(","), strict=True)}
    parquet.write_table(pa.table(columns), folder / "rows.parquet")
    return "{kind: parquet, path: '*.parquet'}"


SOURCES = [write_csv, write_semicolons, write_gzip, write_bzip2, write_parquet]


def faults(folder: Path, source: str, **changed: str) -> list[Fault]:
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(source=source, **{**NAMES, **changed}))
    try:
        load(path)
    except RecipeError as error:
        return list(error.faults)
    return []


@pytest.mark.parametrize("write", SOURCES)
def test_columns_of_the_file_are_no_fault(write: Callable[[Path], str], tmp_path: Path) -> None:
    assert faults(tmp_path, write(tmp_path)) == []


@pytest.mark.parametrize("write", SOURCES)
@pytest.mark.parametrize(
    ("name", "key", "line"),
    [
        ("target", "data.target", 5),
        ("drop", "data.drop.0", 6),
        ("column", "data.columns.churnd", 7),
        ("checked", "data.checks.0.column", 8),
        ("time", "data.split.column", 9),
    ],
)
def test_a_column_that_is_not_there_is_a_fault_at_its_place(
    write: Callable[[Path], str], name: str, key: str, line: int, tmp_path: Path
) -> None:
    fault = next(fault for fault in faults(tmp_path, write(tmp_path), **{name: "churnd"}) if fault.key == key)
    assert fault.line == line
    assert "no column 'churnd'" in fault.message
    assert fault.hint == "did you mean 'churned'?"


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"\0" * 2_000_000, b'"never closed'])
def test_a_header_that_cannot_be_read_is_left_to_the_data_stage(content: bytes, tmp_path: Path) -> None:
    source = write_csv(tmp_path)
    (tmp_path / "rows.csv").write_bytes(content)
    assert all("Traceback" not in fault.message for fault in faults(tmp_path, source))
