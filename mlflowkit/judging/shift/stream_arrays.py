"""From the counts of a window and the trace to the arrays of the detector, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlflowkit.judging.shift.counts import Counts, ProfileCounts, WindowCounts
from mlflowkit.judging.shift.findings import Aspect
from mlflowkit.judging.shift.reference import ColumnReference, Reference
from mlflowkit.judging.shift.shift_settings import LEARN, ShiftSettings
from mlflowkit.judging.shift.shift_trace import AspectTrace, BaselineWindow, ColumnTrace, ShiftTrace

if TYPE_CHECKING:
    from mlflowkit.judging.shift.design_effects import Baselines
    from mlflowkit.judging.shift.detector import DetectorState, Streams

OUTPUT = "output."


@dataclass(frozen=True, slots=True)
class CountedColumn:
    """A column of one segment in the current window, its baseline and trace."""

    segment: str
    name: str
    reference: ColumnReference
    counts: Counts
    batches: float
    trace: ColumnTrace
    training: Counts
    """The reference's counts in this segment; () where it has none."""
    history: tuple[BaselineWindow, ...] = ()
    """What its design effect is learned from, see `baseline_windows`."""
    learned: bool = False
    """Whether that suffices to judge the current window."""

    @property
    def rows(self) -> int:
        """All rows of the column, missing values included."""
        return sum(self.counts)

    def aspects(self) -> tuple[Aspect, ...]:
        """What is judged of the column besides its distribution."""
        if self.name.startswith(OUTPUT):
            return ()
        if self.reference.cells.ordered:
            return ("missing", "range")
        return ("missing", "new") if self.reference.cells.complete else ("missing",)


def split_share(aspect: str, counts: Sequence[float]) -> tuple[float, float]:
    """The rows without and with what ``aspect`` counts. Shares of new values and of values outside of the range are of
    the rows that have a value.

    >>> split_share("range", (1, 5, 4, 2, 3)), split_share("missing", (1, 5, 4, 2, 3))
    ((9, 3), (12, 3))
    """
    present, missing = sum(counts[:-1]), counts[-1]
    if aspect == "missing":
        return present, missing
    hits = counts[-2] if aspect == "new" else counts[0] + counts[-2] if aspect == "range" else missing
    return (present - hits, hits) if aspect != "type" else (present, missing)


def counted_columns(
    trace: ShiftTrace, reference: Reference, window: WindowCounts, settings: ShiftSettings
) -> list[CountedColumn]:
    """The columns that the window has counts of in the reference's cells, in every segment."""
    columns, phase = [], phase_of(window, settings)
    for segment, profile in _segments(window).items():
        traces, batches = trace.columns.get(segment, {}), _batches(profile)
        trained = reference.segments.get(segment, {})
        for name, column in reference.columns.items():
            counts = profile.columns.get(name, ())
            if name in settings.ignored or len(counts) != len(column.counts):
                continue
            training = trained.get(name, ()) if segment else column.counts
            kept = traces.get(name, ColumnTrace())
            history = baseline_windows(kept, column, segment, settings)
            learned = is_learned(history, training, phase, settings)
            columns.append(CountedColumn(segment, name, column, counts, batches, kept, training, history, learned))
    return columns


def _segments(window: WindowCounts) -> dict[str, ProfileCounts]:
    return {"": window.total, **window.segments}


def _batches(profile: ProfileCounts) -> float:
    return profile.rows / profile.effective_rows if profile.squares and profile.rows else 1.0


def phase_of(window: WindowCounts, settings: ShiftSettings) -> int:
    """The window's place in the season; 0 without one."""
    if settings.baseline != "season":
        return 0
    return round((window.start % settings.season_seconds) / max(window.seconds, 1e-9))


def baseline_windows(
    trace: ColumnTrace, reference: ColumnReference, segment: str, settings: ShiftSettings
) -> tuple[BaselineWindow, ...]:
    """Windows from which the design effect is learned: live ones, or the parts of the reference for want of them."""
    windows = trace.windows
    if settings.baseline == "training" and not segment and len(windows) < settings.learn <= len(reference.parts):
        return tuple(BaselineWindow(part) for part in reference.parts)
    return windows if settings.baseline == "season" else windows[: used_windows(len(windows), settings)]


