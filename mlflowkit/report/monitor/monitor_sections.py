"""The parts of a monitor's page as values for the templates, from its `MonitorView`. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlencode

from mlflowkit.monitoring.monitor_view import AlertView, ColumnView, MonitorView, PerformanceView, WindowView
from mlflowkit.report import charts, formatting
from mlflowkit.report.monitor.heat_map import MAX_WINDOWS, HeatCell, heat_row, legend_items
from mlflowkit.report.monitor.live_cells import CellCounts
from mlflowkit.report.run.data_views import View
from mlflowkit.system.text import format_count, shell_word

STATES: Mapping[str, tuple[str, str, str]] = {
    "LEARNING": ("learning", "go", "The baseline is learned from live windows; nothing is judged against it yet."),
    "HEALTHY": ("healthy", "ok", "Every column that can be judged is within its margin, as far as the evidence goes."),
    "SUSPECT": ("suspect", "warn", "Evidence of a shift grows, but no window alone decides."),
    "DRIFTING": ("drifting", "bad", "A shift lasts: it is beyond its margin over several windows."),
    "RETRAINING": ("retraining", "go", "A shift lasts, and a new version is being trained."),
    "NO_DATA": ("no data", "warn", "No window has enough rows to judge. This does not mean that all is well."),
    "BLIND": ("blind", "warn", "Windows have too few effective rows: a shift of twice the margin could not be seen."),
}
"""Text, tone and meaning of each state."""
TONES = {"PASSED": "ok", "FAILED": "bad", "INCONCLUSIVE": "warn"}
ORDER = {"FAILED": 0, "INCONCLUSIVE": 1, "PASSED": 2}
OPEN_ROWS = 30
"""Rows of the heat map that are shown at once; the others are folded."""
MAX_ROWS = 200
MAX_DECISIONS = 100
MAX_BLIND = 50
MAX_ALERTS = 50
MAX_TABLE_WINDOWS = 30


@dataclass(frozen=True, slots=True)
class Selection:
    """The cell that a reader has chosen: a column in a segment, in the window that starts at ``window``."""

    column: str = ""
    segment: str = ""
    window: float | None = None

    def query(self) -> str:
        """The selection as the query of the page's address."""
        parts = {"column": self.column}
        if self.segment:
            parts["segment"] = self.segment
        if self.window is not None:
            parts["window"] = f"{self.window:.3f}".rstrip("0").rstrip(".")
        return "?" + urlencode(parts)


def monitor_head(view: MonitorView) -> View:
    """Name, state with its meaning, and the key figures."""
    text, tone, meaning = STATES.get(view.state, (view.state.lower(), "off", ""))
    return {
        "service": view.service,
        "version": view.version,
        "badge": text,
        "tone": tone,
        "since": f"since {formatting.moment(view.since)}",
        "sentence": view.message or meaning,
        "meaning": meaning if view.message else "",
        "baseline": view.baseline,
        "fault": view.fault,
        "updated": formatting.moment(view.updated),
        "tiles": _tiles(view),
    }


def _tiles(view: MonitorView) -> list[View]:
    verdicts = [column.verdict for column in view.columns]
    failed, undecided = verdicts.count("FAILED"), verdicts.count("INCONCLUSIVE")
    rows = [("Findings", formatting.number(len(verdicts)), f"{failed} FAILED, {undecided} INCONCLUSIVE")]
    if view.windows:
        last = view.windows[-1]
        rows.append(("Rows of the last window", formatting.number(last.rows), f"of {formatting.seconds(last.seconds)}"))
    lost = view.lost_total or sum(window.lost for window in view.windows)
    total = view.rows_total or sum(window.rows for window in view.windows)
    rows.append(("Rows judged", formatting.number(total), f"{formatting.number(lost)} lost on the way"))
    firing = sum(alert.state == "firing" for alert in view.alerts)
    rows.append(("Alerts", str(firing), f"firing, of {format_count(len(view.alerts), 'alert')}"))
    if view.retrain.state != "off":
        left = view.retrain.budget_left
        budget = "" if left is None else f"{format_count(left, 'run')} left in the budget"
        rows.append(("Retraining", view.retrain.state, budget))
    return [{"name": name, "value": value, "small": small} for name, value, small in rows]


def name_of(column: ColumnView) -> str:
    """A finding's name for people.

    >>> name_of(ColumnView("age", "missing", "country=DE", "PASSED", 0.0, 0.0, 0.1, 0.05, 0.0, 9, 9.0))
    'age, missing, where country=DE'
    """
    aspect = "" if column.aspect == "distribution" else f", {column.aspect}"
    return f"{column.column}{aspect}{f', where {column.segment}' if column.segment else ''}"


