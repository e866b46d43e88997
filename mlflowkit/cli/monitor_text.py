"""What a monitor knows, as text for people and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from mlflowkit.monitoring.monitor_view import MonitorView
from mlflowkit.monitoring.view_builder import utc
from mlflowkit.system.text import format_count

if TYPE_CHECKING:
    from mlflowkit.monitoring.monitor_view import AlertView, ColumnView

FAILED, INCONCLUSIVE = 1, 4
EXIT_CODES: Mapping[str, int] = {"HEALTHY": 0, "DRIFTING": FAILED, "RETRAINING": FAILED}
"""Exit code by state; any other is INCONCLUSIVE."""
SHOWN_COLUMNS, SHOWN_DECISIONS = 10, 10
STALE_SECONDS = 60.0
"""Age of the record from which the monitor counts as not running; it writes every ten seconds."""


def exit_code(view: MonitorView, now: float) -> int:
    """0 healthy, 1 something FAILED, 4 it is not known.

    >>> [exit_code(MonitorView("s", "v", word, 0.0, updated=9.0), 10.0) for word in ("HEALTHY", "DRIFTING", "NO_DATA")]
    [0, 1, 4]
    >>> exit_code(MonitorView("s", "v", "HEALTHY", 0.0, updated=9.0), 1000.0)
    4
    """
    code = EXIT_CODES.get(view.state, INCONCLUSIVE)
    return INCONCLUSIVE if code == 0 and stale_text(view, now) else code


def stale_text(view: MonitorView, now: float) -> str:
    """That nothing was looked at for long; "" where the monitor is at work."""
    age = now - view.updated
    if age <= STALE_SECONDS:
        return ""
    return f"nothing was looked at for {age:,.0f} s: the controller is not running (mlkit status; mlkit up RECIPE)"


def document(view: MonitorView, now: float) -> dict[str, Any]:
    """The record with what is handy for scripts: distances with their interval, rows, and whether it is stale."""
    value: dict[str, Any] = dict(view.to_json())
    for column in value["columns"]:
        column["distance"] = [column["low"], column["value"], column["high"]]
        column["n"], column["n_eff"] = column["rows"], column["effective_rows"]
    return {**value, "stale": bool(stale_text(view, now)), "exit_code": exit_code(view, now)}


def lines(view: MonitorView, now: float) -> Iterator[str]:
    """The monitor of a service, for a terminal or a log."""
    yield f"{view.service}  {view.state}  version {view.version}"
    yield f"  {view.message}"
    for problem in filter(None, (stale_text(view, now), view.fault)):
        yield f"  problem  {problem}"
    yield from _windows(view)
    for alert in view.alerts:
        if alert.state != "resolved":
            yield f"  alert  {_alert(alert)}"
    yield from _columns(view)
    for metric in view.performance:
        yield f"  {metric.kind}  {metric.message or metric.metric}"
    if view.retrain.state != "off":
        left = "" if view.retrain.budget_left is None else f", {view.retrain.budget_left} left of the budget"
        yield f"  retrain  {view.retrain.state}{left}: {view.retrain.reason}"
    for blind in view.blind[:SHOWN_COLUMNS]:
        yield f"  blind  {blind.message}"
    if len(view.blind) > SHOWN_COLUMNS:
        yield f"  blind  and {format_count(len(view.blind) - SHOWN_COLUMNS, 'other column')}"
    for decision in view.decisions[-SHOWN_DECISIONS:]:
        yield f"  {utc(decision.time)}  {decision.text}"


def _windows(view: MonitorView) -> Iterator[str]:
    if not view.windows:
        yield f"  windows  none of {view.window_seconds:g} s closed yet"
        return
    last = view.windows[-1]
    refused = f", {format_count(last.refused, 'request')} refused" if last.refused else ""
    yield (
        f"  window  {utc(last.start)} + {last.seconds:g} s: {format_count(last.rows, 'row')}, {last.lost:,} lost of "
        f"{last.answered:,} answered{refused}"
    )
    yield f"  rows  {view.rows_total:,} in profiles and {view.lost_total:,} lost since this version answers"
    yield f"  baseline  {view.baseline}"


def _alert(alert: AlertView) -> str:
    until = f" until {utc(alert.until)}" if alert.until is not None else ""
    inhibited = f" (not sent: {alert.inhibited_by})" if alert.inhibited_by else ""
    return f"{alert.id}  {alert.severity}  {alert.state}{until}  {alert.message}, since {utc(alert.since)}{inhibited}"


def _columns(view: MonitorView) -> Iterator[str]:
    """The columns with most evidence, or else how many are within their margin."""
    suspect = [column for column in view.columns if column.evidence > 0 or column.verdict == "FAILED"]
    suspect.sort(key=lambda column: (-column.evidence, column.key))
    for column in suspect[:SHOWN_COLUMNS]:
        yield f"  {column.verdict}  {column.message}"
    names = {column.column for column in view.columns} - {column.column for column in suspect}
    if names:
        yield f"  {format_count(len(names), 'column')} without evidence of a change"


def explained(view: MonitorView, name: str) -> Iterator[str]:
    """One column, window by window."""
    for column in view.columns:
        if column.column == name:
            yield from _explained(column)


def _explained(column: ColumnView) -> Iterator[str]:
    where = f" where {column.segment}" if column.segment else ""
    yield f"{column.column}{where}: {column.aspect}  {column.verdict}"
    yield f"  {column.message}"
    facts = {
        "importance": _percent(column.importance),
        "missing": _percent(column.missing),
        "new": _percent(column.new),
        "distance from the training rows": None if column.training is None else f"{column.training:.3g}",
        "smallest visible distance": None if column.detectable is None else f"{column.detectable:.3g}",
    }
    for fact, text in facts.items():
        if text is not None:
            yield f"  {fact}  {text}"
    for point in column.history:
        value = "not judged" if point.value is None else f"{point.value:.4g}"
        evidence = f"  evidence {100 * point.evidence:.0f} %" if point.evidence > 0 else ""
        yield f"  {utc(point.start)}  {value} (margin {column.margin:.3g}){evidence}"


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.3g} %"
