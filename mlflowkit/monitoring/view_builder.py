"""The record ``monitor/view.json`` from a monitor's state. Pure."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from mlflowkit.judging.shift.counts import ProfileCounts, WindowCounts
from mlflowkit.judging.shift.findings import ColumnFinding
from mlflowkit.judging.shift.reference import ColumnReference
from mlflowkit.monitoring.monitor_settings import LiveBaseline, MonitorSection, SeasonBaseline
from mlflowkit.monitoring.monitor_state import MonitorState
from mlflowkit.monitoring.monitor_view import (
    BlindView,
    ColumnView,
    MonitorView,
    PerformanceView,
    RetrainView,
    StateWord,
)
from mlflowkit.monitoring.window_step import StepInputs, blind_columns
from mlflowkit.system.text import format_count
from mlflowkit.values import Outcome

MAX_SEGMENT_FINDINGS = 200
"""Findings in segments that the record has; those with most evidence."""
MAX_BLIND = 100
SHOWN_WINDOWS = 200


def build_view(
    state: MonitorState,
    inputs: StepInputs,
    now: float,
    *,
    service: str,
    retrain: RetrainView | None = None,
    performance: Sequence[PerformanceView] = (),
    fault: str = "",
) -> MonitorView:
    """What readers are shown. The word is RETRAINING while a run for what has drifted is under way."""
    retrain = retrain or RetrainView()
    word: StateWord = state.policy.word
    if word == "DRIFTING" and retrain.state in ("checking", "running"):
        word = "RETRAINING"
    section = inputs.section
    return MonitorView(
        service,
        state.version,
        word,
        state.policy.since or now,
        state.windows[-SHOWN_WINDOWS:],
        tuple(_columns(state, inputs)),
        tuple(performance),
        tuple(alert.view() for alert in state.policy.alerts),
        retrain,
        state.policy.decisions,
        tuple(_blind(state, inputs))[:MAX_BLIND],
        now,
        section.window_seconds,
        summary(section, state, word, retrain),
        fault,
        baseline_text(section, state),
        state.rows,
        state.lost,
    )


def summary(section: MonitorSection, state: MonitorState, word: StateWord, retrain: RetrainView) -> str:
    """The state in a sentence: what it is, since when, why, what was done and why not more."""
    policy = state.policy
    if not state.windows:
        return "no window has closed yet"
    last = next((line.text for line in reversed(policy.decisions) if line.text.startswith(f"{policy.word}: ")), "")
    parts = [f"{word} since {utc(policy.since)}: {last.partition(': ')[2]}" if last else f"{word} {utc(policy.since)}"]
    worst = min(
        (alert for alert in policy.active if alert.episode == policy.episode),
        key=lambda alert: (bool(alert.inhibited_by), alert.since),
        default=None,
    )
    if worst is not None and word in ("DRIFTING", "RETRAINING"):
        parts = [f"{word} since {utc(policy.since)}: {worst.message}; it began {utc(worst.since)}"]
        others = len(policy.active) - 1
        if others:
            parts.append(f"{format_count(others, 'other alert')}")
        parts.append(_raised(section) if policy.notified else "no alert raised yet")
        if retrain.state != "off":
            parts.append(retrain.reason or f"retraining: {retrain.state}")
    return "; ".join(part for part in parts if part)


def _raised(section: MonitorSection) -> str:
    """Who an alert is for: what is raised for nobody is not called sent."""
    receivers = len(section.alerts.webhooks) + (section.alerts.alertmanager is not None)
    if not receivers:
        return "alert raised, but monitor.alerts names no receiver"
    return f"alert raised for {format_count(receivers, 'receiver')}"


def utc(seconds: float) -> str:
    """A time in UTC, to the second.

    >>> utc(1_764_000_000.0)
    '2025-11-24 16:00:00'
    """
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))


def baseline_text(section: MonitorSection, state: MonitorState) -> str:
    """What windows are compared with, in words."""
    baseline = section.baseline
    if isinstance(baseline, LiveBaseline):
        columns = state.trace.columns.get("", {}).values()
        windows = max((len(column.windows) for column in columns), default=0)
        return f"the version's own first {baseline.windows} windows ({min(windows, baseline.windows)} so far)"
    if isinstance(baseline, SeasonBaseline):
        return f"the windows at the same time of up to {baseline.count} periods of {baseline.period}"
    return "the training rows"


def _columns(state: MonitorState, inputs: StepInputs) -> Iterator[ColumnView]:
    own = [finding for finding in state.findings if not finding.segment]
    parts = [
        finding
        for finding in state.findings
        if finding.segment and (finding.evidence > 0 or finding.outcome is Outcome.FAILED)
    ]
    parts.sort(key=lambda finding: -finding.evidence)
    importance = inputs.importance
    for finding in (*own, *parts[:MAX_SEGMENT_FINDINGS]):
        reference = inputs.reference.columns.get(finding.column)
        new, missing = _shares(state.last, finding, reference)
        yield ColumnView.of(
            finding,
            importance=importance.get(finding.column),
            new=new,
            missing=missing,
            training=state.training.get(finding.column) if not finding.segment else None,
            history=state.history.get((finding.column, str(finding.aspect), finding.segment), ()),
        )


def _shares(
    last: WindowCounts | None, finding: ColumnFinding, reference: ColumnReference | None
) -> tuple[float | None, float | None]:
    """The shares of new and of missing values of a column in the last judged window."""
    profile = ProfileCounts() if last is None or finding.segment else last.total
    counts = profile.columns.get(finding.column, ())
    if reference is None or len(counts) != len(reference.counts) or not sum(counts):
        return None, None
    new = counts[-2] / sum(counts) if reference.cells.kind == "text" else None
    return None if new is None else round(new, 6), round(counts[-1] / sum(counts), 6)


def _blind(state: MonitorState, inputs: StepInputs) -> Iterator[BlindView]:
    return blind_columns(state.findings, inputs)
