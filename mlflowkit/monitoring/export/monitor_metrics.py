"""Prometheus metrics of monitoring: one page for the services of a state folder, from each service's view record.

The view (``services/<service>/monitor/view.json``) is written by the monitor after each look; here it is only read. A
service without one has no samples, so that ``absent(mlkit_monitor_state{service="..."})`` tells a monitor that is gone
from one that is content. No sample is NaN, and no label has a value of the data: segments are labelled ``(any)``, the
worst of them. Of more than MAX_COLUMNS columns, the model's outputs, those that FAILED and then the most important have
samples of their own, and the worst of the others is ``(other)``.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from mlflowkit.errors import ServiceError
from mlflowkit.service_state.records import ServiceFiles
from mlflowkit.system.log_once import LogOnce
from mlflowkit.values import Json

VIEW = "monitor/view.json"
STATES = ("LEARNING", "HEALTHY", "SUSPECT", "DRIFTING", "RETRAINING", "NO_DATA", "BLIND")
VERDICTS = ("PASSED", "FAILED", "INCONCLUSIVE")
MAX_COLUMNS = 200
OTHER_COLUMNS, ANY_SEGMENT = "(other)", "(any)"
MAX_LABEL = 200
"""Longest label value; a column's name may be any text."""
MAX_WINDOWS = 10_000
"""Windows whose rows are remembered for the counters, a service."""

Labels = tuple[str, ...]
_log = logging.getLogger("mlflowkit.monitoring")


class MonitorMetrics:
    """The metrics of a state folder's monitors. Thread-safe; counters grow from the creation of this object."""

    def __init__(self, state: Path, clock: Callable[[], float] = time.time) -> None:
        self._state = state
        self._clock = clock
        self._lock = threading.Lock()
        self._events: dict[str, ViewEvents] = {}
        self._errors = LogOnce(_log)

    def render(self, services: Iterable[str]) -> bytes:
        """The page of the named services, in Prometheus's text format; a damaged view is left out and logged."""
        with self._lock:
            views = {}
            for service in services:
                view = self._read(ServiceFiles(self._state / "services" / service))
                if view is not None:
                    views[service] = view
                    events = self._events.setdefault(service, ViewEvents())
                    events.update(view)
                    self._count_rollbacks(ServiceFiles(self._state / "services" / service), events)
            return render_views(views, self._events, self._clock())

    def _count_rollbacks(self, files: ServiceFiles, events: ViewEvents) -> None:
        """Count incidents that a monitor caused; each is read once."""
        try:
            for entry in files.list("incidents/*.json"):
                if not events.has_seen(entry.key):
                    incident = _object(files.read_json(entry.key))
                    cause = _text(incident.get("cause")) or "unknown"
                    events.add_incident(entry.key, cause if incident.get("by") == "monitor" else "")
        except ServiceError as error:
            self._errors.error(error.message, key=f"{files.service} incidents")

    def _read(self, files: ServiceFiles) -> Mapping[str, Json] | None:
        try:
            view = files.read_json(VIEW)
        except ServiceError as error:
            self._errors.error(error.message, key=files.service)
            return None
        if view is not None and not isinstance(view, dict):
            self._errors.error(f"{files.location(VIEW)} is damaged: an object is expected", key=files.service)
            return None
        self._errors.clear(files.service)
        return view


class ViewEvents:
    """Counts what a service's views have shown, each window, retraining run and rollback once."""

    def __init__(self) -> None:
        self.rows = self.lost = 0
        self.runs: Counter[str] = Counter()
        self.rollbacks: Counter[str] = Counter()
        self._windows: dict[tuple[str, float], tuple[int, int]] = {}
        self._runs: dict[str, str] = {}
        self._incidents: set[str] = set()

    def update(self, view: Mapping[str, Json]) -> None:
        """Count what is new. A window whose rows grew after it was first shown adds the difference."""
        version = _text(view.get("version"))
        for window in _items(view.get("windows")):
            start = _number(window.get("start"))
            if start is None:
                continue
            rows, lost = (max(0, int(_number(window.get(name)) or 0)) for name in ("rows", "lost"))
            before = self._windows.pop((version, start), (0, 0))
            self.rows += max(0, rows - before[0])
            self.lost += max(0, lost - before[1])
            self._windows[version, start] = max(rows, before[0]), max(lost, before[1])
        while len(self._windows) > MAX_WINDOWS:
            del self._windows[next(iter(self._windows))]
        retrain = _object(view.get("retrain"))
        for run in _items(retrain.get("runs")):
            id = _text(run.get("run") or run.get("episode"))
            outcome = _text(run.get("outcome"))
            if id and outcome and outcome != "running" and self._runs.get(id) != outcome:
                self._runs[id] = outcome
                self.runs[outcome] += 1

    def has_seen(self, incident: str) -> bool:
        """Whether an incident was added."""
        return incident in self._incidents

    def add_incident(self, incident: str, cause: str) -> None:
        """Count an incident, with the cause of a monitor's rollback, or "" for another one's."""
        self._incidents.add(incident)
        if cause:
            self.rollbacks[cause] += 1


