"""Whether new training rows are nearer to the live rows than the champion's were. Pure: counts in, a verdict out.

All three are counted in the cells of the champion's reference. The distance is Kolmogorov and Smirnov's where cells
are ordered (missing values come last), total variation otherwise; the interval of the difference of two distances is
that of a bootstrap of the counts (Efron & Tibshirani 1993, chapter 13), with the effective number of live rows. A
bootstrapped distance is biased upward; both distances are to the same live rows, and the bias of the difference is
small where the numbers of training rows are alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflowkit.judging.shift.counts import Counts
from mlflowkit.values import Outcome

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

DRAWS = 800
LEVEL = 0.05
FACTORS: tuple[float, ...] = (10.0, 100.0, 1000.0, 1e6, 12.0, 24.0, 60.0, 3600.0, 86400.0)
"""Ratios of units that programs confuse: powers of ten, months, hours, minutes, seconds."""
RATIO_TOLERANCE = 0.25
"""How far the ratios of the quantiles may be from a factor: the values of other rows, in other units, differ too."""


@dataclass(frozen=True, slots=True)
class ComparedColumn:
    """Counts of one column: of the champion's training rows, of the new ones, and of live rows.

    ordered           whether the cells have an order, in which the last one, missing, comes last
    rows_per_cluster  the design effect of the live rows: this many count as one
    """

    champion: Counts
    fresh: Counts
    live: Counts
    ordered: bool
    importance: float | None = None
    rows_per_cluster: float = 1.0


@dataclass(frozen=True, slots=True)
class ColumnNearness:
    """Distances to the live rows, and the difference new minus champion's with its interval: below 0 is nearer."""

    column: str
    champion: float
    fresh: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        return self.fresh - self.champion

    def describe(self) -> str:
        word = "nearer" if self.high < 0 else "farther" if self.low > 0 else "as far"
        return (
            f"{self.column} {self.champion:.3g} -> {self.fresh:.3g} from live "
            f"({word}: {self.difference:+.3g} [{self.low:.3g}, {self.high:.3g}])"
        )


@dataclass(frozen=True, slots=True)
class Nearness:
    """The verdict: PASSED where the new rows are nearer, with one sentence."""

    outcome: Outcome
    message: str
    columns: tuple[ColumnNearness, ...] = ()


def compare_training_rows(
    columns: Mapping[str, ComparedColumn], drifted: Sequence[str], *, margin: float = 0.1, hint: str = ""
) -> Nearness:
    """Compare new training rows with the champion's.

    Of the ``drifted`` columns the mean distance, weighted by importance, must fall: its interval must be below 0. No
    other column may move away by surely more than ``margin``. Without drifted columns (lost performance alone asks for
    a new model) only the latter is required.

    >>> shifted = ComparedColumn((900, 100, 0), (100, 900, 0), (110, 890, 0), True)
    >>> compare_training_rows({"amount": shifted}, ["amount"]).outcome
    <Outcome.PASSED: 'PASSED'>
    """
    known = {name: column for name, column in columns.items() if _comparable(column)}
    draws = {name: _difference_draws(column, index) for index, (name, column) in enumerate(sorted(known.items()))}
    nearness = {name: _column_nearness(name, known[name], draws[name]) for name in known}
    judged = [name for name in drifted if name in known]
    ordered = tuple(sorted(nearness.values(), key=lambda item: (item.column not in judged, item.column)))
    farther = [item for item in ordered if item.low > margin]
    if drifted and not judged:
        names = ", ".join(drifted)
        return Nearness(Outcome.INCONCLUSIVE, f"{names} cannot be compared with the live rows{_hinted(hint)}", ordered)
    texts = "; ".join(nearness[name].describe() for name in judged)
    if judged:
        low, high = _weighted_interval({name: known[name] for name in judged}, draws)
        if high >= 0:
            outcome = Outcome.FAILED if low >= 0 else Outcome.INCONCLUSIVE
            return Nearness(outcome, f"the new data are not nearer to what is live: {texts}{_hinted(hint)}", ordered)
    if farther:
        away = "; ".join(item.describe() for item in farther)
        return Nearness(Outcome.FAILED, f"the new data are farther from what is live: {away}{_hinted(hint)}", ordered)
    return Nearness(Outcome.PASSED, texts or "no column of the new data is farther from what is live", ordered)


