"""One closed window: its counts are judged, the policy concludes, and the state is the one after it. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mlflowkit.judging.shift.column_cells import Cells
from mlflowkit.judging.shift.counts import Counts, WindowCounts
from mlflowkit.judging.shift.findings import ColumnFinding
from mlflowkit.judging.shift.reference import Reference
from mlflowkit.judging.shift.shift_comparison import measure_skew
from mlflowkit.judging.shift.shift_settings import LEARN, ColumnLimits, ShiftSettings
from mlflowkit.judging.shift.shift_test import advance as advance_shift
from mlflowkit.monitoring import monitor_policy
from mlflowkit.monitoring.monitor_alerts import OUTPUT
from mlflowkit.monitoring.monitor_policy import WindowFacts
from mlflowkit.monitoring.monitor_settings import LiveBaseline, MonitorSection, SeasonBaseline, seconds_of
from mlflowkit.monitoring.monitor_state import KEPT_POINTS, KEPT_WINDOWS, FindingKey, MonitorState
from mlflowkit.monitoring.monitor_view import BlindView, HistoryPoint, PerformanceView, WindowView
from mlflowkit.monitoring.monitor_windows import ClosedWindow, close, view_of
from mlflowkit.system.text import format_count, limited
from mlflowkit.values import Outcome

OUTLIER = "output.outlier"
PREDICTIONS = ("output.label", "output.prediction", "output.score")
KEPT_BY_COLUMNS = 60
"""Windows that are kept with all their columns, for an estimate of the error."""
BLIND_SHARE = 0.5
"""Share of the columns, by importance, in which nothing can be seen, from which a version is BLIND."""


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What a window is judged by, besides its counts.

    performance   the newest metrics; ``rollout``: one that is running, in words
    """

    section: MonitorSection
    reference: Reference
    rearm: int = 2
    performance: Sequence[PerformanceView] = ()
    rollout: str = ""

    @property
    def importance(self) -> Mapping[str, float]:
        """Importance by column, where it was measured and is asked for."""
        if self.section.importance == "none":
            return {}
        return {
            name: column.importance for name, column in self.reference.columns.items() if column.importance is not None
        }


def shift_settings(section: MonitorSection, rearm: int) -> ShiftSettings:
    """The shift test's settings of a recipe's section.

    >>> shift_settings(MonitorSection(margin=0.2), 3).limit("age", "distribution")
    0.2
    >>> outliers = {"kind": "isolation_forest", "max_share": 0.04}
    >>> shift_settings(MonitorSection.model_validate({"outliers": outliers}), 3).limit("output.outlier", "distribution")
    0.02
    """
    limits = {name: ColumnLimits(margin=section.predictions.margin) for name in PREDICTIONS}
    if section.outliers is not None:  # the packaged model calls the other half of the share outliers
        limits[OUTLIER] = ColumnLimits(margin=section.outliers.max_share / 2)
    for name in section.columns:
        own = section.limits(name)
        if own is not None:
            limits[name] = ColumnLimits(margin=own.margin, missing=own.missing, new=own.new_values)
    ignored = frozenset(name for name, value in section.columns.items() if value == "ignore")
    kind: Literal["live", "training", "season"] = section.baseline.kind
    settings = ShiftSettings(
        level=section.level, margin=section.margin, sustained=section.sustained, rearm=rearm,
        min_rows=float(section.min_rows), baseline=kind, limits=limits, ignored=ignored,
    )  # fmt: skip
    if isinstance(section.baseline, LiveBaseline):
        return replace(settings, baseline_windows=max(section.baseline.windows, LEARN))
    if isinstance(section.baseline, SeasonBaseline):
        period, count = seconds_of(section.baseline.period), section.baseline.count
        return replace(settings, season_seconds=period, season_count=count)
    return settings