def ranked(columns: Sequence[ColumnView]) -> list[ColumnView]:
    """Findings by what needs attention: FAILED first, then by evidence, then by importance."""
    return sorted(
        columns,
        key=lambda column: (ORDER.get(column.verdict, 1) != 0, -(column.evidence or 0.0), -(column.importance or 0.0)),
    )


def is_drawn(column: ColumnView) -> bool:
    """Whether a finding has a row of its own: distributions of all rows always, others when they are near a margin."""
    if column.aspect == "distribution" and not column.segment:
        return True
    beyond = any(point.value is not None and point.value > column.margin for point in column.history)
    return column.verdict == "FAILED" or beyond


def heat_view(view: MonitorView, address: Callable[[Selection], str], *, live: bool) -> View | None:
    """The heat map. ``address`` gives a cell's link; a ``live`` page has the values of all cells, for its script."""
    starts = [window.start for window in view.windows][-MAX_WINDOWS:]
    if not starts or not view.columns:
        return None
    drawn = [column for column in ranked(view.columns) if is_drawn(column)]
    rows = [_heat_row_view(column, starts, address) for column in drawn[:MAX_ROWS]]
    return {
        "rows": rows[:OPEN_ROWS],
        "folded": rows[OPEN_ROWS:],
        "left_out": max(0, len(drawn) - MAX_ROWS),
        "within": len(view.columns) - len(drawn),
        "starts": ",".join(f"{start:g}" if start < 1e6 else f"{start:.3f}".rstrip("0").rstrip(".") for start in starts),
        "first": formatting.moment(starts[0]),
        "last": formatting.moment(starts[-1]),
        "legend": [{"level": level, "text": text} for level, text in legend_items()],
        "windows": len(starts),
        "live": live,
    }


def _heat_row_view(column: ColumnView, starts: Sequence[float], address: Callable[[Selection], str]) -> View:
    cells = {point.start: HeatCell(point.value, column.margin) for point in column.history}
    values = [cells[start].value if start in cells else None for start in starts]
    last = max((start for start in starts if start in cells), default=None)
    return {
        "name": name_of(column),
        "svg": heat_row(cells, starts),
        "heat": ",".join("" if value is None else f"{value:.3g}" for value in values),
        "href": address(Selection(column.column, column.segment, last)),
        "verdict": column.verdict,
        "tone": TONES.get(column.verdict, "warn"),
        "value": formatting.number(column.value, 3),
        "margin": formatting.number(column.margin, 3),
        "importance": formatting.share(column.importance) if column.importance is not None else "",
    }


def finding_rows(columns: Sequence[ColumnView]) -> list[View]:
    """The findings of one column, as rows of a table."""
    return [
        {
            "aspect": column.aspect,
            "segment": column.segment,
            "verdict": column.verdict,
            "tone": TONES.get(column.verdict, "warn"),
            "interval": formatting.interval({"value": column.value, "low": column.low, "high": column.high}),
            "margin": formatting.number(column.margin, 3),
            "evidence": formatting.number(column.evidence, 3),
            "rows": formatting.number(column.rows),
            "effective": formatting.number(column.effective_rows, 3),
            "growing": "" if column.since is None else formatting.moment(column.since),
            "message": column.message,
        }
        for column in columns
    ]


def detail_view(
    view: MonitorView, selection: Selection, counts: CellCounts | None, address: Callable[[Selection], str] | None
) -> View | None:
    """The chosen column in the chosen window: its findings, and both histograms cell by cell."""
    findings = [column for column in view.columns if column.column == selection.column]
    if not findings:
        return None
    chosen = [column for column in findings if column.segment == selection.segment] or findings
    window = next((window for window in view.windows if window.start == selection.window), None)
    importance = next((column.importance for column in findings if column.importance is not None), None)
    training = next((column.training for column in chosen if column.training is not None), None)
    return {
        "title": selection.column + (f", where {selection.segment}" if selection.segment else ""),
        "window": "" if window is None else _window_text(window),
        "findings": finding_rows(ranked(chosen)),
        "importance": "" if importance is None else formatting.share(importance),
        "training": "" if training is None else formatting.number(training, 3),
        "cells": [] if counts is None else cell_rows(counts),
        "totals": "" if counts is None or counts.problem else _totals(counts),
        "problem": "" if counts is None else counts.problem,
        "steps": [] if address is None or window is None else _neighbours(view, selection, address),
        "history": _history_figure(chosen),
    }


def _window_text(window: WindowView) -> str:
    return f"window of {formatting.seconds(window.seconds)} from {formatting.moment(window.start)}"


def _totals(counts: CellCounts) -> str:
    reference, live = (formatting.number(rows) for rows in (counts.reference_rows, counts.live_rows))
    return f"{reference} rows of the reference, {live} live rows"


