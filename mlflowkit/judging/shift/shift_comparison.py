"""Two samples compared at once: one table with another, or a live baseline with the training rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlflowkit.judging.shift.counts import WindowCounts
from mlflowkit.judging.shift.finding_messages import describe
from mlflowkit.judging.shift.findings import Aspect, ColumnFinding
from mlflowkit.judging.shift.reference import Reference
from mlflowkit.judging.shift.shift_settings import LEARN, ShiftSettings
from mlflowkit.judging.shift.shift_trace import BaselineWindow, ColumnTrace, ShiftTrace
from mlflowkit.judging.shift.stream_arrays import (
    CountedColumn,
    counted_columns,
    group_by_aspect,
    split_share,
    used_windows,
)
from mlflowkit.values import Outcome

if TYPE_CHECKING:
    from mlflowkit.judging.shift.distances import Array, Mask


@dataclass(frozen=True, slots=True)
class PooledColumn:
    """A column's counts, and the windows from which its design effect is learned; without any, rows are as independent
    as their requests are."""

    column: CountedColumn
    windows: tuple[BaselineWindow, ...] = ()


def compare(reference: Reference, window: WindowCounts, settings: ShiftSettings) -> tuple[ColumnFinding, ...]:
    """Compare the rows of a window with the reference, once.

    Asks for no sustained windows: FAILED is surely beyond the margin at the level divided by the number of findings
    (Bonferroni), PASSED surely within it at the level. Where the reference has seven parts or more in time order, rows
    are worth as many as these parts' differences say (`learned_effects`); without them rows are taken to be independent
    but for those of one request, which makes intervals too narrow where days differ by themselves.
    """
    columns = []
    for column in counted_columns(ShiftTrace(), reference, window, settings):
        parts = column.reference.parts if not column.segment else ()
        windows = tuple(BaselineWindow(part) for part in parts) if len(parts) >= LEARN else ()
        if sum(column.training):
            columns.append(PooledColumn(column, windows))
    return _compare(columns, settings)


def measure_skew(trace: ShiftTrace, reference: Reference, settings: ShiftSettings) -> tuple[ColumnFinding, ...]:
    """Compare the live baseline of each column with its training rows: skew between training and serving, and what an
    alarm about later windows cannot show, as the baseline is not the training data.

    Columns whose baseline is not learned yet are left out. Training rows count as if days differed among them as much
    as live windows do.
    """
    columns = []
    for segment, kept in trace.columns.items():
        for name, column in kept.items():
            columns += _live_baseline(segment, name, column, reference, settings)
    return _compare(columns, settings)


def _live_baseline(
    segment: str, name: str, kept: ColumnTrace, reference: Reference, settings: ShiftSettings
) -> list[PooledColumn]:
    windows = kept.windows[: used_windows(len(kept.windows), settings)]
    trained = reference.columns.get(name)
    training = reference.segments.get(segment, {}).get(name, ()) if segment else trained.counts if trained else ()
    if len(windows) < LEARN or trained is None or not sum(training) or len(windows[0].counts) != len(training):
        return []
    counts = tuple(map(sum, zip(*(window.counts for window in windows), strict=True)))
    rows = [sum(window.counts) for window in windows]
    worth = sum(count / window.batches for count, window in zip(rows, windows, strict=True))
    batches = sum(rows) / worth if worth else 1.0
    return [PooledColumn(CountedColumn(segment, name, trained, counts, batches, kept, training), windows)]


def _compare(columns: Sequence[PooledColumn], settings: ShiftSettings) -> tuple[ColumnFinding, ...]:
    windows = {(each.column.segment, each.column.name): each.windows for each in columns}
    groups = group_by_aspect([each.column for each in columns])
    number = sum(map(len, groups.values()))
    findings: list[ColumnFinding] = []
    for aspect, members in groups.items():
        parts = [windows[column.segment, column.name] for column in members]
        findings += _compare_aspect(aspect, members, parts, settings, number) if members else []
    return tuple(findings)


def _compare_aspect(
    aspect: Aspect,
    columns: Sequence[CountedColumn],
    windows: Sequence[tuple[BaselineWindow, ...]],
    settings: ShiftSettings,
    number: int,
) -> list[ColumnFinding]:
    import numpy as np

    from mlflowkit.judging.shift.distances import baseline_doubt, cell_shares, distance_interval, share_interval

    whole, level = aspect == "distribution", settings.level
    counts, baseline = (_stack(aspect, parts) for parts in zip(*((c.counts, c.training) for c in columns), strict=True))
    ordered = np.array([whole and column.reference.cells.ordered for column in columns])
    limit = np.array([settings.limit(column.name, aspect) for column in columns])
    rows, base_rows = counts.sum(axis=1), baseline.sum(axis=1)
    effect = _effects(aspect, counts, baseline, ordered, windows)
    some = np.maximum(rows / np.maximum(effect, [column.batches for column in columns]), 1e-9)
    base_some = np.maximum(base_rows / effect, 1e-9)
    if whole:
        value, low, high = distance_interval(counts, some, baseline, base_some, ordered, level)
        surely = distance_interval(counts, some, baseline, base_some, ordered, level / number)[1]
        allowed, most = limit, limit
    else:
        absolute = np.array([settings.absolute(column.name, aspect) for column in columns])
        share = np.where(absolute, 0.0, cell_shares(baseline)[:, 1])
        value, low, high = share_interval(counts[:, 1], rows, some, level)
        surely = share_interval(counts[:, 1], rows, some, level / number)[1]
        allowed = share + limit
        doubt = baseline_doubt(baseline, base_some, share, ordered, level / number, fixed=True)
        most = allowed + np.where(absolute, 0.0, doubt)
    judged = (some >= min(settings.min_rows, 30.0)) & (base_rows > 0)
    outcomes = np.where(surely > most, Outcome.FAILED, np.where(high <= allowed, Outcome.PASSED, Outcome.INCONCLUSIVE))
    shown = zip(*(part.tolist() for part in (outcomes, value, low, high, allowed, some, judged)), strict=True)
    return [_finding(column, aspect, *parts) for column, parts in zip(columns, shown, strict=True)]


def _finding(
    column: CountedColumn,
    aspect: Aspect,
    outcome: Outcome,
    value: float,
    low: float,
    high: float,
    allowed: float,
    effective: float,
    judged: bool,
) -> ColumnFinding:
    finding = ColumnFinding(
        column.name,
        aspect,
        Outcome(outcome) if judged else Outcome.INCONCLUSIVE,
        value if judged else None,
        low if judged else None,
        high if judged else None,
        round(allowed, 6),
        float(judged and outcome == Outcome.FAILED),
        column.rows,
        round(effective, 2),
        segment=column.segment,
    )
    return replace(finding, message=describe(finding))


def _stack(aspect: str, parts: Sequence[Sequence[float]]) -> Array:
    """(M, K): all cells but (missing), or the rows without and with what the aspect counts."""
    import numpy as np

    kept = [counts[:-1] if aspect == "distribution" else split_share(aspect, counts) for counts in parts]
    stacked = np.zeros((len(kept), max(map(len, kept))))
    for row, counts in enumerate(kept):
        stacked[row, : len(counts)] = counts
    return stacked


def _effects(
    aspect: str, counts: Array, baseline: Array, ordered: Mask, windows: Sequence[tuple[BaselineWindow, ...]]
) -> Array:
    """The design effect between windows of the set that shows each distance; 1 where there are no windows."""
    import numpy as np

    from mlflowkit.judging.shift.design_effects import Baselines, learned_effects
    from mlflowkit.judging.shift.distances import choose_sets

    depth = max(map(len, windows), default=0)
    if not depth:
        return np.ones(len(counts))
    history = np.zeros((len(counts), depth, counts.shape[1]))
    for row, parts in enumerate(windows):
        for place, part in enumerate(parts):
            kept = _stack(aspect, [part.counts])[0]
            history[row, place, : len(kept)] = kept
    absent = np.zeros(history.shape[:2])
    base = Baselines(history, absent + 1, absent, absent == 0)
    sets = choose_sets(counts, baseline, ordered)[1] if aspect == "distribution" else np.array([[False, True]])
    learned = learned_effects(base, np.broadcast_to(sets, counts.shape), ordered)
    effects: Array = np.where([bool(parts) for parts in windows], learned, 1.0)
    return effects