def step(state: MonitorState, counts: WindowCounts, inputs: StepInputs, now: float) -> MonitorState:
    """The state after a closed window, with the notifications that follow in ``todo``."""
    cursor, window = close(state.cursor, counts, inputs.section.min_rows)
    state = replace(
        state,
        cursor=cursor,
        rows=state.rows + counts.total.rows,
        lost=state.lost + max(0, counts.lost),
        outputs=_with_outputs(state.outputs, counts, inputs.section),
    )
    if window.kind == "judged":
        state, facts = _judge(state, window, inputs)
    elif window.kind == "no_data":
        facts = _silent_facts(window)
    else:
        word = state.policy.word
        return replace(state, windows=_bounded((*state.windows, view_of(window, word))))
    policy, notifications = monitor_policy.advance(state.policy, facts, now, rearm=inputs.rearm)
    if window.kind == "judged" and not facts.learning and not state.skew_told:
        state, policy = replace(state, skew_told=True), _note_skew(state, policy, inputs, now)
    live = state.live if policy.episode else state.last
    return replace(
        state,
        policy=policy,
        windows=_bounded((*state.windows, view_of(window, policy.word))),
        live=live,
        todo=(*state.todo, *notifications),
    )


def _judge(state: MonitorState, window: ClosedWindow, inputs: StepInputs) -> tuple[MonitorState, WindowFacts]:
    counts = window.judged
    settings = shift_settings(inputs.section, inputs.rearm)
    trace, findings = advance_shift(state.trace, inputs.reference, counts, settings)
    last = replace(counts, segments={})
    live = last if state.live is None or not state.policy.episode else state.live + last
    state = replace(
        state,
        trace=trace,
        findings=tuple(item for item in findings if not item.segment or item.evidence > 0),
        history=_extended(state.history, findings, counts.start),
        training=training_distances(inputs.reference, counts),
        last=last,
        live=live,
    )
    requests = counts.total.requests + sum(counts.refused.values())
    rows, effective = counts.total.rows, counts.total.effective_rows
    blind = tuple(blind_columns(findings, inputs))
    facts = WindowFacts(
        counts.start,
        counts.start + counts.seconds,
        findings=findings,
        performance=inputs.performance,
        importance=inputs.importance,
        learning=learning_text(findings, inputs, trace.windows),
        blind=_blind_text(blind, inputs, findings),
        refused=sum(counts.refused.values()) / requests if requests else 0.0,
        rollout=inputs.rollout,
        message=f"{format_count(rows, 'row')} ({effective:,.0f} effective), everything within its margin",
    )
    return state, facts


def _with_outputs(
    windows: tuple[WindowCounts, ...], counts: WindowCounts, section: MonitorSection
) -> tuple[WindowCounts, ...]:
    """The windows from which performance is estimated: the model's answers, or all columns for an error by them."""
    estimated = section.performance.estimated
    by_columns = estimated is not None and estimated.metric in ("mae", "rmse")
    columns = {name: cells for name, cells in counts.total.columns.items() if by_columns or name.startswith(OUTPUT)}
    kept = replace(counts, total=replace(counts.total, columns=columns), segments={}, refused={})
    return (*windows, kept)[-(KEPT_BY_COLUMNS if by_columns else KEPT_WINDOWS) :]


def _silent_facts(window: ClosedWindow) -> WindowFacts:
    counts = window.judged
    rows, effective = counts.total.rows, counts.total.effective_rows
    hours = f"{counts.seconds:,.0f} s"
    text = f"{format_count(rows, 'row')} in {hours}" + (f", {effective:,.0f} effective" if rows else "")
    return WindowFacts(counts.start, counts.start + counts.seconds, judged=False, message=f"{text}: too few to judge")


def learning_text(findings: Sequence[ColumnFinding], inputs: StepInputs, windows: int) -> str:
    """Why nothing can be judged yet; "" once something can."""
    if not inputs.reference.columns:
        return "the bundle has no monitoring reference (it was packaged by an earlier release): run the recipe again"
    judged = [finding for finding in findings if finding.aspect != "type"]
    if any(finding.low is not None for finding in judged):
        return ""
    return f"{format_count(windows, 'window')} so far; columns are judged after {LEARN}"


def blind_columns(findings: Sequence[ColumnFinding], inputs: StepInputs) -> Iterator[BlindView]:
    """Columns in which the coming windows cannot show a shift of twice the margin, once they are judged at all."""
    if learning_text(findings, inputs, 0):
        return
    for finding in findings:
        if finding.aspect != "distribution" or finding.segment:
            continue
        if finding.detectable is None:
            yield BlindView(finding.column, None, finding.message)
        elif finding.detectable > 2 * max(finding.margin, 1e-9):
            text = (
                f"{finding.column}: shifts below {finding.detectable:.3g} cannot be seen with "
                f"{finding.effective_rows:,.0f} effective rows a window; twice the margin is {2 * finding.margin:.3g}"
            )
            yield BlindView(finding.column, finding.detectable, text)


