"""What retraining is decided by, from the record that the monitor writes for its readers. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from mlflowkit.judging.shift.counts import WindowCounts
from mlflowkit.monitoring.monitor_settings import RetrainSection, seconds_of
from mlflowkit.monitoring.monitor_view import AlertView, MonitorView, PerformanceView
from mlflowkit.monitoring.retrain.retrain_driver import RetrainSituation
from mlflowkit.monitoring.retrain.retrain_policy import (
    AlarmKind,
    ColumnAlarm,
    PerformanceFinding,
    RetrainTerms,
    Trust,
)
from mlflowkit.values import Outcome, Variant

KINDS: Mapping[str, AlarmKind] = {
    "drift": "distribution", "missing": "missing", "new_values": "new", "range": "range", "type": "type",
    "schema": "schema", "unit": "unit",
}  # fmt: skip
"""Kinds of the monitor's alerts that are about columns. Alerts about predictions say nothing of the rows."""


def terms_of(section: RetrainSection) -> RetrainTerms:
    """The terms of a recipe's ``retrain`` section.

    >>> terms_of(RetrainSection(cooldown="2h")).cooldown
    7200.0
    """
    return RetrainTerms(
        on=tuple(section.on),
        importance=section.importance,
        changed_data=section.data == "changed",
        helps=section.helps,
        budget_runs=section.budget.runs,
        budget_seconds=seconds_of(section.budget.per),
        cooldown=seconds_of(section.cooldown),
        rearm=section.rearm,
        failures=section.failures,
    )


def merged_overrides(run: tuple[str, ...], retrain: list[str]) -> tuple[str, ...]:
    """The overrides of the champion's run, then those of ``retrain`` that it lacks.

    >>> merged_overrides(("seed=3", "+rollout=canary"), ["+rollout=canary", "train.epochs=9"])
    ('seed=3', '+rollout=canary', 'train.epochs=9')
    """
    return (*run, *(override for override in retrain if override not in run))


def situation_of(
    view: MonitorView,
    champion: Variant,
    live: WindowCounts | None = None,
    *,
    probation: Outcome | None = None,
    probation_message: str = "",
) -> RetrainSituation:
    """What the monitor knows of a champion, as the policy takes it. A view of another version says nothing of it.

    Alerts count until they are resolved, also where nobody is notified of them (acknowledged, silenced).
    """
    if view.version != champion.version:
        return RetrainSituation(champion, probation=probation, probation_message=probation_message)
    importance = {column.column: column.importance for column in view.columns if column.importance is not None}
    alerts = [alert for alert in view.alerts if alert.state != "resolved"]
    return RetrainSituation(
        champion,
        view.windows[-1].start if view.windows else None,
        tuple(_alarm(alert, importance) for alert in alerts if alert.kind in KINDS),
        tuple(_performance(finding, alerts) for finding in view.performance),
        healthy_windows(view),
        live,
        {
            column.column: column.rows / column.effective_rows
            for column in view.columns
            if not column.segment and column.aspect == "distribution" and column.effective_rows > 0
        },
        probation,
        probation_message,
    )


def healthy_windows(view: MonitorView) -> int:
    """Closed windows in a row, up to the newest, after which the monitor was HEALTHY; 0 while an alert is active."""
    if any(alert.state != "resolved" and (alert.kind in KINDS or alert.kind == "performance") for alert in view.alerts):
        return 0
    count = 0
    for window in reversed(view.windows):
        if window.state != "HEALTHY":
            break
        count += 1
    return count


def _alarm(alert: AlertView, importance: Mapping[str, float]) -> ColumnAlarm:
    return ColumnAlarm(alert.column, KINDS[alert.kind], alert.since, importance.get(alert.column), alert.message)


def _performance(finding: PerformanceView, alerts: list[AlertView]) -> PerformanceFinding:
    """A metric with the beginning of its alert, so that its episode keeps its id in later windows."""
    trusts: tuple[Trust, ...] = get_args(Trust)
    trust: Trust = next((word for word in trusts if word == finding.trust), "UNKNOWN")
    since = min((alert.since for alert in alerts if alert.kind == "performance"), default=finding.start)
    kind: Literal["realised", "estimated"] = "realised" if finding.kind == "realised" else "estimated"
    outcome = Outcome(finding.verdict) if finding.verdict in set(Outcome) else Outcome.INCONCLUSIVE
    return PerformanceFinding(finding.metric, kind, outcome, trust, since, finding.message)
