"""Tables that are read column by column from Parquet give what the whole table in memory gives, to the byte."""

from __future__ import annotations

import datetime
import itertools
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflowkit.adapters import arrow
from mlflowkit.adapters.arrow import ArrowTables, parquet_files, stored_table
from mlflowkit.errors import DataError
from mlflowkit.judging.file_checks.number_texts import as_numbers
from mlflowkit.ports import StageContext
from mlflowkit.stages import data, validate
from mlflowkit.stages.base import read_table_info
from mlflowkit.stages.validation import part_columns
from mlflowkit.stages.validation.column_checks import check_columns, compared_as_numbers
from mlflowkit.stages.validation.part_columns import FeatureColumns, PartColumns
from mlflowkit.values import Event, Lineage
from mlflowkit.wiring import Wiring

SPLITS: list[dict[str, Any]] = [
    {"kind": "random"},
    {"kind": "stratified"},
    {"kind": "group", "column": "group"},
    {"kind": "time", "column": "when"},
]
CHANGES: list[dict[str, Any]] = [
    {},
    {"drop": []},
    {"target": "price", "task": "regression"},
    {"missing_target": "error"},
    {"drop": ["none_such"]},
    {"columns": {"group": "group", "when": "time", "born": "ignore", "tag": "numeric"}},
]
"""What is added to the recipe; the last three are refused."""
DECLARED = {"group": "group", "when": "time", "id": "ignore", "code": "categorical", "text_number": "numeric"}
CHECKS: list[dict[str, Any]] = [
    {"kind": "schema"},
    {"kind": "schema", "columns": {"x": "int", "tag": "string", "none_such": "float"}, "extra": "forbid"},
    {"kind": "schema", "columns": {"whole": "float", "code": "int", "x": "string"}, "extra": "allow"},
    {"kind": "range", "column": "x", "min": -0.5, "max": 9},
    {"kind": "range", "column": "code", "min": 2},
    {"kind": "range", "column": "tag", "min": 2},
    {"kind": "range", "column": "none_such", "min": 2},
    {"kind": "nulls", "column": "whole", "max_share": 0.05},
    {"kind": "nulls", "column": "id"},
    {"kind": "unique", "columns": ["id"]},
    {"kind": "unique", "columns": ["code", "tag"]},
    {"kind": "allowed", "column": "tag", "values": ["a", "b"]},
    {"kind": "allowed", "column": "code", "values": [1, 2]},
]


class MemoryTables(ArrowTables):
    """Tables that are in memory whole, whatever a stage asks for."""

    def on_disk(self, folder: Path) -> ArrowTables:
        return self


class MemoryWiring(Wiring):
    @property
    def tables(self) -> ArrowTables:
        return MemoryTables()


def columns_of(rows: int, rng: np.random.Generator, gaps: float) -> dict[str, pa.Array]:
    """Columns of every kind that a source may have, with missing values."""

    def with_gaps(values: Any, kind: pa.DataType | None = None) -> pa.Array:
        return pa.array(values, kind, mask=rng.random(rows) < gaps)

    day = datetime.datetime(2024, 1, 1)
    return {
        "id": pa.array(range(rows)),
        "x": pa.array(np.where(rng.random(rows) < gaps, np.nan, rng.normal(size=rows))),
        "whole": with_gaps(rng.integers(-5, 9, rows), pa.int64()),
        "small": pa.array(rng.integers(0, 99, rows), pa.int16()),
        "wide": with_gaps(rng.integers(0, 2**40, rows), pa.uint64()),
        "flag": with_gaps(rng.random(rows) < 0.5),
        "price": with_gaps([Decimal(int(value)) / 100 for value in rng.integers(1, 9999, rows)], pa.decimal128(9, 2)),
        "tag": with_gaps(rng.choice(["a", "b", " c", "", "?"], rows)),
        "long": with_gaps(rng.choice(["ä" * 40, "y", "?"], rows), pa.large_string()),
        "kind": with_gaps(rng.choice(["u", "v", "w"], rows)).dictionary_encode(),
        "code": with_gaps(rng.integers(1, 4, rows), pa.int32()),
        "text_number": with_gaps(rng.choice(["1", "2.5", "1e3", "?"], rows)),
        "born": with_gaps([day + datetime.timedelta(days=int(days)) for days in rng.integers(0, 999, rows)]),
        "group": pa.array(rng.integers(0, 12, rows).astype(str)),
        "when": pa.array([day + datetime.timedelta(hours=int(hours)) for hours in rng.integers(0, 40, rows)]),
    }


def write_source(folder: Path, seed: int, files: int, group: int, gaps: float) -> None:
    """Files of a table, which differ in types and in the order of columns."""
    rng = np.random.default_rng(seed)
    for number in range(files):
        rows = int(rng.integers(30, 60))
        columns = columns_of(rows, rng, gaps)
        label = rng.permutation(np.arange(rows) % 3 == 0)
        columns["y"] = pa.array(np.where(label, "yes", "no"), mask=rng.random(rows) < gaps / 4)
        if number == 1:
            columns["small"] = columns["small"].cast(pa.float32())
            columns["kind"] = columns["kind"].cast(pa.string())
            columns["whole"] = columns["whole"].cast(pa.int8())
            columns = dict(reversed(columns.items()))
        place = folder / "t" / f"region={'north' if number % 2 else 'south'}"
        place.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pa.table(columns), place / f"{number}.parquet", row_group_size=group)


