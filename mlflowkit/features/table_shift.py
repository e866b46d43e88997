"""Comparison of two tables, or of a table with a model's reference: columns to counts, counts to findings.

Numbers, booleans and times are compared by Kolmogorov and Smirnov's distance over all their values, texts by total
variation. What cannot be compared is a problem of its own, and the other columns are judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mlflowkit.features.cell_counts import CellCounter
from mlflowkit.features.text_columns import category_texts
from mlflowkit.judging.shift.column_cells import Cells
from mlflowkit.judging.shift.counts import Counts
from mlflowkit.judging.shift.findings import Aspect, ColumnFinding
from mlflowkit.judging.shift.reference import Reference
from mlflowkit.judging.shift.sample_shift import (
    ColumnSample,
    SampleShift,
    chance_new,
    chance_outside,
    compare_distributions,
    compare_shares,
)

MAX_SEGMENTS = 8
"""Values of a column by which tables are compared, the most frequent of the first table."""


@dataclass(frozen=True, slots=True)
class ColumnProblem:
    """A column that is not compared, and why. ``broken``: the second table does not hold what the first does."""

    column: str
    message: str
    broken: bool = True


@dataclass(frozen=True, slots=True)
class TableValues:
    """The columns of a table as arrays: float (a missing value is NaN) or texts (a missing one is "").

    ``weights`` (rows,): what a row counts, 1, or a share of its unit's 1. ``units`` is their sum.
    """

    columns: Mapping[str, np.ndarray]
    rows: int
    weights: np.ndarray
    problems: tuple[ColumnProblem, ...] = ()

    @property
    def units(self) -> int:
        return round(float(self.weights.sum()))


@dataclass(frozen=True, slots=True)
class TableShift:
    """What a comparison shows: findings by column, aspect and segment, and columns that could not be compared."""

    findings: tuple[ColumnFinding, ...] = ()
    problems: tuple[ColumnProblem, ...] = field(default=())


def table_values(table: pa.Table, unit: str | None = None) -> TableValues:
    """The columns of a table; ``unit`` is the column whose values are one observation each.

    >>> values = table_values(pa.table({"a": [1.5, None], "b": ["x", None], "c": [[1], [2]]}))
    >>> values.columns["a"].tolist(), values.columns["b"].tolist(), [problem.column for problem in values.problems]
    ([1.5, nan], ['x', ''], ['c'])
    """
    columns, problems = {}, []
    for name in table.column_names:
        if name == unit:
            continue
        values = _as_array(table.column(name), name)
        if values is None:
            message = f"holds {table.column(name).type}, which is neither number, time nor text"
            problems.append(ColumnProblem(name, message, broken=False))
        else:
            columns[name] = values
    weights = np.ones(table.num_rows)
    if unit is not None:
        codes, _ = pd.factorize(table.column(unit).to_pandas(), use_na_sentinel=False)
        weights = 1.0 / np.bincount(codes)[codes] if len(codes) else weights
    return TableValues(columns, table.num_rows, weights, tuple(problems))


def compare_tables(
    first: TableValues, second: TableValues, settings: SampleShift, by: Sequence[str] = ()
) -> TableShift:
    """Compare every column that both tables have, in all rows and by the values of the columns ``by``."""
    problems = [*_problems_of(first, "the first table"), *_problems_of(second, "the second table")]
    pairs: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for name, values in first.columns.items():
        other = second.columns.get(name)
        if other is None:
            if all(problem.column != name for problem in second.problems):
                problems.append(ColumnProblem(name, "is not in the second table"))
            continue
        pair = _same_kind(values, other)
        if pair is None:
            kinds = ["numbers" if side.dtype.kind == "f" else "texts" for side in (values, other)]
            problems.append(ColumnProblem(name, f"holds {kinds[0]} in the first table and {kinds[1]} in the second"))
        else:
            pairs[name] = pair
    first_names = {*first.columns, *(problem.column for problem in first.problems)}
    added = [name for name in second.columns if name not in first_names]
    problems += [ColumnProblem(name, "is not in the first table", broken=False) for name in added]
    segments = [("", np.ones(first.rows, bool), np.ones(second.rows, bool)), *_segments(pairs, by)]
    settings = replace(settings, aspects=sum(3 for _ in pairs for _ in segments))
    findings = [
        finding
        for segment, rows, other_rows in segments
        for name, (values, other) in pairs.items()
        for finding in _compare_values(
            name, (values[rows], first.weights[rows]), (other[other_rows], second.weights[other_rows]), settings,
            segment,
        )
    ]  # fmt: skip
    return TableShift(tuple(findings), tuple(problems))


def compare_with_reference(
    reference: Reference, values: TableValues, settings: SampleShift, by: Sequence[str] = ()
) -> TableShift:
    """Compare the columns of a table, as the graph takes them, with a model's reference, over the reference's cells."""
    names = [name for name in reference.columns if name in values.columns]
    missing = [name for name in reference.columns if name not in values.columns and not name.startswith("output.")]
    problems = [*values.problems, *(ColumnProblem(name, "is not in the table") for name in missing)]
    segments: list[tuple[str, Mapping[str, Counts], np.ndarray]] = [
        ("", {name: reference.columns[name].counts for name in names}, np.ones(values.rows, bool))
    ]
    for segment, counts in reference.segments.items():
        column, _, value = segment.partition("=")
        if column in by and column in values.columns:
            segments.append((segment, counts, values.columns[column] == value))
    settings = replace(settings, aspects=sum(3 for _ in names for _ in segments))
    findings = [
        finding
        for segment, counts, rows in segments
        for name in names
        if name in counts
        for finding in _compare_cells(
            name, reference.columns[name].cells, counts[name], values.columns[name][rows], values.weights[rows],
            settings, segment,
        )
    ]  # fmt: skip
    return TableShift(tuple(findings), tuple(problems))


def _problems_of(side: TableValues, where: str) -> Iterator[ColumnProblem]:
    for problem in side.problems:
        yield ColumnProblem(problem.column, f"{problem.message}, in {where}", problem.broken)


def _as_array(column: pa.ChunkedArray, name: str) -> np.ndarray | None:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if kind != column.type:
        column = column.cast(kind)
    if pa.types.is_null(kind):
        return np.full(len(column), np.nan)
    if pa.types.is_float32(kind) or pa.types.is_float16(kind):
        return np.asarray(column.cast(pa.float32()).to_pandas().to_numpy(np.float32, na_value=np.nan))
    if pa.types.is_temporal(kind) and not pa.types.is_duration(kind):
        if pa.types.is_date(kind):
            column = column.cast(pa.timestamp("us"))
        elif pa.types.is_time(kind):
            return None
        column = pc.cast(column, pa.int64())
    elif pa.types.is_duration(kind) or pa.types.is_boolean(kind):
        column = column.cast(pa.int64())
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return np.asarray(category_texts(column, name).fill_null("").to_numpy(zero_copy_only=False), dtype=object)
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)):
        return None
    return np.asarray(column.cast(pa.float64(), safe=False).to_pandas().to_numpy(np.float64, na_value=np.nan))


def _same_kind(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Both columns in one type: float32 where either is (its values differ from float64's); None where they are not.

    A column without present values takes the type of the other.
    """
    if first.dtype == object and second.dtype == object:
        return first, second
    for own, other in ((first, second), (second, first)):
        if own.dtype == object and other.dtype.kind == "f":
            if not np.isnan(other).all():
                return None
            empty = np.full(len(other), "", dtype=object)
            return (first, empty) if own is first else (empty, second)
    narrow = np.float32 if np.float32 in (first.dtype, second.dtype) else np.float64
    with np.errstate(over="ignore"):
        return first.astype(narrow), second.astype(narrow)


