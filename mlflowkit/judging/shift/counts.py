"""Counts of one version's answered rows in one window, by the cells of each column. Mergeable, JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mlflowkit.values import Json

Counts = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ProfileCounts:
    """Rows by column and cell.

    requests  answered requests; ``rows`` are their rows, and ``squares`` the sum of squared rows of a request
    columns   counts in the order of `Cells.names`: features by name, outputs as ``output.label``,
              ``output.prediction`` and ``output.score`` (the positive class's probability of a binary task)
    """

    requests: int = 0
    rows: int = 0
    squares: int = 0
    columns: Mapping[str, Counts] = field(default_factory=dict)

    @property
    def effective_rows(self) -> float:
        """Kish's effective sample size for requests whose rows are all alike: (sum of m)^2 / (sum of m^2).

        >>> ProfileCounts(200, 299, 199 + 100**2).effective_rows < 9
        True
        """
        return self.rows**2 / self.squares if self.squares else 0.0

    def __add__(self, other: ProfileCounts) -> ProfileCounts:
        columns = dict(self.columns)
        for name, counts in other.columns.items():
            columns[name] = _add(columns[name], counts) if name in columns else counts
        return ProfileCounts(
            self.requests + other.requests, self.rows + other.rows, self.squares + other.squares, columns
        )

    def to_json(self) -> Json:
        """The counts as JSON."""
        columns = {name: list(counts) for name, counts in self.columns.items()}
        return {"requests": self.requests, "rows": self.rows, "squares": self.squares, "columns": columns}

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> ProfileCounts:
        """The counts that `to_json` returned. Raises KeyError, TypeError or ValueError for anything else."""
        columns = {str(name): tuple(map(int, counts)) for name, counts in value["columns"].items()}
        return cls(int(value["requests"]), int(value["rows"]), int(value["squares"]), columns)


@dataclass(frozen=True, slots=True)
class WindowCounts:
    """The rows that one version answered in [start, start + seconds), in seconds since the epoch.

    ``total`` is all of them; ``segments`` are parts of them by ``column=value``. ``answered`` is how many rows the
    gateways answered in the window, so that ``answered - total.rows`` were lost on the way; ``refused`` counts requests
    that were refused, by reason (``missing column age``).

    >>> window = WindowCounts("v1", 0, 300, ProfileCounts(1, 2, 4, {"age": (0, 2, 0, 0)}), answered=3)
    >>> merged = window + window
    >>> merged.total.columns["age"], merged.lost
    ((0, 4, 0, 0), 2)
    >>> WindowCounts.from_json(merged.to_json()) == merged
    True
    """

    version: str
    start: float
    seconds: float
    total: ProfileCounts = ProfileCounts()
    segments: Mapping[str, ProfileCounts] = field(default_factory=dict)
    answered: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)

    @property
    def lost(self) -> int:
        """Answered rows that are in no profile."""
        return self.answered - self.total.rows

    def __add__(self, other: WindowCounts) -> WindowCounts:
        """The counts of both. Both are of one version; the window is the smallest that holds both."""
        if self.version != other.version:
            raise ValueError(f"counts of versions {self.version} and {other.version} are not added")
        start = min(self.start, other.start)
        end = max(self.start + self.seconds, other.start + other.seconds)
        segments, refused = dict(self.segments), dict(self.refused)
        for name, rows in other.segments.items():
            segments[name] = segments.get(name, ProfileCounts()) + rows
        for reason, number in other.refused.items():
            refused[reason] = refused.get(reason, 0) + number
        answered = self.answered + other.answered
        return WindowCounts(self.version, start, end - start, self.total + other.total, segments, answered, refused)

    def to_json(self) -> Json:
        """The counts as JSON."""
        return {
            "version": self.version,
            "start": self.start,
            "seconds": self.seconds,
            "total": self.total.to_json(),
            "segments": {name: rows.to_json() for name, rows in self.segments.items()},
            "answered": self.answered,
            "refused": dict(self.refused),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Json]) -> WindowCounts:
        """The counts that `to_json` returned. Raises KeyError, TypeError or ValueError for anything else."""
        return cls(
            str(value["version"]),
            float(value["start"]),
            float(value["seconds"]),
            ProfileCounts.from_json(value["total"]),
            {str(name): ProfileCounts.from_json(rows) for name, rows in value["segments"].items()},
            int(value["answered"]),
            {str(reason): int(number) for reason, number in value["refused"].items()},
        )


def _add(left: Counts, right: Counts) -> Counts:
    if len(left) != len(right):
        raise ValueError(f"counts of {len(left)} and of {len(right)} cells are not added")
    return tuple(first + second for first, second in zip(left, right, strict=True))
