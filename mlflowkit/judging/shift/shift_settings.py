"""What a recipe asks of the shift test."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

LEARN = 7
"""Windows that a baseline needs before anything is judged: fewer say too little of how windows differ by themselves."""


@dataclass(frozen=True, slots=True)
class ColumnLimits:
    """Limits of one column; None is the common one.

    margin      a distance that is no harm
    missing, new, range
                the largest share of missing values, of new ones, or of values outside of the reference's range that is
                no harm, whatever the baseline's is
    """

    margin: float | None = None
    missing: float | None = None
    new: float | None = None
    range: float | None = None


@dataclass(frozen=True, slots=True)
class ShiftSettings:
    """Settings of `advance`, common to all columns but for ``limits``.

    missing, new, range, type
                      how far a share (of missing values, of new ones, of values outside of the reference's range, of
                      requests refused) may lie above the baseline's without harm; margin: the same of a distance
    level             the level of the false discovery rate, over columns, segments and aspects
    sustained         windows of evidence that an alarm needs at least; rearm: windows within the margin that end it
    min_rows          effective rows below which a window is not judged
    baseline          live: the first ``baseline_windows`` windows of the version, frozen then; training: the reference;
                      season: the first ``season_count`` windows at the same place of a season of ``season_seconds``
    ignored           columns that are not judged
    """

    level: float = 0.05
    margin: float = 0.1
    sustained: int = 3
    rearm: int = 2
    min_rows: float = 300.0
    missing: float = 0.05
    new: float = 0.01
    range: float = 0.02
    type: float = 0.01
    baseline: Literal["live", "training", "season"] = "live"
    baseline_windows: int = 14
    season_seconds: float = 7 * 86_400.0
    season_count: int = 4
    limits: Mapping[str, ColumnLimits] = field(default_factory=dict)
    ignored: Collection[str] = ()

    def limit(self, column: str, aspect: str) -> float:
        """What is allowed of an aspect of a column: a distance, or a rise of a share.

        >>> settings = ShiftSettings(limits={"age": ColumnLimits(margin=0.2)})
        >>> settings.limit("age", "distribution"), settings.limit("age", "missing"), settings.limit("sex", "new")
        (0.2, 0.05, 0.01)
        """
        name = "margin" if aspect == "distribution" else aspect
        own = self._own(column, name)
        return float(getattr(self, name) if own is None else own)

    def absolute(self, column: str, aspect: str) -> bool:
        """Whether the limit is that of a share as it is, not of its rise above the baseline's."""
        return aspect != "distribution" and self._own(column, aspect) is not None

    @property
    def learn(self) -> int:
        """Windows of a live baseline before anything is judged."""
        return min(LEARN, max(self.baseline_windows, 2))

    def _own(self, column: str, name: str) -> float | None:
        own: float | None = getattr(self.limits.get(column), name, None)
        return own
