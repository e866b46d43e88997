"""The test of live windows against a baseline: counts in, findings out."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlflowkit.judging.shift.column_cells import Cells
from mlflowkit.judging.shift.counts import ProfileCounts, WindowCounts
from mlflowkit.judging.shift.finding_messages import describe
from mlflowkit.judging.shift.findings import Aspect, ColumnFinding
from mlflowkit.judging.shift.reference import ColumnReference, Reference
from mlflowkit.judging.shift.shift_settings import ShiftSettings
from mlflowkit.judging.shift.shift_trace import AspectTrace, BaselineWindow, ColumnTrace, ShiftTrace
from mlflowkit.judging.shift.stream_arrays import (
    CountedColumn,
    counted_columns,
    group_by_aspect,
    pack,
    phase_of,
    used_windows,
)
from mlflowkit.values import Outcome

if TYPE_CHECKING:
    from mlflowkit.judging.shift.detector import Assessment, DetectorState
    from mlflowkit.judging.shift.distances import Array, Mask

REFUSAL_WINDOWS = 2
"""Windows of evidence that an alarm about refused requests needs: what a gateway refused is a fact, no sample."""
REFUSAL_REQUESTS = 30.0
BLOCK = 2048
"""Streams whose arrays are made at a time: those of 25,000 columns and segments would take more than all else."""
_TWINS = ("output.label", "output.score")
"""The same answers counted in two ways: each is tested at half of its level."""


@dataclass(frozen=True, slots=True)
class JudgedGroup:
    """One aspect of some columns: a row of the arrays for each."""

    aspect: Aspect
    columns: Sequence[CountedColumn]
    state: DetectorState
    assessment: Assessment
    judged: Mask
    sustained: int


def advance(
    trace: ShiftTrace, reference: Reference, window: WindowCounts, settings: ShiftSettings
) -> tuple[ShiftTrace, tuple[ColumnFinding, ...]]:
    """The trace after a closed window of one version, and what is known of each column by then.

    Windows are passed once each and in order. The reference gives the cells; the baseline is what the settings say.
    Columns of the reference that the window has no counts of are findings too, as are reasons of refused requests.

    An outcome is FAILED from the window on in which the evidence of at least ``sustained`` windows suffices, until
    ``rearm`` windows lie within the margin. It is PASSED while there is no evidence and the interval of the current
    window, or that of the recent windows together, lies within the margin, else INCONCLUSIVE.
    """
    phase = phase_of(window, settings)
    columns = counted_columns(trace, reference, window, settings)
    members = {**group_by_aspect(columns), "type": list(_refused_columns(trace, window))}
    number = sum(map(len, members.values()))
    threshold = math.log(max(number, 1) / settings.level)
    groups = [
        _judge(aspect, part[first : first + BLOCK], phase, settings, threshold)
        for aspect, part in members.items()
        for first in range(0, len(part), BLOCK)
    ]
    alarms, shares = _discover(groups, _twins(columns), settings.level)
    findings: list[ColumnFinding] = []
    aspects: dict[tuple[str, str, str], AspectTrace] = {}
    suspected: set[tuple[str, str]] = set()
    for group, alarm, share in zip(groups, alarms, shares, strict=True):
        suspected |= _suspected(group)
        for key, kept, finding in _conclude(group, alarm, share, window.start, settings):
            aspects[key] = kept
            findings.append(finding)
    refused = {
        column.name: ColumnTrace(aspects={"type": aspects["", column.name, "type"]}) for column in members["type"]
    }
    kept_columns = _next_columns(trace, columns, suspected, aspects, phase, settings)
    after = ShiftTrace(trace.windows + 1, kept_columns, refused)
    return after, (*findings, *_unjudged_columns(reference, window, settings))


def _judge(
    aspect: Aspect, columns: Sequence[CountedColumn], phase: int, settings: ShiftSettings, threshold: float
) -> JudgedGroup:
    import numpy as np

    from mlflowkit.judging.shift.detector import advance_streams

    state, streams, base = pack(columns, aspect, phase, settings)
    sustained = settings.sustained
    if aspect == "type":
        sustained = min(sustained, REFUSAL_WINDOWS)
        streams = replace(streams, judged=streams.counts.sum(axis=1) >= REFUSAL_REQUESTS)
        base = replace(base, reference=np.tile([1e9, 0.0], (len(columns), 1)), alike=True)
    after, assessment = advance_streams(state, streams, base, settings.level, threshold, sustained)
    return JudgedGroup(aspect, columns, after, assessment, streams.judged, sustained)


def _discover(
    groups: Sequence[JudgedGroup], halved: Collection[tuple[str, str]], level: float
) -> tuple[list[Mask], list[Array]]:
    """Which streams' evidence suffices, and each one's evidence as a share of what it takes, by group. Columns that are
    ``halved``, by segment and name, are tested at half of their level."""
    import numpy as np

    from mlflowkit.judging.shift.detector import discoveries, lasting

    if not groups:
        return [], []
    weighted = [
        group.assessment.evidence
        - np.array([math.log(2) * ((column.segment, column.name) in halved) for column in group.columns])
        for group in groups
    ]
    evidence = [lasting(part, group.state, group.sustained) for part, group in zip(weighted, groups, strict=True)]
    ends = np.cumsum([len(part) for part in evidence])[:-1]
    alarms = discoveries(np.concatenate(evidence), level)
    needed = math.log(len(alarms) / (max(int(alarms.sum()), 1) * level))
    windows = [group.state.support / group.sustained for group in groups]
    shares = np.clip(np.minimum(np.concatenate(weighted) / needed, np.concatenate(windows)), 0.0, None)
    shares = np.where(alarms, np.maximum(shares, 1.0), np.minimum(shares, 0.999))
    return np.split(alarms, ends), np.split(shares, ends)


def _twins(columns: Sequence[CountedColumn]) -> set[tuple[str, str]]:
    """The outputs of each segment that are counted as labels and as scores, where both are."""
    names = {(column.segment, column.name) for column in columns if column.name in _TWINS}
    return {(segment, name) for segment, name in names if all((segment, twin) in names for twin in _TWINS)}


def _suspected(group: JudgedGroup) -> set[tuple[str, str]]:
    from mlflowkit.judging.shift.detector import suspects

    marks = suspects(group.assessment, group.judged).tolist()
    return {(column.segment, column.name) for column, mark in zip(group.columns, marks, strict=True) if mark}


def _conclude(
    group: JudgedGroup, alarms: Mask, shares: Array, start: float, settings: ShiftSettings
) -> Iterator[tuple[tuple[str, str, str], AspectTrace, ColumnFinding]]:
    """The trace of each stream after the window, and its finding."""
    from mlflowkit.judging.shift.detector import conclude

    state, within = conclude(group.state, group.assessment, group.judged, alarms, settings.rearm)
    values = zip(*(getattr(group.assessment, name).tolist() for name in _SHOWN), strict=True)
    kept = zip(state.logs.tolist(), state.support.tolist(), state.failed.tolist(), state.inside.tolist(), strict=True)
    marks = zip(group.judged.tolist(), within.tolist(), shares.tolist(), strict=True)
    for column, shown, (logs, support, failed, inside), (judged, calm, share) in zip(
        group.columns, values, kept, marks, strict=True
    ):
        value, low, high, allowed, effective, detectable = shown
        before = column.trace.aspects.get(group.aspect, AspectTrace())
        grown = failed or support > 0
        since = None if not grown else start if before.since is None else before.since
        aspect = AspectTrace()
        if grown or max(logs) > 0:  # an e-CUSUM below 1 goes on as 1: there is nothing to keep
            aspect = AspectTrace(tuple(logs), int(support), since, failed, int(inside))
        outcome = Outcome.FAILED if failed else Outcome.PASSED if calm and not grown else Outcome.INCONCLUSIVE
        finding = ColumnFinding(
            column.name,
            group.aspect,
            outcome,
            value if judged else None,
            low if judged else None,
            high if judged else None,
            round(allowed, 6),
            max(share, 1.0) if failed else share if grown else 0.0,
            column.rows,
            round(effective, 2),
            detectable if judged else None,
            since,
            column.segment,
        )
        learning = "" if column.learned else f"{len(column.trace.windows)} of {settings.learn}"
        yield (
            (column.segment, column.name, group.aspect),
            aspect,
            replace(finding, message=describe(finding, learning)),
        )


_SHOWN = ("value", "low", "high", "allowed", "effective", "detectable")


def _next_columns(
    trace: ShiftTrace,
    columns: Sequence[CountedColumn],
    suspected: set[tuple[str, str]],
    aspects: Mapping[tuple[str, str, str], AspectTrace],
    phase: int,
    settings: ShiftSettings,
) -> Mapping[str, Mapping[str, ColumnTrace]]:
    """The columns' traces: a window joins the baseline of a column until that is complete, unless something of the
    column has evidence against it or lies surely beyond its margin; then those that wait to join are dropped too."""
    from mlflowkit.judging.shift.detector import FADE

    after = {segment: dict(kept) for segment, kept in trace.columns.items()}
    for column in columns:
        key, kept = (column.segment, column.name), column.trace
        windows = kept.windows
        if key in suspected:
            windows = windows if settings.baseline == "season" else windows[: used_windows(len(windows), settings)]
        elif column.rows and _grows(windows, phase, settings):
            windows = (*windows, BaselineWindow(column.counts, column.batches, phase))
        before = kept.recent or (0.0,) * len(column.counts)
        recent = tuple(FADE * old + new / column.batches for old, new in zip(before, column.counts, strict=True))
        recent_rows = FADE**2 * kept.recent_rows + column.rows / column.batches
        own = {str(name): aspects[*key, name] for name in ("distribution", *column.aspects())}
        after.setdefault(column.segment, {})[column.name] = ColumnTrace(windows, recent, recent_rows, own)
    return after


def _grows(windows: Sequence[BaselineWindow], phase: int, settings: ShiftSettings) -> bool:
    if settings.baseline == "season":
        return sum(window.phase == phase for window in windows) < max(settings.season_count, 2)
    return len(windows) < settings.baseline_windows + settings.sustained


def _refused_columns(trace: ShiftTrace, window: WindowCounts) -> Iterator[CountedColumn]:
    """Requests refused for each reason, now or before, among all requests."""
    total = window.total.requests + sum(window.refused.values())
    for reason in sorted({*trace.refused, *window.refused}):
        hits = window.refused.get(reason, 0)
        kept = trace.refused.get(reason, ColumnTrace())
        yield CountedColumn("", reason, ColumnReference(Cells("text"), ()), (total - hits, hits), 1.0, kept, ())


def _unjudged_columns(reference: Reference, window: WindowCounts, settings: ShiftSettings) -> Iterator[ColumnFinding]:
    """Columns that only one of the reference and the window has, or whose cells differ."""
    profile: ProfileCounts = window.total
    for name in sorted({*reference.columns, *profile.columns} - set(settings.ignored)):
        cells = len(reference.columns[name].counts) if name in reference.columns else None
        counts = profile.columns.get(name)
        if cells == (None if counts is None else len(counts)) or (counts is None and not profile.rows):
            continue
        message = f"{name} has no reference: it is not judged"
        if cells is not None:
            message = f"{name} was not counted in {profile.rows} rows: it is not judged"
        if cells is not None and counts is not None:
            message = f"{name} was counted in {len(counts)} cells, its reference in {cells}: it is not judged"
        margin = settings.limit(name, "distribution")
        unknown = (None, None, None)
        yield ColumnFinding(
            name, "distribution", Outcome.INCONCLUSIVE, *unknown, margin, 0.0, profile.rows, 0.0, message=message
        )