def _segments(
    pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], by: Sequence[str]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    for name in by:
        first, second = pairs[name]
        present = first[first != ""] if first.dtype == object else first[~np.isnan(first)]
        values, counts = np.unique(present, return_counts=True)
        for index in np.argsort(-counts, kind="stable")[:MAX_SEGMENTS]:
            value = values[index]
            text = value if first.dtype == object else f"{value:g}"
            yield f"{name}={text}", first == value, second == value


_Weighted = tuple[np.ndarray, np.ndarray]


def _compare_values(
    name: str, first: _Weighted, second: _Weighted, settings: SampleShift, segment: str
) -> Iterator[ColumnFinding]:
    is_number = first[0].dtype.kind == "f"
    present = [~np.isnan(values) if is_number else values != "" for values, _ in (first, second)]
    kept = [values[mask] for (values, _), mask in zip((first, second), present, strict=True)]
    weights = [weight[mask] for (_, weight), mask in zip((first, second), present, strict=True)]
    pooled = np.concatenate(kept)
    codes = np.unique(pooled, return_inverse=True)[1] if is_number else pd.factorize(pooled)[0]
    cells = int(codes.max()) + 1 if len(codes) else 0
    both = np.split(codes, [len(kept[0])])
    counts = [np.bincount(part, weight, minlength=cells) for part, weight in zip(both, weights, strict=True)]
    samples = [
        ColumnSample(count, float(weight[~mask].sum()), len(values))
        for count, (values, weight), mask in zip(counts, (first, second), present, strict=True)
    ]
    yield compare_distributions(name, samples[0], samples[1], is_number, settings, segment)
    yield _missing(name, samples[0], samples[1], settings, segment)
    old = np.bincount(both[0], minlength=cells) > 0
    if not (old.any() and len(both[1])):
        return
    outside = _outside(*kept) if is_number else ~old[both[1]]
    hits = float(weights[1][outside].sum())
    observations = samples[0].present, samples[1].present
    aspect: Aspect = "range" if is_number else "new"
    singles = float(counts[0][counts[0] <= 1].sum())  # in observations: of units, values that one unit may have alone
    chance = (
        chance_outside(observations[0], settings.confidence)
        if is_number
        else chance_new(singles, observations[0], settings.confidence)
    )
    yield compare_shares(name, aspect, (0.0, hits), observations, samples[1].rows, settings, segment, chance)