def render_views(views: Mapping[str, Mapping[str, Json]], events: Mapping[str, ViewEvents], now: float) -> bytes:
    """The page of views by service, at ``now`` in seconds since the epoch."""
    page = _Page()
    for service, view in sorted(views.items()):
        base = (_label(service), _label(_text(view.get("version"))))
        _add_state(page, base, view, now)
        _add_windows(page, base, view, now)
        _add_columns(page, base, _items(view.get("columns")))
        _add_performance(page, base, _items(view.get("performance")))
        _add_alerts(page, base, view)
        if service in events:
            _add_events(page, base[:1], events[service])
    registry = CollectorRegistry(auto_describe=False)
    registry.register(page)
    return bytes(generate_latest(registry))


_SERVICE, _VERSION = ("service",), ("service", "version")
_COLUMN = (*_VERSION, "column")
GAUGES: Mapping[str, tuple[tuple[str, ...], str]] = {
    "mlkit_monitor_state": ((*_VERSION, "state"), "1 for the present state of a service's monitor, 0 for the others."),
    "mlkit_monitor_age_seconds": (_SERVICE, "Seconds since the monitor last looked at the service."),
    "mlkit_monitor_blind_columns": (_SERVICE, "Columns in which a shift of twice the margin could not be seen."),
    "mlkit_drift_distance": (
        (*_COLUMN, "kind", "bound"),
        "Distance of a column from its baseline in the last window; bound is value, low, high or margin.",
    ),
    "mlkit_drift_evidence": (
        (*_COLUMN, "kind", "segment"),
        "Evidence of a lasting shift beyond the margin, FAILED from 1 on; segment is empty, or (any) for the worst.",
    ),
    "mlkit_drift_columns": ((*_VERSION, "verdict"), "Columns by their worst verdict."),
    "mlkit_missing_share": (_COLUMN, "Share of missing values in the last window."),
    "mlkit_new_share": (_COLUMN, "Share of values that the reference does not have, in the last window."),
    "mlkit_outlier_share": (_COLUMN, "Share of values out of the reference's range, in the last window."),
    "mlkit_detectable_distance": (_COLUMN, "Smallest distance that the coming windows could show."),
    "mlkit_performance": (
        (*_VERSION, "metric", "kind", "bound"),
        "A metric of the model; kind is estimated, realised or reference, bound is value, low, high or limit.",
    ),
    "mlkit_performance_failed": ((*_VERSION, "metric", "kind"), "1 where a metric is surely beyond its limit, else 0."),
    "mlkit_performance_trusted": (
        (*_VERSION, "metric"),
        "1 where a back-test against labels shows the estimate right, 0 where it is biased or not known.",
    ),
    "mlkit_labelled_share": ((*_SERVICE, "age"), "Share of the answers of that age that have a label."),
    "mlkit_window_rows": (_SERVICE, "Profiled rows of the last closed window."),
    "mlkit_window_answered_rows": (_SERVICE, "Rows that gateways answered in the last closed window."),
    "mlkit_window_lost_rows": (_SERVICE, "Answered rows of the last closed window that are in no profile."),
    "mlkit_window_refused_requests": (_SERVICE, "Requests of the last closed window that were refused."),
    "mlkit_window_seconds": (_SERVICE, "Length of a window."),
    "mlkit_window_age_seconds": (_SERVICE, "Seconds since the end of the last closed window."),
    "mlkit_alerts": ((*_SERVICE, "kind", "severity", "state"), "Alerts of the monitor."),
    "mlkit_retrain_budget_left": (_SERVICE, "Retraining runs left in the budget."),
    "mlkit_retrain_state": ((*_SERVICE, "state"), "1 for the present state of retraining."),
}
"""Label names and description of each gauge."""
COUNTERS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "mlkit_profile_rows": (_SERVICE, "Rows in the profiles of closed windows, since this process started."),
    "mlkit_profile_rows_lost": (_SERVICE, "Answered rows that are in no profile, since this process started."),
    "mlkit_retrain": ((*_SERVICE, "outcome"), "Retraining runs shown since this process started."),
    "mlkit_monitor_rollback": ((*_SERVICE, "cause"), "Rollbacks that the monitor asked for."),
}
"""The same of each counter, whose samples end in ``_total``."""