def _neighbours(view: MonitorView, selection: Selection, address: Callable[[Selection], str]) -> list[View]:
    """Links to the windows before and after."""
    starts = [window.start for window in view.windows]
    place = starts.index(selection.window) if selection.window in starts else -1
    links: list[View] = []
    for step, text in ((-1, "◂ window before"), (1, "window after ▸")):
        if 0 <= place + step < len(starts) and place >= 0:
            other = Selection(selection.column, selection.segment, starts[place + step])
            links.append({"href": address(other), "text": text})
    return links


def cell_rows(counts: CellCounts) -> list[View]:
    """Rows of the table of both histograms; bars are relative to the largest share."""
    shares = [
        (cell.reference / max(1, counts.reference_rows), cell.live / max(1, counts.live_rows)) for cell in counts.cells
    ]
    largest = max((share for pair in shares for share in pair), default=0.0) or 1.0
    rows: list[View] = []
    for cell, (before, now) in zip(counts.cells, shares, strict=True):
        rows.append(
            {
                "name": cell.name,
                "reference": formatting.share(before),
                "live": formatting.share(now) if counts.live_rows else formatting.NONE,
                "svg": _pair_bar(before / largest, now / largest),
                "moved": abs(now - before) > 0.05 and bool(counts.live_rows),
            }
        )
    return rows


def _pair_bar(before: float, now: float) -> str:
    return (
        '<svg class="pair" height="18" aria-hidden="true">'
        f'<rect class="s0" y="1" width="{100 * before:.1f}%" height="7"/>'
        f'<rect class="s1" y="10" width="{100 * now:.1f}%" height="7"/></svg>'
    )


def _history_figure(findings: Sequence[ColumnView]) -> View | None:
    """The distance of each aspect over the windows, against the margin of the first."""
    shown = [column for column in ranked(findings) if len(column.history) > 1][:4]
    if not shown:
        return None
    origin = min(column.history[0].start for column in shown)
    span = max(column.history[-1].start for column in shown) - origin
    units = (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0))
    unit, seconds = next((pair for pair in units if span > 2 * pair[1]), ("seconds", 1.0))
    layers: list[charts.Layer] = [charts.Level("margin", shown[0].margin, "bad")]
    tops = [shown[0].margin]
    for number, column in enumerate(shown):
        x = [(point.start - origin) / seconds for point in column.history]
        y = [float("nan") if point.value is None else point.value for point in column.history]
        tops += [value for value in y if value == value]
        layers.append(charts.Line(name_of(column), x, y, number))
    label = f"{name_of(shown[0])}: distance over {len(shown[0].history)} windows, margin {shown[0].margin:g}"
    return charts.figure(
        "Distance over the windows",
        layers,
        note=f"Counted from {formatting.moment(origin)}; a gap is a window that could not be judged.",
        label=label,
        x_label=unit,
        y_label="distance",
        x_domain=(0.0, max(span / seconds, 1e-9)),
        y_domain=(0.0, 1.15 * max(tops) or 1.0),
    )


def performance_view(metrics: Sequence[PerformanceView]) -> View | None:
    """Estimated and realised performance: one row each, with its interval against its bound."""
    if not metrics:
        return None
    groups = []
    for metric in dict.fromkeys(item.metric for item in metrics):
        rows = [item for item in metrics if item.metric == metric]
        bounds = [_bound(item) for item in rows]
        domain = charts.forest_domain([bound for bound in bounds if bound is not None])
        views = [_metric_row(item, bound, domain) for item, bound in zip(rows, bounds, strict=True)]
        groups.append({"metric": metric, "rows": views, "axis": charts.forest_axis(domain)})
    return {"groups": groups}


def _bound(metric: PerformanceView) -> charts.Bound | None:
    if metric.value is None:
        return None
    low = metric.value if metric.low is None else metric.low
    high = metric.value if metric.high is None else metric.high
    direction = "max" if metric.kind in ("latency", "errors") or _lower_is_better(metric.metric) else "min"
    return charts.Bound(low, metric.value, high, metric.bound, direction, metric.verdict)


def _lower_is_better(metric: str) -> bool:
    from mlflowkit.judging.metrics import lower_is_better

    return lower_is_better(metric)


def _metric_row(metric: PerformanceView, bound: charts.Bound | None, domain: charts.Domain) -> View:
    interval = formatting.interval({"value": metric.value, "low": metric.low, "high": metric.high})
    label = f"{metric.metric}, {metric.kind}: {interval}, bound {formatting.number(metric.bound)}"
    return {
        "kind": metric.kind,
        "verdict": metric.verdict,
        "tone": TONES.get(metric.verdict, "warn"),
        "svg": "" if bound is None else charts.forest_row(bound, domain, label),
        "interval": interval,
        "bound": formatting.number(metric.bound),
        "trust": metric.trust,
        "reference": "" if metric.reference is None else formatting.number(metric.reference),
        "labelled": "" if metric.labelled_share is None else formatting.share(metric.labelled_share),
        "message": metric.message,
    }


