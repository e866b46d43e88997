"""The record ``services/<service>/monitor/view.json``: what the monitor knows, for the CLI, the page and the metrics.

Written whole by the monitor after each tick; readers need nothing else. Times are seconds since the epoch. Keys are
only added: a reader ignores those that it does not know, and takes the defaults below for those that are missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

from mlflowkit.errors import ServiceError
from mlflowkit.judging.shift.findings import ColumnFinding
from mlflowkit.service_state.records import ServiceFiles
from mlflowkit.system.text import shell_word
from mlflowkit.values import Json

VIEW = "monitor/view.json"
"""The record of a service that holds its `MonitorView`."""

StateWord = Literal["LEARNING", "HEALTHY", "SUSPECT", "DRIFTING", "RETRAINING", "NO_DATA", "BLIND"]
"""The state of a version in one word; see docs/explanation/monitoring.md."""
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class WindowView:
    """A judged window: ``rows`` in profiles and ``lost`` on the way are the ``answered`` rows."""

    start: float
    seconds: float
    rows: int
    lost: int
    answered: int
    state: str
    """The monitor's state after it."""
    effective_rows: float = 0.0
    refused: int = 0
    """Requests that were refused."""


@dataclass(frozen=True, slots=True)
class HistoryPoint:
    """A finding of an earlier window; a JSON list of three."""

    start: float
    value: float | None
    evidence: float