class _Page:
    """Samples by metric and labels. Of two samples with the same labels the larger one is kept."""

    def __init__(self) -> None:
        self._samples: dict[str, dict[Labels, float]] = {name: {} for name in (*GAUGES, *COUNTERS)}

    def add(self, name: str, labels: Sequence[str], value: Json) -> None:
        """Add a sample; a value that is no finite number is left out."""
        number = _number(value)
        if number is not None:
            samples, key = self._samples[name], tuple(map(_label, labels))
            samples[key] = max(number, samples.get(key, number))

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        for kind, families in ((GaugeMetricFamily, GAUGES), (CounterMetricFamily, COUNTERS)):
            for name, (labels, text) in families.items():
                family = kind(name, text, labels=labels)
                for values, value in sorted(self._samples[name].items()):
                    family.add_metric(values, value)
                yield family


def _add_state(page: _Page, base: Labels, view: Mapping[str, Json], now: float) -> None:
    present = _text(view.get("state"))
    if present in STATES:
        for state in STATES:
            page.add("mlkit_monitor_state", (*base, state), float(state == present))
    updated = _number(view.get("updated"))
    if updated is not None:
        page.add("mlkit_monitor_age_seconds", base[:1], max(0.0, now - updated))
    blind = {_text(item.get("column")) for item in _items(view.get("blind"))}
    page.add("mlkit_monitor_blind_columns", base[:1], len(blind))


def _add_windows(page: _Page, base: Labels, view: Mapping[str, Json], now: float) -> None:
    """The window that ended last. Where there is none yet, its age is that of the view's state."""
    page.add("mlkit_window_seconds", base[:1], view.get("window_seconds"))
    windows = [
        (start + seconds, seconds, window)
        for window in _items(view.get("windows"))
        if (start := _number(window.get("start"))) is not None
        and (seconds := _number(window.get("seconds"))) is not None
    ]
    if not windows:
        since = _number(view.get("since"))
        if since is not None:
            page.add("mlkit_window_age_seconds", base[:1], max(0.0, now - since))
        return
    end, seconds, window = max(windows, key=lambda item: item[0])
    page.add("mlkit_window_age_seconds", base[:1], max(0.0, now - end))
    if _number(view.get("window_seconds")) is None:
        page.add("mlkit_window_seconds", base[:1], seconds)
    names = (("rows", "rows"), ("lost_rows", "lost"), ("answered_rows", "answered"), ("refused_requests", "refused"))
    for name, key in names:
        page.add(f"mlkit_window_{name}", base[:1], window.get(key))


def _add_columns(page: _Page, base: Labels, findings: Sequence[Mapping[str, Json]]) -> None:
    shown = _shown_columns(findings)
    verdicts: dict[str, str] = {}
    for finding in findings:
        column, verdict = _text(finding.get("column")), _text(finding.get("verdict"))
        if verdict in VERDICTS:
            before = verdicts.get(column, "PASSED")
            verdicts[column] = max(before, verdict, key=("PASSED", "INCONCLUSIVE", "FAILED").index)
        _add_finding(page, (*base, column if column in shown else OTHER_COLUMNS), finding)
    counts = Counter(verdicts.values())
    for verdict in VERDICTS if findings else ():
        page.add("mlkit_drift_columns", (*base, verdict), counts[verdict])