def unit_hint(column: str, trained: Sequence[float], live: Sequence[float]) -> str:
    """A question about units where all quantiles of the live values are the same multiple of the trained ones; or "".

    >>> unit_hint("amount", (10.0, 20.0, 40.0), (1000.0, 2050.0, 3900.0))
    'amount x100?'
    >>> unit_hint("amount", (10.0, 20.0, 40.0), (0.1, 0.2, 0.4)), unit_hint("amount", (10.0, 20.0), (15.0, 30.0))
    ('amount /100?', '')
    """
    pairs = list(zip(trained, live, strict=False))
    if len(pairs) < 2 or any(not first or not second or (first > 0) != (second > 0) for first, second in pairs):
        return ""
    logs = [math.log(second / first) for first, second in pairs]
    for factor in FACTORS:
        for sign, text in ((1, "x"), (-1, "/")):
            if all(abs(value - sign * math.log(factor)) <= RATIO_TOLERANCE for value in logs):
                return f"{column} {text}{factor:g}?"
    return ""


def _hinted(hint: str) -> str:
    return f"; upstream fault? {hint}" if hint else "; upstream fault?"


def _comparable(column: ComparedColumn) -> bool:
    sizes = {len(column.champion), len(column.fresh), len(column.live)}
    return len(sizes) == 1 and min(map(sum, (column.champion, column.fresh, column.live))) > 0


def _difference_draws(column: ComparedColumn, seed: int) -> Array:
    """Bootstrapped differences of the distances, new minus champion's; a NumPy array of DRAWS."""
    import numpy as np

    random = np.random.default_rng(seed)

    def shares(counts: Counts, rows_per_cluster: float = 1.0) -> Array:
        total = sum(counts)
        observations = max(1, round(total / max(1.0, rows_per_cluster)))
        drawn = random.multinomial(observations, np.array(counts) / total, size=DRAWS)
        return drawn / observations

    live = shares(column.live, column.rows_per_cluster)
    return _distances(shares(column.fresh), live, column.ordered) - _distances(
        shares(column.champion), live, column.ordered
    )


def _distances(first: Array, second: Array, ordered: bool) -> Array:
    """Distances of shares (..., cells), one for each row."""
    import numpy as np

    differences = first - second
    distances: Array
    if ordered:
        distances = np.abs(np.cumsum(differences, axis=-1)).max(axis=-1)
    else:
        distances = np.abs(differences).sum(axis=-1) / 2
    return distances


def _column_nearness(name: str, column: ComparedColumn, draws: Array) -> ColumnNearness:
    import numpy as np

    live, champion, fresh = (np.array(counts) / sum(counts) for counts in (column.live, column.champion, column.fresh))
    low, high = np.quantile(draws, (LEVEL / 2, 1 - LEVEL / 2))
    values = [float(_distances(rows, live, column.ordered)) for rows in (champion, fresh)]
    return ColumnNearness(name, values[0], values[1], float(low), float(high))


def _weighted_interval(columns: Mapping[str, ComparedColumn], draws: Mapping[str, Array]) -> tuple[float, float]:
    """The interval of the mean difference, weighted by importance; all alike where no importance is known."""
    import numpy as np

    weights = {name: column.importance or 0.0 for name, column in columns.items()}
    if not sum(weights.values()):
        weights = dict.fromkeys(columns, 1.0)
    total = sum(weights.values())
    mean = np.sum([weight / total * draws[name] for name, weight in weights.items()], axis=0)
    low, high = np.quantile(mean, (LEVEL / 2, 1 - LEVEL / 2))
    return float(low), float(high)
