"""Counts rows of the prediction log's format in the cells of a version's monitoring reference, also by segment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from mlflowkit.bundle import Signature
from mlflowkit.features import outlier_forest
from mlflowkit.features.cell_counts import CellCounter
from mlflowkit.features.outlier_forest import OutlierForest
from mlflowkit.judging.shift.column_cells import Cells
from mlflowkit.judging.shift.counts import Counts, ProfileCounts
from mlflowkit.judging.shift.reference import Reference
from mlflowkit.system.text import category_text

_OUTLIER = "outlier"
"""The column that is added to the log's where outliers are counted."""
MAX_SEGMENT_COLUMNS = 8
MAX_SEGMENT_VALUES = 8
"""The most frequent values of a column in the reference, of which each is a segment."""


@dataclass(frozen=True, slots=True)
class SegmentColumn:
    """A column of the log whose ``values`` are segments, called ``names``."""

    source: str
    names: tuple[str, ...]
    values: CellCounter


@dataclass(frozen=True, slots=True)
class CountingPlan:
    """What is counted of a version's rows: a counter by column, and the column of the log that it reads.

    Without a reference these are none: then only rows and requests are counted. ``outliers`` says which rows are
    outliers, where the reference has their share.
    """

    columns: Mapping[str, tuple[str, CellCounter]] = field(default_factory=dict)
    segments: tuple[SegmentColumn, ...] = ()
    outliers: OutlierForest | None = None


@dataclass(frozen=True, slots=True)
class CountedRows:
    """Counts of all rows and by segment; ``problems`` by column that could not be counted."""

    total: ProfileCounts
    segments: Mapping[str, ProfileCounts] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)


def counting_plan(
    signature: Signature, reference: Reference | None, segments: Sequence[str], outliers: OutlierForest | None = None
) -> CountingPlan:
    """The plan of a version. ``segments`` are columns; those without a list of values in the reference are left out."""
    if reference is None:
        return CountingPlan()
    sources = {"output.label": "label", "output.prediction": "prediction", outlier_forest.COLUMN: _OUTLIER}
    if len(signature.classes) == 2:
        sources["output.score"] = f"probability.{category_text(signature.classes[-1])}"
    columns = {
        name: (sources.get(name, f"input.{name}"), CellCounter(column.cells))
        for name, column in reference.columns.items()
    }
    chosen = [_segment_column(name, reference) for name in segments]
    outliers = outliers if outlier_forest.COLUMN in columns else None
    return CountingPlan(columns, tuple(filter(None, chosen))[:MAX_SEGMENT_COLUMNS], outliers)


def _segment_column(column: str, reference: Reference) -> SegmentColumn | None:
    """The values of a column that are segments: those that the reference counts by, or else its most frequent ones."""
    prefix = f"{column}="
    values = [name.removeprefix(prefix) for name in reference.segments if name.startswith(prefix)]
    known = reference.columns.get(column)
    if not values and known is not None and known.cells.kind == "text":
        by_count = sorted(range(len(known.cells.values)), key=lambda code: -known.counts[code])
        values = [known.cells.values[code] for code in by_count]
    values = values[:MAX_SEGMENT_VALUES]
    if not values:
        return None
    counter = CellCounter(Cells("text", values=tuple(values)))
    return SegmentColumn(f"input.{column}", tuple(prefix + value for value in values), counter)


def count_rows(plan: CountingPlan, rows: pa.Table, request: np.ndarray) -> CountedRows:
    """Count rows; ``request`` has the number of each row's request, from 0. Columns that fail are left out and told."""
    total = _sizes(np.bincount(request)) if rows.num_rows else (0, 0)
    columns: dict[str, Counts] = {}
    problems: dict[str, str] = {}
    if plan.outliers is not None:
        rows = _with_outliers(plan.outliers, rows, problems)
    present = set(rows.column_names)
    parts = {segment.source: _segment_codes(segment, rows, problems) for segment in plan.segments}
    by_segment: dict[str, dict[str, Counts]] = {name: {} for segment in plan.segments for name in segment.names}
    for name, (source, counter) in plan.columns.items():
        if source not in present:
            continue
        try:
            if not plan.segments:
                columns[name] = counter.count(rows[source])
                continue
            codes = counter.codes(rows[source])
        except (ValueError, TypeError, pa.ArrowException) as error:
            problems[name] = f"{error} ({rows[source].type})"
            continue
        columns[name] = tuple(np.bincount(codes, minlength=counter.size).tolist())
        for segment in plan.segments:
            for part, counts in zip(segment.names, _table(segment, parts[segment.source], codes, counter), strict=True):
                by_segment[part][name] = counts
    segments = _segments(plan, parts, request, by_segment)
    return CountedRows(ProfileCounts(total[0], rows.num_rows, total[1], columns), segments, problems)


def _with_outliers(forest: OutlierForest, rows: pa.Table, problems: dict[str, str]) -> pa.Table:
    """The rows with a column that says whether each is an outlier."""
    try:
        columns: dict[str, np.ndarray] = {}
        for name in forest.columns:
            if f"input.{name}" in rows.column_names:
                values = rows[f"input.{name}"].combine_chunks().to_numpy(zero_copy_only=False)
                if name in forest.texts:
                    columns[name] = np.where(values == None, "", values)  # noqa: E711 - by element
                else:
                    columns[name] = values.astype(np.float64)
        labels = np.array(outlier_forest.CELLS.values, dtype=object)
        return rows.append_column(_OUTLIER, pa.array(labels[forest.outliers(columns).astype(np.int64)], pa.string()))
    except (ValueError, TypeError, KeyError, pa.ArrowException) as error:
        problems[outlier_forest.COLUMN] = str(error)
        return rows


def _segment_codes(segment: SegmentColumn, rows: pa.Table, problems: dict[str, str]) -> np.ndarray:
    """The segment of each row; the number of segments and more for none."""
    none = np.full(rows.num_rows, len(segment.names))
    if segment.source not in rows.column_names:
        return none
    try:
        return segment.values.codes(rows[segment.source])
    except (ValueError, TypeError, pa.ArrowException) as error:
        problems[segment.source] = str(error)
        return none


def _table(segment: SegmentColumn, parts: np.ndarray, codes: np.ndarray, counter: CellCounter) -> list[Counts]:
    """Counts by cell of each segment."""
    size = len(segment.names)
    table = np.bincount(np.minimum(parts, size) * counter.size + codes, minlength=(size + 1) * counter.size)
    return [tuple(row) for row in table.reshape(size + 1, counter.size)[:size].tolist()]


def _segments(
    plan: CountingPlan,
    parts: Mapping[str, np.ndarray],
    request: np.ndarray,
    columns: Mapping[str, Mapping[str, Counts]],
) -> dict[str, ProfileCounts]:
    """Counts of the segments that have rows."""
    segments: dict[str, ProfileCounts] = {}
    for segment in plan.segments:
        for code, name in enumerate(segment.names):
            sizes = np.bincount(request[parts[segment.source] == code])
            rows = int(sizes.sum())
            if rows:
                requests, squares = _sizes(sizes)
                segments[name] = ProfileCounts(requests, rows, squares, columns[name])
    return segments


def _sizes(rows_of_requests: np.ndarray) -> tuple[int, int]:
    """The number of requests that have rows, and the sum of their squared rows."""
    return int(np.count_nonzero(rows_of_requests)), int(np.square(rows_of_requests.astype(np.int64)).sum())