def _add_finding(page: _Page, labels: Labels, finding: Mapping[str, Json]) -> None:
    """The samples of one aspect of a column. Distances and shares are those of all rows, not of segments."""
    aspect, segment = _text(finding.get("aspect")), _text(finding.get("segment"))
    evidence = (*labels, aspect, ANY_SEGMENT if segment else "")
    page.add("mlkit_drift_evidence", evidence, finding.get("evidence"))
    if segment:
        return
    for bound in ("value", "low", "high", "margin"):
        page.add("mlkit_drift_distance", (*labels, aspect, bound), finding.get(bound))
    page.add("mlkit_missing_share", labels, finding.get("value" if aspect == "missing" else "missing"))
    page.add("mlkit_new_share", labels, finding.get("value" if aspect == "new" else "new"))
    if aspect == "range":
        page.add("mlkit_outlier_share", labels, finding.get("value"))
    if aspect == "distribution":
        page.add("mlkit_detectable_distance", labels, finding.get("detectable"))


def _shown_columns(findings: Sequence[Mapping[str, Json]]) -> frozenset[str]:
    """The columns with samples of their own: outputs, those with verdict FAILED, the most important, then by name."""
    ranks: dict[str, tuple[bool, float]] = {}
    for finding in findings:
        column = _text(finding.get("column"))
        first, importance = ranks.get(column, (column.startswith("output."), 0.0))
        ranks[column] = (
            first or finding.get("verdict") == "FAILED",
            max(importance, _number(finding.get("importance")) or 0.0),
        )
    ordered = sorted(ranks, key=lambda column: (not ranks[column][0], -ranks[column][1], column))
    return frozenset(ordered[:MAX_COLUMNS])


def _add_performance(page: _Page, base: Labels, rows: Sequence[Mapping[str, Json]]) -> None:
    for row in rows:
        labels = (*base, _text(row.get("metric")), _text(row.get("kind")))
        for bound, key in (("value", "value"), ("low", "low"), ("high", "high"), ("limit", "bound")):
            page.add("mlkit_performance", (*labels, bound), row.get(key))
        page.add("mlkit_performance", (*labels[:3], "reference", "value"), row.get("reference"))
        if row.get("verdict") in VERDICTS:
            page.add("mlkit_performance_failed", labels, float(row["verdict"] == "FAILED"))
        if row.get("kind") == "estimated":
            page.add("mlkit_performance_trusted", labels[:3], float(row.get("trust") == "TRUSTED"))
        if row.get("kind") in ("realised", "labels"):
            page.add("mlkit_labelled_share", (base[0], "mature"), row.get("labelled_share"))


def _add_alerts(page: _Page, base: Labels, view: Mapping[str, Json]) -> None:
    counts = Counter(
        (_text(alert.get("kind")), _text(alert.get("severity")), _text(alert.get("state")))
        for alert in _items(view.get("alerts"))
    )
    for labels, count in counts.items():
        page.add("mlkit_alerts", (base[0], *labels), count)
    retrain = _object(view.get("retrain"))
    page.add("mlkit_retrain_budget_left", base[:1], retrain.get("budget_left"))
    if retrain.get("state"):
        page.add("mlkit_retrain_state", (base[0], _text(retrain["state"])), 1.0)


def _add_events(page: _Page, base: Labels, events: ViewEvents) -> None:
    page.add("mlkit_profile_rows", base, events.rows)
    page.add("mlkit_profile_rows_lost", base, events.lost)
    for name, counts in (("mlkit_retrain", events.runs), ("mlkit_monitor_rollback", events.rollbacks)):
        for label, count in counts.items():
            page.add(name, (*base, label), count)


def _label(value: str) -> str:
    """A label value of bounded length that is valid UTF-8; quotes and line ends are escaped by the client library.

    >>> _label("caf\\u00e9 \\ud800"), len(_label("x" * 999))
    ('café ?', 200)
    """
    text = value.encode("utf-8", "replace").decode()
    return text if len(text) <= MAX_LABEL else f"{text[: MAX_LABEL - 1]}…"


def _text(value: Json) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)


def _number(value: Json) -> float | None:
    """A finite number; None for anything else, also for text and booleans."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _object(value: Json) -> Mapping[str, Json]:
    return value if isinstance(value, dict) else {}


def _items(value: Json) -> list[Mapping[str, Json]]:
    """The objects of a list; anything else is left out."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
