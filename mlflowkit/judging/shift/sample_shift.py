"""How far two samples of a column are apart: a comparison at one time, of counts over the same cells.

The distance is Kolmogorov and Smirnov's over ordered cells, else total variation, between the present values of both;
missing values, values that are new and values outside of the range are shares of their own. Intervals hold for all
aspects of all columns at once (Bonferroni), without any assumption on the distributions: for ordered cells by the
Dvoretzky-Kiefer-Wolfowitz inequality with Massart's constant (Annals of Probability 18, 1990), for others by
McDiarmid's inequality around the expected total variation, for shares by the interval of Clopper and Pearson,
combined by Newcombe's method. A small first sample has not seen all there is: by how much that alone may raise the
shares of new and outside values is allowed for (`chance_outside`, `chance_new`). They assume that observations are
independent: rows, or units of several rows where a unit is named. The mean over a unit's rows is one observation,
which varies no more than a row that is drawn from it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflowkit.judging import stats
from mlflowkit.judging.shift.findings import Aspect, ColumnFinding
from mlflowkit.values import Outcome

if TYPE_CHECKING:
    import numpy as np


MUCH_HIDDEN = 0.01
"""Share of values that are not told apart, from which a message says so."""


@dataclass(frozen=True, slots=True)
class ColumnSample:
    """One side of a comparison: present values by cell, and the missing ones. ``counts`` and ``missing`` are weights of
    observations: whole numbers of rows, or shares of units."""

    counts: Sequence[float] | np.ndarray
    missing: float
    rows: int

    @property
    def present(self) -> float:
        return float(sum(self.counts)) if isinstance(self.counts, Sequence) else float(self.counts.sum())

    @property
    def observations(self) -> float:
        return self.present + self.missing


@dataclass(frozen=True, slots=True)
class SampleShift:
    """The settings of a comparison: the distance that is no harm, how much each share may rise, and the level that all
    ``aspects`` share."""

    margin: float = 0.1
    missing: float = 0.05
    new: float = 0.01
    range: float = 0.02
    level: float = 0.05
    aspects: int = 1

    @property
    def confidence(self) -> float:
        """The confidence of each interval, so that all hold at 1 - ``level``."""
        return 1 - self.level / max(self.aspects, 1)


def compare_distributions(
    column: str,
    first: ColumnSample,
    second: ColumnSample,
    ordered: bool,
    settings: SampleShift,
    segment: str = "",
    hidden: float = 0.0,
) -> ColumnFinding:
    """The distance of the present values of the second sample from those of the first.

    ``hidden`` is the share of present values that are in a cell of many values: by so much the distance may be larger.

    >>> settings = SampleShift(margin=0.1)
    >>> finding = compare_distributions("age", ColumnSample((5000, 5000), 0, 10000),
    ...     ColumnSample((2000, 8000), 0, 10000), True, settings)
    >>> finding.outcome.value, round(finding.value, 3), round(finding.low, 2), round(finding.high, 2)
    ('FAILED', 0.3, 0.27, 0.33)
    """
    rows, effective = second.rows, min(first.present, second.present)
    if not first.present or not second.present:
        side = "the first table" if not first.present else "the second table"
        message = f"{_name(column, segment)}: no present values in {side}, so no distance"
        return _undecided(column, "distribution", settings.margin, rows, effective, segment, message)
    import numpy as np

    shares = [np.asarray(side.counts, float) / side.present for side in (first, second)]
    differences = shares[1] - shares[0]
    value = float(np.abs(np.cumsum(differences)).max() if ordered else differences[differences > 0].sum())
    share = (1 - settings.confidence) / 2
    below = sum(_doubt(own, side.present, ordered, share) for own, side in zip(shares, (first, second), strict=True))
    above = sum(math.sqrt(math.log(2 / share) / (2 * side.present)) for side in (first, second))
    value = min(round(value, 12), 1.0)
    low, high = max(value - below, 0.0), min(value + above + hidden, 1.0)
    outcome = _outcome(low, high, settings.margin)
    verb = {Outcome.FAILED: "beyond", Outcome.PASSED: "within"}.get(outcome, "undecided at")
    kind = "Kolmogorov-Smirnov distance" if ordered else "total variation"
    message = f"{_name(column, segment)}: {kind} {value:.3f} ({low:.3f} to {high:.3f}), {verb} the margin of "
    message += f"{settings.margin:g}"
    if hidden >= MUCH_HIDDEN:
        message += f"; {_percent(hidden)} % of the values are beyond those that are kept, and are not told apart"
    return ColumnFinding(
        column, "distribution", outcome, value, low, high, settings.margin, 0.0, rows, round(effective, 2),
        segment=segment, message=message,
    )  # fmt: skip


def compare_shares(
    column: str,
    aspect: Aspect,
    hits: tuple[float, float],
    observations: tuple[float, float],
    rows: int,
    settings: SampleShift,
    segment: str = "",
    chance: float = 0.0,
) -> ColumnFinding:
    """How much the share of an aspect (missing, new, range) rose from the first sample to the second.

    ``chance`` is the share that the second sample may have because the first is small: so much more is no failure.

    >>> finding = compare_shares("age", "missing", (0, 40), (100, 100), 100, SampleShift())
    >>> finding.outcome.value, finding.value, round(finding.low, 2)
    ('FAILED', 0.4, 0.3)
    """
    allowed = float(getattr(settings, aspect))
    effective = min(observations)
    if not effective:
        message = f"{_name(column, segment)}: no rows, so no share of {_SHARES[aspect]}"
        return _undecided(column, aspect, allowed, rows, effective, segment, message)
    shares = [part / whole for part, whole in zip(hits, observations, strict=True)]
    bounds = [_exact_bounds(part, whole, settings.confidence) for part, whole in zip(hits, observations, strict=True)]
    value = shares[1] - shares[0]
    low = value - math.hypot(shares[1] - bounds[1][0], bounds[0][1] - shares[0])
    high = value + math.hypot(bounds[1][1] - shares[1], shares[0] - bounds[0][0])
    if aspect != "missing":  # none is new or outside of the first table by definition
        low, high = bounds[1]
    outcome = _outcome(low, high, allowed, allowed + chance)
    verb = {Outcome.FAILED: "more than", Outcome.PASSED: "within"}.get(outcome, "undecided at")
    message = f"{_name(column, segment)}: {_percent(shares[1])} % {_SHARES[aspect]}"
    if aspect == "missing":
        message += f" after {_percent(shares[0])} %, a rise of {_percent(value)}"
    message += f" ({_percent(low)} to {_percent(high)}), {verb} the {_percent(allowed)} allowed"
    if outcome is Outcome.INCONCLUSIVE and low > allowed:
        message += f": a first table of {observations[0]:,.0f} may alone be the reason for {_percent(chance)}"
    return ColumnFinding(
        column, aspect, outcome, value, low, high, allowed, 0.0, rows, round(effective, 2),
        segment=segment, message=message,
    )  # fmt: skip


_SHARES = {
    "missing": "missing values",
    "new": "values that the first table does not have",
    "range": "values outside of the first table's range",
}


def chance_outside(observations: float, confidence: float) -> float:
    """The largest share of one distribution that lies outside of the range of so many of its values.

    That share has the distribution Beta(2, n - 1), whatever the values' is (Wilks, Annals of Mathematical
    Statistics 12, 1941); less where values are tied.

    >>> round(chance_outside(10, 0.95), 2), round(chance_outside(10_000, 0.95), 5)
    (0.45, 0.00056)
    """
    from scipy.special import betaincinv

    return 1.0 if observations <= 1 else float(betaincinv(2, observations - 1, (1 + confidence) / 2))


def chance_new(singles: float, observations: float, confidence: float) -> float:
    """The largest share of one distribution that a sample has not seen, of which ``singles`` values were seen once.

    The share of values seen once estimates it (Good, Biometrika 40, 1953); its bound is taken as that of a share of
    independent observations.

    >>> round(chance_new(0, 1000, 0.95), 4), round(chance_new(300, 1000, 0.95), 2)
    (0.0037, 0.33)
    """
    return _exact_bounds(min(singles, observations), observations, confidence)[1]


def _exact_bounds(hits: float, observations: float, confidence: float) -> stats.Bounds:
    import numpy as np

    from mlflowkit.judging.shift.distances import share_interval

    whole = np.array(observations)
    _, low, high = share_interval(np.array(hits), whole, whole, 1 - confidence)
    return float(low), float(high)


def _outcome(low: float, high: float, allowed: float, most: float | None = None) -> Outcome:
    return (
        Outcome.FAILED
        if low > (allowed if most is None else most)
        else Outcome.PASSED
        if high <= allowed
        else Outcome.INCONCLUSIVE
    )


def _doubt(shares: np.ndarray, observations: float, ordered: bool, level: float) -> float:
    """How far a sample's distribution may be from its own truth, at 1 - ``level``."""
    if ordered:
        return math.sqrt(math.log(2 / level) / (2 * observations))
    expected = 0.5 * float(((shares * (1 - shares) / observations) ** 0.5).sum())
    return expected + math.sqrt(math.log(1 / level) / (2 * observations))


def _undecided(
    column: str, aspect: Aspect, allowed: float, rows: int, effective: float, segment: str, message: str
) -> ColumnFinding:
    return ColumnFinding(
        column, aspect, Outcome.INCONCLUSIVE, None, None, None, allowed, 0.0, rows, round(effective, 2),
        segment=segment, message=message,
    )  # fmt: skip


def _name(column: str, segment: str) -> str:
    return column + (f" where {segment}" if segment else "")


def _percent(share: float) -> str:
    return f"{100 * share:.3g}"