def _blind_text(blind: Sequence[BlindView], inputs: StepInputs, findings: Sequence[ColumnFinding]) -> str:
    """Why a version is BLIND: most of what matters cannot be seen; "" if it can."""
    features = {
        finding.column
        for finding in findings
        if finding.aspect == "distribution" and not finding.segment and not finding.column.startswith(OUTPUT)
    }
    importance = inputs.importance
    weights = {name: importance.get(name, 0.0) if importance else 1.0 for name in features}
    total = math.fsum(weights.values()) or float(len(features))
    names = [column.column for column in blind if column.column in features]
    share = math.fsum(weights[name] for name in names) if sum(weights.values()) else float(len(names))
    if not features or share < BLIND_SHARE * total:
        return ""
    return f"shifts of twice the margin cannot be seen in {limited(sorted(names))}"


def training_distances(reference: Reference, counts: WindowCounts) -> dict[str, float]:
    """The distance of each column's rows from the training rows."""
    distances = {}
    for name, column in reference.columns.items():
        live = counts.total.columns.get(name, ())
        if len(live) == len(column.counts):
            distance = cell_distance(column.cells, column.counts, live)
            if distance is not None:
                distances[name] = distance
    return distances


def cell_distance(cells: Cells, first: Counts, second: Counts) -> float | None:
    """Kolmogorov and Smirnov's distance of counts in ordered cells, total variation in others, without missing values;
    None where one side has no value.

    >>> cell_distance(Cells("number", edges=(0.0, 1.0)), (0, 4, 0, 9), (0, 2, 2, 0))
    0.5
    """
    left, right = sum(first[:-1]), sum(second[:-1])
    if not left or not right:
        return None
    differences = [a / left - b / right for a, b in zip(first[:-1], second[:-1], strict=True)]
    if not cells.ordered:
        return round(math.fsum(map(abs, differences)) / 2, 6)
    reached, largest = 0.0, 0.0
    for difference in differences:
        reached += difference
        largest = max(largest, abs(reached))
    return round(largest, 6)


def _note_skew(
    state: MonitorState, policy: monitor_policy.PolicyState, inputs: StepInputs, now: float
) -> monitor_policy.PolicyState:
    """Note once how far the live baseline is from the training rows, with what its windows can show.

    A baseline of training rows has no skew of its own: its findings are these distances.
    """
    if inputs.section.baseline.kind == "training":
        return policy
    findings = [
        finding
        for finding in measure_skew(state.trace, inputs.reference, shift_settings(inputs.section, inputs.rearm))
        if finding.aspect == "distribution" and not finding.segment
    ]
    beyond = [finding for finding in findings if finding.outcome is Outcome.FAILED]
    within = sum(finding.outcome is Outcome.PASSED for finding in findings)
    undecided = len(findings) - len(beyond) - within
    if beyond:
        beyond.sort(key=lambda finding: -(finding.value or 0.0))
        names = limited([f"{it.column} {it.value:.3g} ({it.low:.3g} to {it.high:.3g})" for it in beyond])
        text = f"skew: live rows are shown to be beyond the margin from the training rows: {names}"
    elif findings:
        text = f"{within} of {format_count(len(findings), 'column')} are within their margin from the training rows"
    else:
        text = "how far live rows are from the training rows is not known: the bundle has no counts of them"
    if undecided:
        text += f"; {undecided} undecided by the rows so far"
    return monitor_policy.note(policy, text, now)


def _extended(
    history: Mapping[FindingKey, tuple[HistoryPoint, ...]], findings: Sequence[ColumnFinding], start: float
) -> dict[FindingKey, tuple[HistoryPoint, ...]]:
    """The history with the findings of a window; of segments only where there is evidence."""
    extended = dict(history)
    for finding in findings:
        key = (finding.column, str(finding.aspect), finding.segment)
        if finding.segment and key not in extended and finding.evidence <= 0:
            continue
        point = HistoryPoint(start, finding.value, finding.evidence)
        extended[key] = (*extended.get(key, ()), point)[-KEPT_POINTS:]
        if finding.segment and all(earlier.evidence <= 0 for earlier in extended[key]):
            del extended[key]
    return extended


def _bounded(windows: tuple[WindowView, ...]) -> tuple[WindowView, ...]:
    return windows[-KEPT_WINDOWS:]
