"""What a monitor remembers of a version: ``services/<service>/monitor/states/<version>.json``.

Written whole, before anything is done that follows from it; a monitor that is killed goes on from there.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

from mlflowkit.errors import ServiceError
from mlflowkit.judging.shift.counts import WindowCounts
from mlflowkit.judging.shift.findings import ColumnFinding
from mlflowkit.judging.shift.shift_trace import ShiftTrace
from mlflowkit.monitoring.monitor_policy import Notification, PolicyState
from mlflowkit.monitoring.monitor_settings import MonitorSection
from mlflowkit.monitoring.monitor_view import HistoryPoint, WindowView
from mlflowkit.monitoring.monitor_windows import WindowCursor, window_start
from mlflowkit.service_state.records import ServiceFiles
from mlflowkit.system.digests import digest_json
from mlflowkit.values import Json, Outcome, Variant

FORMAT = 1
STATES = "monitor/states"
KEPT_VERSIONS = 3
KEPT_WINDOWS = 400
KEPT_POINTS = 60
_log = logging.getLogger("mlflowkit.monitoring")
FindingKey = tuple[str, str, str]
"""Column, aspect, segment."""


@dataclass(frozen=True, slots=True)
class MonitorState:
    """What is remembered of one version.

    plan      digest of the settings that windows and baseline depend on: with other ones everything is learned anew
    windows   closed windows, newest last; ``findings`` of the last judged one, and their ``history``
    live      the counts of the last judged window, or of all since the open episode began; without segments
    rows, lost   of all closed windows
    training  distance of each column from the training rows in the last judged window
    todo      notifications that are not queued yet
    """

    version: str
    policy: PolicyState
    plan: str = ""
    cursor: WindowCursor = field(default_factory=WindowCursor)
    trace: ShiftTrace = field(default_factory=ShiftTrace)
    windows: tuple[WindowView, ...] = ()
    findings: tuple[ColumnFinding, ...] = ()
    history: Mapping[FindingKey, tuple[HistoryPoint, ...]] = field(default_factory=dict)
    live: WindowCounts | None = None
    last: WindowCounts | None = None
    """The last judged window, without segments."""
    outputs: tuple[WindowCounts, ...] = ()
    """Closed windows with the counts of the model's answers alone, from which its performance is estimated."""
    rows: int = 0
    lost: int = 0
    training: Mapping[str, float] = field(default_factory=dict)
    skew_told: bool = False
    todo: tuple[Notification, ...] = ()
    asked: str = ""
    """The episode of retraining for which a person was asked."""

    def to_json(self) -> Json:
        """The record."""
        history = [
            [*key, [[point.start, point.value, point.evidence] for point in points]]
            for key, points in self.history.items()
        ]
        return {
            "format": FORMAT,
            "version": self.version,
            "plan": self.plan,
            "policy": self.policy.to_json(),
            "cursor": self.cursor.to_json(),
            "trace": _packed(self.trace),
            "windows": [asdict(window) for window in self.windows],
            "findings": [finding.to_json() for finding in self.findings],
            "history": history,
            "live": None if self.live is None else self.live.to_json(),
            "last": None if self.last is None else self.last.to_json(),
            "outputs": [window.to_json() for window in self.outputs],
            "rows": self.rows,
            "lost": self.lost,
            "training": dict(self.training),
            "skew_told": self.skew_told,
            "todo": [asdict(item) for item in self.todo],
            "asked": self.asked,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> MonitorState:
        """The state that `to_json` returned. Raises KeyError, TypeError or ValueError for anything else."""
        if value["format"] != FORMAT:
            raise ValueError(f"format {value['format']!r} of a monitor's state is not known")
        history = {
            (str(column), str(aspect), str(segment)): tuple(HistoryPoint(*point) for point in points)
            for column, aspect, segment, points in value["history"]
        }
        live, last = (None if value[name] is None else WindowCounts.from_json(value[name]) for name in ("live", "last"))
        return cls(
            str(value["version"]),
            PolicyState.from_json(value["policy"]),
            str(value["plan"]),
            WindowCursor.from_json(value["cursor"]),
            _unpacked(value["trace"]),
            tuple(WindowView(**window) for window in value["windows"]),
            tuple(ColumnFinding(**{**item, "outcome": Outcome(item["outcome"])}) for item in value["findings"]),
            history,
            live,
            last,
            tuple(map(WindowCounts.from_json, value["outputs"])),
            int(value["rows"]),
            int(value["lost"]),
            {str(name): float(distance) for name, distance in value["training"].items()},
            bool(value["skew_told"]),
            tuple(Notification.from_json(item) for item in value["todo"]),
            str(value["asked"]),
        )


def _packed(trace: ShiftTrace) -> Json:
    """The trace with the columns of each segment as a text of JSON: no more than one is taken apart at a time."""
    columns = {
        segment: json.dumps(ShiftTrace(0, {segment: kept}).to_json()["columns"][segment], separators=(",", ":"))
        for segment, kept in trace.columns.items()
    }
    return {**replace(trace, columns={}).to_json(), "columns": columns}


def _unpacked(value: Mapping[str, Json]) -> ShiftTrace:
    trace = ShiftTrace.from_json({**value, "columns": {}})
    columns = {
        str(segment): ShiftTrace.from_json({"windows": 0, "columns": {segment: json.loads(text)}, "refused": {}})
        for segment, text in value["columns"].items()
    }
    return replace(trace, columns={segment: part.columns[segment] for segment, part in columns.items()})


def new_state(service: str, variant: Variant, plan: str) -> MonitorState:
    """The state of a version of which nothing is known yet."""
    return MonitorState(variant.version, PolicyState(service, variant.digest), plan)


def plan_digest(section: MonitorSection) -> str:
    """Digest of the settings that make windows and their baseline.

    >>> digest = plan_digest(MonitorSection())
    >>> plan_digest(MonitorSection(margin=0.2)) == digest, plan_digest(MonitorSection(window="1h")) == digest
    (True, False)
    """
    kept = section.model_dump(mode="json", include={"window", "baseline", "segments"})
    return digest_json({**kept, "segments": sorted(section.segments)})[:16]


def read_state(files: ServiceFiles, variant: Variant, section: MonitorSection) -> MonitorState:
    """The state of a version; a new one where there is none, where it is damaged, or where windows are other ones.

    No row is counted twice: after a change of the windows' length the next one begins where the last one ended.
    """
    plan, name = plan_digest(section), f"{STATES}/{variant.version}.json"
    fresh = new_state(files.service, variant, plan)
    try:
        state = files.read(name, MonitorState.from_json)
    except (ServiceError, ValueError) as error:
        _log.error("%s: the monitor begins anew: %s", files.service, error)
        return fresh
    if state is None or state.policy.digest != variant.digest:
        return fresh
    if state.plan == plan:
        return state
    length, ended = section.window_seconds, state.cursor.next
    if ended is None:
        return fresh
    start = window_start(ended, length)
    cursor = WindowCursor(start if start >= ended else start + length)
    policy = replace(fresh.policy, decisions=state.policy.decisions)
    return replace(fresh, cursor=cursor, policy=policy, rows=state.rows, lost=state.lost, todo=state.todo)


def write_state(files: ServiceFiles, state: MonitorState) -> None:
    """Write a version's state durably."""
    content = json.dumps(state.to_json(), separators=(",", ":"), allow_nan=False)
    files.write_bytes(f"{STATES}/{state.version}.json", content.encode())


def sweep_states(files: ServiceFiles, current: str) -> None:
    """Remove the states of old versions but the newest few, which a rollback may bring back."""
    entries = [entry for entry in files.list(f"{STATES}/*.json") if entry.key != f"{STATES}/{current}.json"]
    for entry in sorted(entries, key=lambda entry: entry.modified)[:-KEPT_VERSIONS]:
        files.delete(entry.key)