def spec_of(split: dict[str, Any], **changes: Any) -> data.Spec:
    recipe = {
        "task": "classification",
        "source": {"kind": "parquet", "path": "t", "missing": ["?"]},
        "target": "y",
        "missing_target": "drop",
        "positive": "yes",
        "columns": {**DECLARED, "born": "date"},
        "drop": ["long"],
        "split": split,
    }
    return data.Spec.model_validate(recipe | changes)


def context_of(folder: Path, name: str, ports: Wiring, events: list[Event], **inputs: Path) -> StageContext:
    lineage = Lineage(git_commit="", git_dirty=False, data_version="", recipe_digest="")
    (folder / name).mkdir()
    return StageContext(
        inputs, folder / name, folder / "scratch", folder, 1, lineage, "run", ports, lambda event: events.append(event)
    )


def outcome(spec: data.Spec, folder: Path, name: str, ports: Wiring) -> tuple[Any, ...]:
    """All that the data stage says and writes; for a refused table, its words."""
    events: list[Event] = []
    try:
        result = data.run(spec, context_of(folder, name, ports, events))
    except DataError as error:
        return str(error), error.hint
    files = {file.name: file.read_bytes() for file in sorted((folder / name).iterdir())}
    return files, result.metrics, result.summary, [event.message for event in events]


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    files=st.integers(1, 3),
    group=st.integers(1, 40),
    batch=st.integers(1, 40),
    gaps=st.sampled_from([0.0, 0.2]),
    split=st.sampled_from(SPLITS),
    changes=st.sampled_from(CHANGES),
)
def test_the_data_stage_writes_what_it_writes_from_memory(
    seed: int, files: int, group: int, batch: int, gaps: float, split: dict[str, Any], changes: dict[str, Any]
) -> None:
    with (
        tempfile.TemporaryDirectory() as name,
        patch.object(stored_table, "BATCH_ROWS", batch),
        patch.object(parquet_files, "BATCH_ROWS", batch + 3),
        patch.object(parquet_files, "OPEN_COLUMNS", 4),
        patch.object(arrow, "BATCH_ROWS", 2 * batch + 1),
    ):
        folder = Path(name)
        write_source(folder, seed, files, group, gaps)
        spec = spec_of(split, **changes)
        stored = outcome(spec, folder, "stored", Wiring(folder / "state"))
        assert stored == outcome(spec, folder, "memory", MemoryWiring(folder / "state"))
        assert not (folder / "scratch" / data.COLUMNS).exists()


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    write_source(folder, seed=3, files=3, group=11, gaps=0.2)
    data.run(spec_of({"kind": "stratified"}), context_of(folder, "data", Wiring(folder / "state"), []))
    return folder / "data"


@pytest.mark.parametrize("cells", [1, 500, 1 << 23])
def test_checks_of_columns_are_those_of_the_whole_table(parts: Path, cells: int) -> None:
    checker = Wiring(parts / "state").checker
    whole = PartColumns(parts).frame()
    inferred = checker.infer(whole)
    assert checker.infer(PartColumns(parts)) == inferred
    lacking = {**inferred, "gone": {"dtype": "int", "nullable": False}}
    sets = [[check] for check in CHECKS] + [CHECKS[3:], CHECKS]
    with patch.object(part_columns, "BLOCK_CELLS", cells):
        for chosen, schema in itertools.product(sets, (inferred, lacking)):
            checks = validate.Spec.model_validate({"checks": chosen}).checks
            expected = validate.expected_schema(checks, schema, None)
            as_seen = as_numbers(whole, compared_as_numbers(checks, expected))
            assert check_columns(checker, checks, PartColumns(parts), expected) == list(
                checker.check(as_seen, checks, expected)
            )


def test_the_frame_of_the_parts_is_that_of_the_files(parts: Path) -> None:
    files = [parquet.read_table(parts / f"{part}.parquet") for part in ("train", "validation", "test")]
    types = {pa.int64(): pd.Int64Dtype(), pa.bool_(): pd.BooleanDtype()}
    table, frame = pa.concat_tables(files), PartColumns(parts).frame()
    for name in table.column_names:
        column = table.column(name)
        dtype = types.get(column.type) if column.null_count else None
        expected = column.to_pandas(types_mapper=(lambda _, dtype=dtype: dtype) if dtype is not None else None)
        pd.testing.assert_series_equal(frame[name].reset_index(drop=True), expected, check_names=False)
    split = np.load(parts / "split.npy")
    assert frame.index.tolist() == [row for code in range(3) for row in np.flatnonzero(split == code)]


def test_the_profile_of_columns_is_that_of_the_training_rows(parts: Path) -> None:
    info, profiler = read_table_info(parts), Wiring(parts / "state").profiler
    whole = PartColumns(parts).frame().iloc[: info.rows["train"]]
    features = {item.name: part_columns.as_feature(whole[item.name], item.kind) for item in info.features}
    columns = FeatureColumns(PartColumns(parts, ("train",)), info.features)
    assert profiler.profile(columns) == profiler.profile(pd.DataFrame(features))