@dataclass(frozen=True, slots=True)
class ColumnView:
    """One aspect of one column in one segment ("" for all rows). See judging.shift.findings.ColumnFinding.

    verdict     PASSED, FAILED or INCONCLUSIVE
    new, missing   share of values that the reference does not have, and of missing values, in the last window
    training    distance from the training rows, which stays when the baseline is live; None when it is not known
    """

    column: str
    aspect: str
    segment: str
    verdict: str
    value: float | None
    low: float | None
    high: float | None
    margin: float
    evidence: float
    rows: int
    effective_rows: float
    new: float | None = None
    missing: float | None = None
    importance: float | None = None
    detectable: float | None = None
    since: float | None = None
    message: str = ""
    training: float | None = None
    history: tuple[HistoryPoint, ...] = ()

    @property
    def key(self) -> tuple[str, str, str]:
        return self.column, self.aspect, self.segment

    @classmethod
    def of(cls, finding: ColumnFinding, **details: Any) -> ColumnView:
        """The view of a finding."""
        return cls(
            finding.column, finding.aspect, finding.segment, str(finding.outcome), finding.value, finding.low,
            finding.high, finding.margin, finding.evidence, finding.rows, finding.effective_rows,
            detectable=finding.detectable, since=finding.since, message=finding.message, **details,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class PerformanceView:
    """A metric, estimated without labels or realised by labels.

    bound   the smallest acceptable value, or the largest for an error
    trust   TRUSTED, BIASED or UNKNOWN, of an estimate; "" for a realised metric
    labelled_share   share of the answers whose label has come
    """

    metric: str
    kind: str
    value: float | None
    low: float | None
    high: float | None
    bound: float | None
    verdict: str
    trust: str = ""
    labelled_share: float | None = None
    message: str = ""
    start: float | None = None
    reference: float | None = None
    """Its value on the test rows."""


@dataclass(frozen=True, slots=True)
class AlertView:
    """An alert. ``kind`` is drift, predictions, missing, new_values, range, schema, performance, latency, errors,
    labels or no_data; ``severity`` is critical, warning or info."""

    id: str
    kind: str
    column: str
    severity: str
    since: float
    state: Literal["firing", "acked", "silenced", "resolved"]
    message: str
    segment: str = ""
    until: float | None = None
    """End of an acknowledgement or a silence."""
    resolved: float | None = None
    """When it was over."""
    inhibited_by: str = ""
    """The alert or the rollout that keeps it from being sent."""
    episode: str = ""


@dataclass(frozen=True, slots=True)
class RetrainView:
    """What retraining is doing. ``runs`` are {run, episode, started, outcome, message}, newest last."""

    state: str = "off"
    """off, idle, wanted, waiting, checking, running, probation or asking."""
    reason: str = ""
    episode: str = ""
    budget_left: int | None = None
    runs: tuple[Mapping[str, Json], ...] = ()


@dataclass(frozen=True, slots=True)
class DecisionView:
    """A line of the log of decisions: a sentence with numbers."""

    time: float
    text: str


@dataclass(frozen=True, slots=True)
class BlindView:
    """A column in which the coming windows cannot show a shift of twice the margin, and the smallest that they can."""

    column: str
    detectable: float | None
    message: str


@dataclass(frozen=True, slots=True)
class MonitorView:
    """The monitor of a service.

    >>> view = MonitorView("lending", "v1", "LEARNING", 100.0, updated=160.0)
    >>> MonitorView.from_json(view.to_json()) == view
    True
    """

    service: str
    version: str
    state: StateWord
    since: float
    windows: tuple[WindowView, ...] = ()
    columns: tuple[ColumnView, ...] = ()
    performance: tuple[PerformanceView, ...] = ()
    alerts: tuple[AlertView, ...] = ()
    retrain: RetrainView = field(default_factory=RetrainView)
    decisions: tuple[DecisionView, ...] = ()
    blind: tuple[BlindView, ...] = ()
    updated: float = 0.0
    window_seconds: float = 86_400.0
    message: str = ""
    """The state in a sentence."""
    fault: str = ""
    """What keeps the monitor from its work, such as a damaged file; "" for nothing."""
    baseline: str = ""
    """What windows are compared with, in words."""
    rows_total: int = 0
    lost_total: int = 0
    """Rows of this version in profiles, and lost on the way, since its first window."""

    def to_json(self) -> Json:
        """The record. No value is NaN or infinite."""
        parts = asdict(self).items()
        value: Json = {name: list(item) if isinstance(item, tuple) else item for name, item in parts}
        value["retrain"]["runs"] = list(value["retrain"]["runs"])
        for column in value["columns"]:
            column["history"] = [[point["start"], point["value"], point["evidence"]] for point in column["history"]]
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> MonitorView:
        """The view that `to_json` returned. Raises KeyError, TypeError or ValueError for anything else."""
        return _load(
            cls,
            value,
            windows=tuple(_load(WindowView, item) for item in value.get("windows", ())),
            columns=tuple(_column(item) for item in value.get("columns", ())),
            performance=tuple(_load(PerformanceView, item) for item in value.get("performance", ())),
            alerts=tuple(_load(AlertView, item) for item in value.get("alerts", ())),
            retrain=_retrain(value.get("retrain") or {}),
            decisions=tuple(_load(DecisionView, item) for item in value.get("decisions", ())),
            blind=tuple(_load(BlindView, item) for item in value.get("blind", ())),
        )


def read_view(files: ServiceFiles) -> MonitorView | None:
    """The view of a service; None when it is not monitored, or before the first tick. Raises ServiceError."""
    value = files.read_json(VIEW)
    try:
        return None if value is None else MonitorView.from_json(value)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        place = files.location(VIEW)
        raise ServiceError(
            f"{place} is damaged: {error!r}", hint=f"rm {shell_word(place)}; the monitor writes it again"
        ) from error


def read_word(folder: Path) -> str:
    """The state of the service in a folder in one word; "" where it is not monitored, or was not looked at yet."""
    files = ServiceFiles(folder)
    try:
        view = read_view(files) if files.exists("monitor/settings.json") else None
    except ServiceError:
        return "damaged"
    return "" if view is None else view.state


def _load(kind: type[T], value: Mapping[str, Json], **parts: Any) -> T:
    """A dataclass from the keys that it knows."""
    known = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    return kind(**({name: item for name, item in value.items() if name in known} | parts))


def _column(value: Mapping[str, Json]) -> ColumnView:
    return _load(ColumnView, value, history=tuple(HistoryPoint(*point) for point in value.get("history", ())))


def _retrain(value: Mapping[str, Json]) -> RetrainView:
    return _load(RetrainView, value, runs=tuple(value.get("runs", ())))
