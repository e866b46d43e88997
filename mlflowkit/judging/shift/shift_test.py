"""The test of live windows against a baseline: counts in, findings out."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
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
    is_learned,
    pack,
    phase_of,
)
from mlflowkit.values import Outcome

if TYPE_CHECKING:
    from mlflowkit.judging.shift.detector import Assessment, DetectorState

REFUSAL_WINDOWS = 2
"""Windows of evidence that an alarm about refused requests needs: what a gateway refused is a fact, no sample."""
REFUSAL_REQUESTS = 30.0
_TWINS = ("output.label", "output.score")
"""The same answers counted in two ways: each is tested at half of its level."""


@dataclass(frozen=True, slots=True)
class JudgedStream:
    """One aspect of one column after the current window."""

    column: CountedColumn
    aspect: Aspect
    row: int
    """Its row in ``state`` and ``assessment``."""
    state: DetectorState
    assessment: Assessment
    judged: bool
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
    refused = list(_refused_columns(trace, window))
    groups = [*group_by_aspect(columns).items(), ("type", refused)]
    number = sum(len(members) for _, members in groups)
    streams = [
        stream
        for aspect, members in groups
        if members
        for stream in _judge(members, aspect, phase, settings, math.log(max(number, 1) / settings.level))
    ]
    findings: list[ColumnFinding] = []
    traces: dict[tuple[str, str, str], AspectTrace] = {}
    for stream, alarm, share in zip(streams, *_discover(streams, settings.level), strict=True):
        kept, finding = _conclude(stream, alarm, share, window.start, settings)
        traces[stream.column.segment, stream.column.name, stream.aspect] = kept
        findings.append(finding)
    after = ShiftTrace(
        trace.windows + 1,
        _next_columns(trace, columns, streams, traces, phase, settings),
        {column.name: replace(column.trace, aspects={"type": traces["", column.name, "type"]}) for column in refused},
    )
    return after, (*findings, *_missing_columns(reference, window, settings))


def _judge(
    members: Sequence[CountedColumn], aspect: Aspect, phase: int, settings: ShiftSettings, threshold: float
) -> Iterator[JudgedStream]:
    import numpy as np

    from mlflowkit.judging.shift.detector import advance_streams

    state, streams, base = pack(members, aspect, phase, settings)
    sustained = settings.sustained
    if aspect == "type":
        sustained = min(sustained, REFUSAL_WINDOWS)
        rows = streams.counts.sum(axis=1)
        streams = replace(streams, judged=rows >= REFUSAL_REQUESTS)
        base = replace(base, reference=np.tile([1e9, 0.0], (len(members), 1)), alike=True)
    after, assessment = advance_streams(state, streams, base, settings.level, threshold, sustained)
    for row, (column, judged) in enumerate(zip(members, streams.judged.tolist(), strict=True)):
        yield JudgedStream(column, aspect, row, after, assessment, judged, sustained)


def _discover(streams: Sequence[JudgedStream], level: float) -> tuple[list[bool], list[float]]:
    """Which streams' evidence suffices, and each one's evidence as a share of what it takes.

    Evidence of fewer than ``sustained`` windows counts as none: an e-value remains one when it is lowered.
    """
    import numpy as np

    from mlflowkit.judging.shift.detector import discoveries

    if not streams:
        return [], []
    segments = {(stream.column.segment, stream.column.name) for stream in streams}
    evidence = np.array([float(stream.assessment.evidence[stream.row]) for stream in streams])
    for index, stream in enumerate(streams):
        twins = [(stream.column.segment, name) for name in _TWINS]
        if stream.column.name in _TWINS and all(twin in segments for twin in twins):
            evidence[index] -= math.log(2)
    windows = np.array([stream.state.support[stream.row] / stream.sustained for stream in streams])
    alarms = discoveries(np.where(windows >= 1, evidence, -math.inf), level)
    needed = math.log(len(streams) / (max(int(alarms.sum()), 1) * level))
    shares = np.clip(np.minimum(evidence / needed, windows), 0.0, None)
    return alarms.tolist(), np.where(alarms, np.maximum(shares, 1.0), np.minimum(shares, 0.999)).tolist()


def _conclude(
    stream: JudgedStream, alarm: bool, share: float, start: float, settings: ShiftSettings
) -> tuple[AspectTrace, ColumnFinding]:
    """The trace of a stream after the window, and its finding."""
    row, state, assessment, column = stream.row, stream.state, stream.assessment, stream.column
    value, low, high, recent_high, allowed, effective, evidence, gain, detectable = (
        float(getattr(assessment, name)[row]) for name in assessment.__slots__
    )
    kept = column.trace.aspects.get(stream.aspect, AspectTrace())
    within = stream.judged and (high <= allowed or (recent_high <= allowed and gain < 0))
    inside = kept.inside + within if within or not stream.judged else 0
    failed = kept.failed or alarm
    if kept.failed and inside >= settings.rearm:
        failed, evidence = False, 0.0
        logs: tuple[float, ...] = ()
        support, share = 0, 0.0
    else:
        logs, support = tuple(state.logs[row].tolist()), int(state.support[row])
    since = None if evidence <= 0 and not failed else kept.since if kept.since is not None else start
    outcome = Outcome.FAILED if failed else Outcome.PASSED if within and evidence <= 0 else Outcome.INCONCLUSIVE
    enough = stream.judged or (effective > 0 and not column.trace.windows)
    finding = ColumnFinding(
        column.name,
        stream.aspect,
        outcome,
        value if enough else None,
        low if stream.judged else None,
        high if stream.judged else None,
        round(allowed, 6),
        max(share, 1.0) if failed else share if evidence > 0 else 0.0,
        column.rows,
        round(effective, 2),
        detectable if stream.judged else None,
        since,
        column.segment,
    )
    learning = "" if is_learned(column, 0, settings) else f"{len(column.trace.windows)}"
    return AspectTrace(logs, support, since, failed, inside if failed else 0), replace(
        finding, message=describe(finding, learning)
    )


def _next_columns(
    trace: ShiftTrace,
    columns: Sequence[CountedColumn],
    streams: Sequence[JudgedStream],
    aspects: Mapping[tuple[str, str, str], AspectTrace],
    phase: int,
    settings: ShiftSettings,
) -> Mapping[str, Mapping[str, ColumnTrace]]:
    """The columns' traces: a window joins the baseline of a column until that is complete, unless something of the
    column has evidence against it or lies surely beyond its margin."""
    from mlflowkit.judging.shift.detector import FADE

    suspect = set()
    for stream in streams:
        row, key = stream.row, (stream.column.segment, stream.column.name)
        beyond = stream.judged and stream.assessment.low[row] > stream.assessment.allowed[row]
        if beyond or stream.assessment.evidence[row] > 0:
            suspect.add(key)
    after = {segment: dict(kept) for segment, kept in trace.columns.items()}
    for column in columns:
        key, kept = (column.segment, column.name), column.trace
        windows = kept.windows
        if key not in suspect and column.rows and _grows(windows, phase, settings):
            windows = (*windows, BaselineWindow(column.counts, column.batches, phase))
        before = kept.recent or (0.0,) * len(column.counts)
        recent = tuple(FADE * old + new / column.batches for old, new in zip(before, column.counts, strict=True))
        recent_rows = FADE**2 * kept.recent_rows + column.rows / column.batches
        own = {str(name): aspects[*key, name] for name in ("distribution", *column.aspects())}
        after.setdefault(column.segment, {})[column.name] = ColumnTrace(windows, recent, recent_rows, own)
    return after


def _grows(windows: Sequence[BaselineWindow], phase: int, settings: ShiftSettings) -> bool:
    if settings.baseline == "season":
        return sum(window.phase == phase for window in windows) < settings.season_count
    return len(windows) < settings.baseline_windows


def _refused_columns(trace: ShiftTrace, window: WindowCounts) -> Iterator[CountedColumn]:
    """Requests refused for each reason, now or before, among all requests."""
    total = window.total.requests + sum(window.refused.values())
    for reason in sorted({*trace.refused, *window.refused}):
        hits = window.refused.get(reason, 0)
        kept = trace.refused.get(reason, ColumnTrace())
        counts = (total - hits, hits)
        yield CountedColumn("", reason, ColumnReference(Cells("text"), ()), counts, 1.0, kept, ())


def _missing_columns(reference: Reference, window: WindowCounts, settings: ShiftSettings) -> Iterator[ColumnFinding]:
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
        yield ColumnFinding(
            name,
            "distribution",
            Outcome.INCONCLUSIVE,
            None,
            None,
            None,
            margin,
            0.0,
            profile.rows,
            0.0,
            message=message,
        )
