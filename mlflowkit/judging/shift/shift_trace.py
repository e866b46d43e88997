"""What the shift test keeps from window to window: the learned baseline and the evidence. Frozen, JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mlflowkit.judging.shift.counts import Counts
from mlflowkit.values import Json


@dataclass(frozen=True, slots=True)
class BaselineWindow:
    """A column's counts in one window of its baseline, the window's design effect of batches (rows over Kish's
    effective rows) and its place in the season (0 without one)."""

    counts: Counts
    batches: float = 1.0
    phase: int = 0


@dataclass(frozen=True, slots=True)
class AspectTrace:
    """The evidence about one aspect of a column in one segment.

    logs     log of the e-CUSUM of each alternative
    support  consecutive windows that added evidence since it was 0 (a window that takes some away does not reset it)
    since    start of the first of these; None without evidence
    failed   whether an alarm holds; ``inside`` counts the latest windows within the margin while it does
    """

    logs: tuple[float, ...] = ()
    support: int = 0
    since: float | None = None
    failed: bool = False
    inside: int = 0


@dataclass(frozen=True, slots=True)
class ColumnTrace:
    """One column in one segment: its baseline, and the latest windows (older ones with less weight), in which the set
    of cells is chosen that the next window is tested on. ``recent_rows`` is the sum of their effective rows by squared
    weights."""

    windows: tuple[BaselineWindow, ...] = ()
    recent: tuple[float, ...] = ()
    recent_rows: float = 0.0
    aspects: Mapping[str, AspectTrace] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ShiftTrace:
    """Everything that `advance` remembers of one version: columns by segment ("" for all rows) and name, and the
    evidence about refused requests by their reason. ``windows`` counts the windows that were seen.

    >>> aspect = AspectTrace((0.5, -1.0), 1, 300.0)
    >>> column = ColumnTrace((BaselineWindow((1, 2), 1.5, 3),), (0.5, 1.0), 1.0, {"missing": aspect})
    >>> trace = ShiftTrace(7, {"": {"age": column}}, {"missing column age": column})
    >>> ShiftTrace.from_json(trace.to_json()) == trace
    True
    """

    windows: int = 0
    columns: Mapping[str, Mapping[str, ColumnTrace]] = field(default_factory=dict)
    refused: Mapping[str, ColumnTrace] = field(default_factory=dict)

    def to_json(self) -> Json:
        """The trace as JSON."""
        columns = {
            segment: {name: _column_to_json(column) for name, column in columns.items()}
            for segment, columns in self.columns.items()
        }
        refused = {reason: _column_to_json(column) for reason, column in self.refused.items()}
        return {"windows": self.windows, "columns": columns, "refused": refused}

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> ShiftTrace:
        """The trace that `to_json` returned. Raises KeyError, TypeError or ValueError for anything else."""
        columns = {
            str(segment): {str(name): _column_from_json(column) for name, column in columns.items()}
            for segment, columns in value["columns"].items()
        }
        refused = {str(reason): _column_from_json(column) for reason, column in value["refused"].items()}
        return cls(int(value["windows"]), columns, refused)


def _column_to_json(column: ColumnTrace) -> Json:
    return {
        "windows": [[list(window.counts), window.batches, window.phase] for window in column.windows],
        "recent": list(column.recent),
        "recent_rows": column.recent_rows,
        "aspects": {
            name: [list(aspect.logs), aspect.support, aspect.since, aspect.failed, aspect.inside]
            for name, aspect in column.aspects.items()
        },
    }


def _column_from_json(value: Mapping[str, Json]) -> ColumnTrace:
    windows = tuple(
        BaselineWindow(tuple(map(int, counts)), float(batches), int(phase))
        for counts, batches, phase in value["windows"]
    )
    aspects = {str(name): _aspect_from_json(*aspect) for name, aspect in value["aspects"].items()}
    return ColumnTrace(windows, tuple(map(float, value["recent"])), float(value["recent_rows"]), aspects)


def _aspect_from_json(logs: Json, support: Json, since: Json, failed: Json, inside: Json) -> AspectTrace:
    start = None if since is None else float(since)
    return AspectTrace(tuple(map(float, logs)), int(support), start, bool(failed), int(inside))
