"""A Grafana dashboard of monitoring: the metrics of the admin page and of the gateway, for one service at a time.

It is Grafana's own JSON (schema version 39, Grafana 10.4 and later), to be imported as it is: the data source and the
service are variables of the dashboard.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from mlflowkit.monitoring.export.alert_rules import DOORS
from mlflowkit.monitoring.export.monitor_metrics import STATES
from mlflowkit.values import Json

UID = "mlflowkit-monitoring"
WIDTH = 24
"""Columns of Grafana's grid."""
STATE_COLOURS = ("blue", "green", "yellow", "red", "purple", "dark-orange", "orange")
"""Of STATES, in their order."""
SOURCE = {"type": "prometheus", "uid": "${source}"}
S = 'service="$service"'


@dataclass(frozen=True, slots=True)
class DashboardPanel:
    """A panel: its queries are pairs of an expression and the legend of its series."""

    title: str
    kind: str
    queries: tuple[tuple[str, str], ...]
    width: int = 12
    height: int = 8
    unit: str = "short"
    text: str = ""
    instant: bool = False
    defaults: dict[str, Json] = field(default_factory=dict)
    options: dict[str, Json] = field(default_factory=dict)


def dashboard() -> Json:
    """The dashboard, as Grafana imports it."""
    return {
        "uid": UID,
        "title": "mlflowkit monitoring",
        "tags": ["mlflowkit"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-7d", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [_source_variable(), _service_variable()]},
        "annotations": {"list": list(_annotations())},
        "panels": list(_placed(_panels())),
    }


def expressions(document: Json) -> list[str]:
    """Every PromQL expression of a dashboard, with ``$service`` in place."""
    queries = [target["expr"] for panel in document["panels"] for target in panel["targets"]]
    return queries + [annotation["expr"] for annotation in document["annotations"]["list"] if "expr" in annotation]


def _panels() -> Sequence[DashboardPanel]:
    return (*_state_panels(), *_column_panels(), *_performance_panels(), *_window_panels(), *_retrain_panels())


def _state_panels() -> list[DashboardPanel]:
    numbered = " + ".join(
        f'{number} * max(mlkit_monitor_state{{{S},state="{state}"}})' for number, state in enumerate(STATES)
    )
    mappings = {
        str(number): {"text": state, "color": colour, "index": number}
        for number, (state, colour) in enumerate(zip(STATES, STATE_COLOURS, strict=True))
    }
    return [
        DashboardPanel(
            "State", "state-timeline", ((numbered, "state"),), WIDTH, 4,
            defaults={"mappings": [{"type": "value", "options": mappings}]},
            text="A gap is a monitor that is not heard: no state is not health.",
        ),
    ]  # fmt: skip


def _column_panels() -> list[DashboardPanel]:
    evidence = f"topk(10, max by (column) (mlkit_drift_evidence{{{S}}}))"
    margins = 'max by (column) (mlkit_drift_distance{%s,kind="distribution",bound="%s"})'
    relative = f"{margins % (S, 'value')} / ({margins % (S, 'margin')} > 0)"
    steps = [{"color": "green", "value": None}, {"color": "yellow", "value": 0.5}, {"color": "red", "value": 1}]
    thresholds = {"thresholds": {"mode": "absolute", "steps": steps}}
    return [
        DashboardPanel(
            "Ten columns with the most evidence", "bargauge", ((evidence, "{{column}}"),), instant=True,
            defaults={**thresholds, "min": 0}, options={"orientation": "horizontal", "displayMode": "lcd"},
            text="A shift is sustained from 1 on.",
        ),
        DashboardPanel(
            "Columns by verdict", "timeseries",
            ((f"sum by (verdict) (mlkit_drift_columns{{{S}}})", "{{verdict}}"),
             (f"max(mlkit_monitor_blind_columns{{{S}}})", "blind")),
        ),
        DashboardPanel(
            "Distance, in margins", "status-history", ((relative, "{{column}}"),), WIDTH, 12,
            defaults={**thresholds, "min": 0}, options={"showValue": "never", "rowHeight": 0.9},
            text="Each row is a column, each cell a window; 1 is the margin. See the detectable distance beside it.",
        ),
        DashboardPanel(
            "Smallest distance that can be seen", "timeseries",
            ((f"topk(10, max by (column) (mlkit_detectable_distance{{{S}}}))", "{{column}}"),),
        ),
        DashboardPanel(
            "Missing, new and out of range", "timeseries",
            tuple((f"topk(5, max by (column) (mlkit_{name}_share{{{S}}}) > 0)", f"{name} {{{{column}}}}")
                  for name in ("missing", "new", "outlier")),
            unit="percentunit",
        ),
    ]  # fmt: skip


def _performance_panels() -> list[DashboardPanel]:
    metric = 'max by (metric, kind) (mlkit_performance{%s,bound="%s"})'
    bands = tuple((metric % (S, bound), f"{{{{metric}}}} {{{{kind}}}} {bound}") for bound in ("low", "value", "high"))
    quantile = "histogram_quantile(%s, sum by (le) (rate(mlkit_request_seconds_bucket{%s,%s}[$__rate_interval])))"
    total = f"sum(rate(mlkit_requests_total{{{S},{DOORS}}}[%s]))"
    errors = f'sum(rate(mlkit_requests_total{{{S},{DOORS},code=~"5.."}}[%s])) / {total}'
    failed = ((errors % (span, span), f"failed, {span}") for span in ("5m", "1h", "6h"))
    refused = f'sum(rate(mlkit_requests_total{{{S},{DOORS},code=~"400|422"}}[5m])) / {total % "5m"}'
    return [
        DashboardPanel(
            "Performance, estimated and realised, with limits", "timeseries",
            (*bands, (metric % (S, "limit"), "{{metric}} limit")), defaults={"custom": {"fillOpacity": 0}},
        ),
        DashboardPanel(
            "Labelled share, trust in the estimate", "timeseries",
            ((f"max by (age) (mlkit_labelled_share{{{S}}})", "labelled ({{age}})"),
             (f"max by (metric) (mlkit_performance_trusted{{{S}}})", "{{metric}} trusted")),
            unit="percentunit",
        ),
        DashboardPanel(
            "Latency", "timeseries", tuple((quantile % (q, S, DOORS), f"p{q * 100:g}") for q in (0.5, 0.99)), unit="s"
        ),
        DashboardPanel(
            "Failed and refused requests", "timeseries",
            (*failed, (refused, "refused for their columns, 5m")),
            unit="percentunit",
        ),
    ]  # fmt: skip


def _window_panels() -> list[DashboardPanel]:
    rows = tuple((f"max(mlkit_window_{name}_rows{{{S}}})", name) for name in ("answered", "lost"))
    return [
        DashboardPanel(
            "Rows of a window", "timeseries", ((f"max(mlkit_window_rows{{{S}}})", "profiled"), *rows), width=8
        ),
        DashboardPanel(
            "Age of the last window, in windows", "timeseries",
            ((f"max(mlkit_window_age_seconds{{{S}}}) / max(mlkit_window_seconds{{{S}}})", "age"),
             (f"max(mlkit_monitor_age_seconds{{{S}}}) / max(mlkit_window_seconds{{{S}}})", "last look")),
            width=8,
        ),
        DashboardPanel(
            "Rows in profiles, rows lost", "timeseries",
            ((f"rate(mlkit_profile_rows_total{{{S}}}[$__rate_interval])", "profiled"),
             (f"rate(mlkit_profile_rows_lost_total{{{S}}}[$__rate_interval])", "lost")),
            width=8, unit="rows/s",
        ),
    ]  # fmt: skip


def _retrain_panels() -> list[DashboardPanel]:
    return [
        DashboardPanel(
            "Retraining runs, rollbacks", "timeseries",
            ((f"sum by (outcome) (mlkit_retrain_total{{{S}}})", "run {{outcome}}"),
             (f"sum by (cause) (mlkit_monitor_rollback_total{{{S}}})", "rollback {{cause}}"),
             (f"max(mlkit_retrain_budget_left{{{S}}})", "budget left")),
        ),
        DashboardPanel(
            "Alerts", "timeseries",
            ((f'sum by (kind) (mlkit_alerts{{{S},state="firing"}})', "{{kind}}"),),
        ),
    ]  # fmt: skip


def _placed(panels: Sequence[DashboardPanel]) -> Iterator[Json]:
    """The panels in rows of the grid, in their order."""
    x = y = row = 0
    for number, panel in enumerate(panels, 1):
        if x + panel.width > WIDTH:
            x, y, row = 0, y + row, 0
        targets = [
            {"refId": chr(ord("A") + index), "expr": expression, "legendFormat": legend, "datasource": SOURCE,
             "instant": panel.instant, "range": not panel.instant}
            for index, (expression, legend) in enumerate(panel.queries)
        ]  # fmt: skip
        yield {
            "id": number,
            "title": panel.title,
            "description": panel.text,
            "type": panel.kind,
            "datasource": SOURCE,
            "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
            "fieldConfig": {"defaults": {"unit": panel.unit, **panel.defaults}, "overrides": []},
            "options": panel.options,
            "targets": targets,
        }
        x, row = x + panel.width, max(row, panel.height)


def _annotations() -> Iterator[Json]:
    """What was decided, from the counters and the state: each decision's sentence is on the monitor's page."""
    events = (
        ("State", f"changes(mlkit_monitor_state{{{S}}}[2m]) > 0 and mlkit_monitor_state{{{S}}} == 1", "{{state}}"),
        ("Retraining", f"increase(mlkit_retrain_total{{{S}}}[2m]) > 0", "retrained: {{outcome}}"),
        ("Rollback", f"increase(mlkit_monitor_rollback_total{{{S}}}[2m]) > 0", "rolled back: {{cause}}"),
        ("Rollout", f"increase(mlkit_rollouts_ended_total{{{S}}}[2m]) > 0", "{{strategy}} {{outcome}}"),
    )
    for (name, expression, title), colour in zip(events, ("blue", "purple", "red", "green"), strict=True):
        yield {
            "name": name,
            "datasource": SOURCE,
            "enable": True,
            "iconColor": colour,
            "expr": expression,
            "step": "60s",
            "titleFormat": title,
        }


def _source_variable() -> Json:
    return {"name": "source", "label": "Data source", "type": "datasource", "query": "prometheus", "current": {}}


def _service_variable() -> Json:
    query = "label_values(mlkit_monitor_state, service)"
    return {
        "name": "service",
        "label": "Service",
        "type": "query",
        "datasource": SOURCE,
        "definition": query,
        "query": {"query": query, "refId": "service"},
        "refresh": 2,
        "sort": 1,
    }