def alerts_view(view: MonitorView) -> View | None:
    """Alerts, firing ones first, with the commands that acknowledge and silence them."""
    if not view.alerts:
        return None
    states: tuple[str, ...] = ("firing", "acked", "silenced", "resolved")
    order = sorted(view.alerts, key=lambda alert: (states.index(alert.state), -alert.since))
    return {"rows": [_alert_row(view.service, alert) for alert in order[:MAX_ALERTS]], "more": len(order) - MAX_ALERTS}


def _alert_row(service: str, alert: AlertView) -> View:
    tone = {"firing": "bad", "acked": "warn", "silenced": "off", "resolved": "ok"}.get(alert.state, "off")
    commands = alert_commands(service, alert) if alert.state in ("firing", "acked") else []
    return {
        "id": alert.id,
        "state": alert.state,
        "tone": "warn" if tone == "bad" and alert.severity == "info" else tone,
        "kind": alert.kind.replace("_", " "),
        "column": _alert_place(alert),
        "until": "" if alert.until is None else formatting.moment(alert.until),
        "resolved": "" if alert.resolved is None else formatting.moment(alert.resolved),
        "inhibited": alert.inhibited_by,
        "severity": alert.severity,
        "since": formatting.moment(alert.since),
        "message": alert.message,
        "commands": commands,
    }


def _alert_place(alert: AlertView) -> str:
    """The column of an alert with its segment; of performance, the metric and how it is known."""
    if not alert.segment:
        return alert.column
    return f"{alert.column}, {'' if alert.kind == 'performance' else 'where '}{alert.segment}"


def alert_commands(service: str, alert: AlertView) -> list[str]:
    """Commands that can be copied."""
    name, place = shell_word(alert.id), shell_word(service)
    acknowledge = [] if alert.state == "acked" else [f"mlkit monitor ack {name} --service {place}"]
    return [*acknowledge, f"mlkit monitor silence {name} --for 2d --service {place}"]


def retrain_view(view: MonitorView) -> View | None:
    """What became of retraining, with its runs."""
    retrain = view.retrain
    if retrain.state == "off" and not retrain.runs:
        return None
    facts = [("State", retrain.state)]
    facts += [("Why", retrain.reason)] if retrain.reason else []
    facts += [("Episode", retrain.episode)] if retrain.episode else []
    facts += [] if retrain.budget_left is None else [("Budget left", format_count(retrain.budget_left, "run"))]
    keys = list(dict.fromkeys(key for run in retrain.runs for key in run))[:8]
    rows = [[_run_value(key, run.get(key)) for key in keys] for run in retrain.runs]
    return {"facts": facts, "keys": [key.replace("_", " ") for key in keys], "rows": rows}


def _run_value(key: str, value: object) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        is_time = value > 1e8 and key in ("time", "started", "finished", "ended", "begun", "since")
        return formatting.moment(value) if is_time else formatting.number(value)
    return formatting.NONE if value is None else str(value)


def decisions_view(view: MonitorView) -> View | None:
    """The decision log, newest first."""
    if not view.decisions:
        return None
    order = sorted(view.decisions, key=lambda decision: -decision.time)
    rows = [{"time": formatting.moment(one.time), "text": one.text} for one in order[:MAX_DECISIONS]]
    return {"rows": rows, "more": max(0, len(order) - MAX_DECISIONS)}


def blind_view(view: MonitorView) -> View | None:
    """What could not be seen."""
    if not view.blind:
        return None
    rows = [
        {"column": one.column, "detectable": formatting.number(one.detectable, 3), "message": one.message}
        for one in view.blind[:MAX_BLIND]
    ]
    return {"rows": rows, "more": max(0, len(view.blind) - MAX_BLIND)}


def windows_view(view: MonitorView) -> View | None:
    """Rows, and rows that were lost, by window."""
    if not view.windows:
        return None
    last = list(reversed(view.windows[-MAX_TABLE_WINDOWS:]))
    rows = [
        {
            "start": formatting.moment(window.start),
            "seconds": formatting.seconds(window.seconds),
            "rows": formatting.number(window.rows),
            "answered": formatting.number(window.answered),
            "lost": formatting.number(window.lost),
            "losing": window.lost != 0,
            "state": window.state.replace("_", " ").lower(),
        }
        for window in last
    ]
    heights = [float(window.rows) for window in view.windows[-MAX_WINDOWS:]]
    label = f"Rows of the last {len(heights)} windows, {min(heights):,.0f} to {max(heights):,.0f}"
    return {"rows": rows, "spark": charts.spark(heights, label), "older": max(0, len(view.windows) - len(rows))}
