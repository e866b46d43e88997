"""Alerts of a monitor: one for each column and kind of what is wrong, over the windows of an episode. Frozen, JSON."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Literal

from mlflowkit.judging.shift.findings import ColumnFinding
from mlflowkit.monitoring.monitor_view import AlertView, PerformanceView
from mlflowkit.values import Json, Outcome

Severity = Literal["critical", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("critical", "warning", "info")
CRITICAL_IMPORTANCE, WARNING_IMPORTANCE = 0.1, 0.02
"""Shares of the summed importance from which a column's drift is critical, or more than a note."""
KINDS: Mapping[str, str] = {
    "distribution": "drift", "missing": "missing", "new": "new_values", "range": "range", "type": "schema",
}  # fmt: skip
"""Kinds of alerts by the aspect of a finding."""
PERFORMANCE_KINDS: Mapping[str, str] = {"latency": "latency", "errors": "errors", "labels": "labels"}
"""Kinds of alerts by the kind of a metric; those of the others are performance."""
MEASURED = ("performance", *PERFORMANCE_KINDS.values())
"""Kinds of alerts about metrics, not about rows."""
BROKEN = ("missing", "schema", "type", "unit")
"""Kinds that say that rows are broken upstream; they inhibit the others of their column."""
OUTPUT = "output."
_COLUMN = re.compile(r"\bcolumn ['\"]?(?P<name>.+?)['\"]?$")


@dataclass(frozen=True, slots=True)
class Symptom:
    """What is wrong in one window: the reason for an alert."""

    kind: str
    column: str
    segment: str
    severity: Severity
    since: float
    message: str

    @property
    def key(self) -> tuple[str, str, str]:
        return self.kind, self.column, self.segment


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert of an episode.

    quiet     healthy windows in a row of what it is about; it is resolved after some
    until     end of an acknowledgement or a silence, also of one that was silenced until it was resolved; else None
    """

    id: str
    kind: str
    column: str
    segment: str
    severity: Severity
    since: float
    message: str
    state: Literal["firing", "acked", "silenced", "resolved"] = "firing"
    quiet: int = 0
    until: float | None = None
    resolved: float | None = None
    inhibited_by: str = ""
    episode: str = ""
    told: bool = False
    """Whether receivers were told of it alone: of windows without data, which are in no episode of something wrong."""

    @property
    def key(self) -> tuple[str, str, str]:
        return self.kind, self.column, self.segment

    @property
    def active(self) -> bool:
        return self.state != "resolved"

    @property
    def notifies(self) -> bool:
        """Whether somebody is to be told of it."""
        return self.state == "firing" and not self.inhibited_by

    def view(self) -> AlertView:
        """The alert as the record shows it."""
        return AlertView(
            self.id, self.kind, self.column, self.severity, self.since, self.state, self.message, self.segment,
            self.until, self.resolved, self.inhibited_by, self.episode,
        )  # fmt: skip

    def to_json(self) -> Json:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> Alert:
        """The alert that `to_json` returned. Raises TypeError for anything else."""
        known = {item.name for item in fields(cls)}
        return cls(**{name: item for name, item in value.items() if name in known})


def alert_id(episode: str, kind: str, column: str, segment: str) -> str:
    """The id of an alert: its episode and a digest of what it is about, safe in a URL and on a command line.

    >>> alert_id("4f1c9a70", "drift", "int_rate", "")
    '4f1c9a70-807384'
    """
    return f"{episode}-{hashlib.sha256(repr((kind, column, segment)).encode()).hexdigest()[:6]}"


def severity_of(kind: str, column: str, importance: Mapping[str, float]) -> Severity:
    """How bad an alert is: broken rows and lost performance are critical, drift is as its column matters.

    >>> [severity_of("drift", name, {"age": 0.4, "zip": 0.001}) for name in ("age", "zip", "pay")]
    ['critical', 'info', 'warning']
    """
    if kind in ("schema", "performance", "latency", "errors"):
        return "critical"
    share = importance.get(column)
    if share is None:
        return "warning"
    if share >= CRITICAL_IMPORTANCE:
        return "critical"
    return "warning" if share >= WARNING_IMPORTANCE or kind in BROKEN else "info"


def column_of(finding: ColumnFinding) -> str:
    """The column that a finding is about; of refused requests the one that their reason names.

    >>> from mlflowkit.values import Outcome
    >>> column_of(ColumnFinding("missing column age", "type", Outcome.FAILED, 1.0, 1.0, 1.0, 0.01, 2.0, 90, 90.0))
    'age'
    """
    if finding.aspect != "type":
        return finding.column
    match = _COLUMN.search(finding.column)
    return match["name"] if match else ""


def kind_of(finding: ColumnFinding) -> str:
    """The kind of the alert that a finding may lead to."""
    if finding.column.startswith(OUTPUT) and finding.aspect == "distribution":
        return "predictions"
    return KINDS[finding.aspect]


def symptoms(
    findings: Sequence[ColumnFinding],
    performance: Sequence[PerformanceView],
    importance: Mapping[str, float],
    start: float,
) -> Iterator[Symptom]:
    """What is wrong in the window that began at ``start``. An estimate counts only where it is TRUSTED."""
    for finding in findings:
        if finding.outcome is Outcome.FAILED:
            kind, column = kind_of(finding), column_of(finding)
            since = start if finding.since is None else finding.since
            severity = severity_of(kind, column, importance)
            yield Symptom(kind, column, finding.segment, severity, since, finding.message)
    for metric in performance:
        kind = PERFORMANCE_KINDS.get(metric.kind, "performance")
        if metric.verdict == Outcome.FAILED and (metric.kind != "estimated" or metric.trust == "TRUSTED"):
            since = start if metric.start is None else metric.start
            yield Symptom(kind, metric.metric, metric.kind, severity_of(kind, metric.metric, {}), since, metric.message)


def inhibitor(alert: Alert, alerts: Sequence[Alert], rollout: str) -> str:
    """What keeps an alert from being sent: broken rows of the same column, or a rollout; "" for nothing."""
    if alert.kind == "predictions" and rollout:
        return rollout
    if alert.kind in BROKEN or alert.kind in (*MEASURED, "no_data"):
        return ""
    causes = (other for other in alerts if other.active and other.kind in BROKEN and other.column == alert.column)
    return next((other.id for other in causes), "")