def used_windows(learned: int, settings: ShiftSettings) -> int:
    """How many of the learned windows are the baseline: the latest wait, since evidence against them takes time.

    >>> [used_windows(learned, ShiftSettings()) for learned in (3, 7, 10, 11, 17)]
    [3, 7, 7, 8, 14]
    """
    return min(learned, max(settings.learn, learned - settings.sustained))


def is_learned(windows: Sequence[BaselineWindow], training: Counts, phase: int, settings: ShiftSettings) -> bool:
    """Whether a baseline suffices to judge the current window."""
    if settings.baseline == "season":
        phases = {window.phase for window in windows}
        return len(windows) - len(phases) >= LEARN - 1 and sum(window.phase == phase for window in windows) >= 2
    return len(windows) >= settings.learn and (settings.baseline == "live" or any(training))


def pack(
    columns: Sequence[CountedColumn], aspect: str, phase: int, settings: ShiftSettings
) -> tuple[DetectorState, Streams, Baselines]:
    """The arrays of one aspect of the columns: all cells but (missing) for the distribution, else two."""
    import numpy as np

    from mlflowkit.judging.shift.design_effects import Baselines
    from mlflowkit.judging.shift.detector import Streams

    whole = aspect == "distribution"
    width = max((len(column.counts) - 1 for column in columns), default=1) if whole else 2
    depth = max((len(column.history) for column in columns), default=0)
    shape = (len(columns), depth)
    windows, batches = np.zeros((*shape, width)), np.ones(shape)
    phases, same = np.zeros(shape), np.zeros(shape, dtype=bool)
    counts, trained = np.zeros((len(columns), width)), np.zeros((len(columns), width))
    for row, column in enumerate(columns):
        for place, past in enumerate(column.history):
            part = _part(aspect, past.counts)
            windows[row, place, : len(part)] = part
            batches[row, place], phases[row, place], same[row, place] = past.batches, past.phase, past.phase == phase
        for target, values in ((counts, column.counts), (trained, column.training)):
            part = _part(aspect, values) if values else ()
            target[row, : len(part)] = part
    design = np.array([column.batches for column in columns])
    learned = np.array([column.learned for column in columns], dtype=bool)
    streams = Streams(
        counts,
        design,
        np.array([whole and column.reference.cells.ordered for column in columns], dtype=bool),
        np.array([settings.limit(column.name, aspect) for column in columns], dtype=float),
        learned & (counts.sum(axis=1) / design >= settings.min_rows),
        None if whole else np.array([False, True]),
        np.array([settings.absolute(column.name, aspect) for column in columns], dtype=bool),
    )
    baseline = Baselines(windows, batches, phases, same, trained if settings.baseline == "training" else None)
    return _state(columns, aspect, width), streams, baseline


def _part(aspect: str, counts: Sequence[float]) -> Sequence[float]:
    return counts[:-1] if aspect == "distribution" else split_share(aspect, counts)


def _state(columns: Sequence[CountedColumn], aspect: str, width: int) -> DetectorState:
    import numpy as np

    from mlflowkit.judging.shift.detector import start

    state = start(len(columns), width)
    logs, support, rows = state.logs.copy(), state.support.copy(), state.recent_rows.copy()
    recent, failed, inside = np.zeros((len(columns), width)), state.failed.copy(), state.inside.copy()
    for row, column in enumerate(columns):
        kept = column.trace.aspects.get(aspect, AspectTrace())
        if len(kept.logs) == logs.shape[1]:
            logs[row], support[row] = kept.logs, kept.support
        failed[row], inside[row] = kept.failed, kept.inside
        if column.trace.recent:
            part = _part(aspect, column.trace.recent)
            recent[row, : len(part)] = part
            rows[row] = column.trace.recent_rows * sum(part) / max(sum(column.trace.recent), 1e-300)
    return replace(state, logs=logs, support=support, recent=recent, recent_rows=rows, failed=failed, inside=inside)


def group_by_aspect(columns: Sequence[CountedColumn]) -> Mapping[Aspect, list[CountedColumn]]:
    """The columns of which each aspect is judged."""
    groups: dict[Aspect, list[CountedColumn]] = {"distribution": list(columns)}
    for column in columns:
        for aspect in column.aspects():
            groups.setdefault(aspect, []).append(column)
    return groups