def _outside(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    outside: np.ndarray = (second < first.min()) | (second > first.max())
    return outside


def _compare_cells(
    name: str, cells: Cells, counts: Counts, values: np.ndarray, weights: np.ndarray, settings: SampleShift,
    segment: str,
) -> Iterator[ColumnFinding]:  # fmt: skip
    weighted = np.bincount(CellCounter(cells).codes(values), weights, minlength=len(cells.names))
    first = ColumnSample(np.array(counts[:-1], float), float(counts[-1]), sum(counts))
    second = ColumnSample(weighted[:-1], float(weighted[-1]), len(values))
    observations = first.present, second.present
    hidden = 0.0
    if not cells.ordered and min(observations):
        other = len(cells.values)
        hidden = min(counts[other] / first.present, float(weighted[other]) / second.present)
    yield compare_distributions(name, first, second, cells.ordered, settings, segment, hidden)
    yield _missing(name, first, second, settings, segment)
    if not min(observations):
        return
    if cells.ordered:
        hits = float(weighted[0] + weighted[-2])
        chance = chance_outside(first.present, settings.confidence)
        yield compare_shares(name, "range", (0.0, hits), observations, second.rows, settings, segment, chance)
    elif cells.complete:
        hits = float(weighted[-2])
        chance = chance_new(_most_singles(cells, counts), first.present, settings.confidence)
        yield compare_shares(name, "new", (0.0, hits), observations, second.rows, settings, segment, chance)


def _most_singles(cells: Cells, counts: Counts) -> float:
    """The largest number of texts that a reference can have once: those of (other) are not counted one by one."""
    kept = counts[: len(cells.values)]
    return float(kept.count(1) + min(len(cells.others), counts[len(cells.values)]))


def _missing(
    name: str, first: ColumnSample, second: ColumnSample, settings: SampleShift, segment: str
) -> ColumnFinding:
    hits, observations = (first.missing, second.missing), (first.observations, second.observations)
    return compare_shares(name, "missing", hits, observations, second.rows, settings, segment)
