"""Tests and confidence sequences that hold at every look: counts in, logarithms of e-values out.

An *e-value* against a hypothesis is a number that is at least 0 and has an expectation of at most 1 where the
hypothesis holds; an *e-process* is one at every stopping time. By Ville's inequality it ever reaches 1 / level with
probability at most ``level``, however often and whenever one looks. Everything here is in natural logarithms, so
evidence adds up, and 0 is none.

Two arms are always compared over the same period. A *block* is the counts between two looks. Each test states whether
it is exact or asymptotic, and under which assumptions. All assume that the requests of an arm are independent given the
past. Correlated observations (requests of one user, under sticky routing; rows of one request) are fewer than counts:
see `VariantCounts.request_quality`, `KeySketch`, and `Share.scaled` for clusters of known size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

ODDS_ABOVE = (1.2, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
_ODDS_BELOW = (1.1, 1.25, 1.6, 2.5, 6.0)
_SPREAD = (-1.6, -0.7, 0.0, 0.7, 1.6)
_TINY = 1e-9


@dataclass(frozen=True, slots=True)
class Share:
    """``hits`` among ``count`` observations. Not whole numbers where clusters were scaled down."""

    count: float = 0.0
    hits: float = 0.0

    def __add__(self, other: Share) -> Share:
        return Share(self.count + other.count, self.hits + other.hits)

    def __sub__(self, other: Share) -> Share:
        return Share(self.count - other.count, self.hits - other.hits)

    @property
    def rate(self) -> float:
        """NaN when nothing was counted."""
        return self.hits / self.count if self.count else math.nan

    def scaled(self, factor: float) -> Share:
        """The counts scaled to the number of clusters: ``factor`` is clusters / observations.

        Exact for clusters of one size: the geometric mean of a cluster's e-values is at most their arithmetic mean,
        whose expectation is at most 1 however the members of the cluster depend on one another.
        """
        return Share(self.count * factor, self.hits * factor)


@dataclass(frozen=True, slots=True)
class Wealth:
    """An e-process: a mixture over alternatives and over the moment from which they are bet on.

    ``logs`` is the log wealth of each alternative; ``reserve`` is the part not yet staked; ``spent`` counts
    observations. The reserve makes a challenger that turns bad after a long good time detectable soon: without it the
    stakes would be lost by then. After n observations 1 - 1 / (2 + 2 log(1 + n / 500)) has been staked, so the cost of
    waiting grows as slowly as log log n.
    """

    logs: tuple[float, ...] = ()
    spent: float = 0.0

    @classmethod
    def from_json(cls, value: Sequence[float] | None) -> Wealth:
        """The wealth that `to_json` returned; None is the wealth before the first bet.

        >>> wealth = Wealth().bet([0.5, -0.5], 100)
        >>> Wealth.from_json(wealth.to_json()) == wealth
        True
        """
        spent, *logs = value or (0.0,)
        return cls(tuple(logs), spent)

    def to_json(self) -> list[float]:
        """``spent``, then the log wealth of each alternative."""
        return [self.spent, *self.logs]

    @property
    def reserve(self) -> float:
        """The share not yet staked."""
        return _reserve(self.spent)

    @property
    def log(self) -> float:
        """The logarithm of the e-process."""
        return log_sum((math.log(self.reserve), *self.logs))

    def bet(self, logs: Sequence[float], count: float) -> Wealth:
        """The wealth after a block of ``count`` observations with e-value exp(logs) for each alternative.

        >>> wealth = Wealth().bet([0.0, 0.0], 100)
        >>> round(wealth.log, 9), round(wealth.bet([3.0, -2.0], 100).log, 2)
        (0.0, 1.9)
        """
        before = 1.0 if not self.logs else self.reserve
        spent = self.spent + count
        stake = math.log(max(before - _reserve(spent), 1e-300) / len(logs))
        held = self.logs or (-math.inf,) * len(logs)
        return Wealth(tuple(_log_add(own, stake) + gain for own, gain in zip(held, logs, strict=True)), spent)


def _reserve(spent: float) -> float:
    return 0.5 / (1.0 + math.log1p(spent / 500.0)) if spent else 1.0


def _log_add(first: float, second: float) -> float:
    low, high = (first, second) if first < second else (second, first)
    return high + math.log1p(math.exp(low - high))


def log_sum(values: Sequence[float]) -> float:
    """log(sum(exp(values))), without overflow."""
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values)) if top > -math.inf else top


def rate_bets(block: Share, bound: float) -> tuple[list[float], list[float]]:
    """Log e-values of a block of one arm: against "the rate is at most ``bound``", and against "at least".

    Alternatives lie at fixed odds beyond the bound. Each is the likelihood ratio against the bound itself; an
    observation's expected factor is linear in its rate and 1 at the bound, so the product over blocks is exact for any
    drift of the rate on its side of the bound (Waudby-Smith & Ramdas, JRSS-B 2024: a bet on a coin; observations in
    [0, 1] rather than {0, 1} will do).

    >>> above, below = rate_bets(Share(400, 20), 0.02)
    >>> max(above) > math.log(100) and max(below) < 0
    True
    """
    bound = min(max(bound, _TINY), 1 - _TINY)
    return (
        [_likelihood_ratio(block, scale_odds(bound, ratio), bound) for ratio in ODDS_ABOVE],
        [_likelihood_ratio(block, scale_odds(bound, 1 / ratio), bound) for ratio in ODDS_ABOVE],
    )


def scale_odds(rate: float, ratio: float) -> float:
    """The rate with its odds multiplied by ``ratio``."""
    return rate * ratio / (1 - rate + rate * ratio)


def _likelihood_ratio(block: Share, rate: float, bound: float) -> float:
    misses = block.count - block.hits
    return block.hits * math.log(rate / bound) + misses * math.log((1 - rate) / (1 - bound))


def rate_difference_bets(
    champion: Share, challenger: Share, margin: float, past: Share
) -> tuple[list[float], list[float]]:
    """Log e-values of a block of two arms: against "challenger - champion <= margin", and against ">= margin".

    Each is the likelihood ratio of an alternative pair of rates against the pair in the hypothesis that is nearest to
    it in Kullback-Leibler divergence (Turner, Ly & Grünwald, JSPI 2024; with a margin: Turner & Grünwald, Statistics &
    Probability Letters 2023). Exact: the expectation's logarithm is concave in the rates, 0 at that nearest pair and
    falls from there into the hypothesis, which is convex. By the same concavity only the rates' *averages over the
    block* must fulfil the hypothesis: both may drift together within blocks and between.

    Alternatives are centred on the champion's rate in ``past`` (blocks before this one), averaged over its
    uncertainty; a bad guess costs power, not validity. Both arms of the block must have observations.

    >>> worse, not_worse = rate_difference_bets(Share(9500, 95), Share(500, 25), 0.005, Share(9500, 95))
    >>> max(worse) > math.log(100) and max(not_worse) < 0
    True
    """
    import numpy as np

    base = (past.hits + 0.5) / (past.count + 50.0)
    offsets = np.array(_SPREAD) / math.sqrt(past.hits + 0.5)
    odds = base / (1 - base) * np.exp(offsets)
    first = np.clip(odds / (1 + odds), 1e-7, 1 - margin - 1e-6 if margin < 1 else 1e-6)[None, :]
    edge = np.minimum(first + margin, 1 - 1e-6)
    above, below = _odds_of(edge, ODDS_ABOVE), _odds_of(first, [1 / ratio for ratio in _ODDS_BELOW])
    nearer = [edge - margin / 2, first] if margin > 0 else []
    second = np.concatenate([above, *nearer, below])
    first = np.broadcast_to(first, second.shape)
    logs = _nearest_pair_logs(champion, challenger, margin, first, second)
    top = logs.max(axis=1)
    mixed = top + np.log(np.exp(logs - top[:, None]).mean(axis=1))
    return mixed[: len(above)].tolist(), mixed[len(above) :].tolist()


def _odds_of(rates: Array, ratios: Sequence[float]) -> Array:
    """The rates (one row) with their odds multiplied by each ratio, a row each."""
    import numpy as np

    column = np.array(ratios)[:, None]
    scaled: Array = rates * column / (1 - rates + rates * column)
    return scaled


def _nearest_pair_logs(champion: Share, challenger: Share, margin: float, first: Array, second: Array) -> Array:
    """Log likelihood ratios of pairs (first, second) against the nearest pairs (t, t + margin)."""
    import numpy as np

    t = nearest_rate(champion.count, challenger.count, margin, first, second)
    logs: Array = np.zeros_like(t)
    for share, rate, nearest in ((champion, first, t), (challenger, second, t + margin)):
        logs = logs + share.hits * np.log(rate / nearest)
        logs = logs + (share.count - share.hits) * np.log((1 - rate) / (1 - nearest))
    return logs


def nearest_rate(champion: float, challenger: float, margin: float, first: Array, second: Array) -> Array:
    """The t for which (t, t + margin) is nearest to (first, second), weighted by the arms' counts.

    The middle root of a cubic that has one root below 0, one in (0, 1 - margin) and one above: by its cosine, then
    Newton's method for the digits that the cosine loses where rates are small.

    >>> import numpy as np
    >>> float(nearest_rate(300.0, 100.0, 0.0, np.array([0.01]), np.array([0.03]))[0])
    0.015
    """
    import numpy as np

    total = champion + challenger
    if not margin:
        mean: Array = (champion * first + challenger * second) / total
        return mean
    rest, far = 1 - margin, second - margin
    square = -(challenger * (1 + far) + champion * (rest - margin + first)) / total
    linear = -(-challenger * far + champion * (rest * (margin - first) + first * margin)) / total
    constant = champion * rest * first * margin / total
    centre = -square / 3
    p = linear - square * square / 3
    q = 2 * square**3 / 27 - square * linear / 3 + constant
    radius = np.sqrt(-p / 3)
    angle = np.arccos(np.clip(-q / (2 * radius**3), -1, 1)) / 3
    t = np.clip(centre + 2 * radius * np.cos(angle - 2 * math.pi / 3), 1e-12, rest - 1e-12)
    for _ in range(3):
        value = ((t + square) * t + linear) * t + constant
        t = np.clip(t - value / ((3 * t + 2 * square) * t + linear), t / 4, (t + 3 * rest) / 4)
    nearest: Array = t
    return nearest


@dataclass(frozen=True, slots=True)
class Stratum:
    """A difference of means, challenger minus champion, and its variance, of one epoch."""

    difference: float
    variance: float


def pool(strata: Sequence[Stratum]) -> tuple[float, float]:
    """The mean difference over strata weighted by information (1 / variance), and the total information.

    Strata with different base rates are never pooled as one sample; only their differences are.

    >>> pool([Stratum(0.02, 0.0004), Stratum(0.05, 0.0004)])
    (0.035, 5000.0)
    """
    information = sum(1 / stratum.variance for stratum in strata)
    if not information:
        return math.nan, 0.0
    return sum(stratum.difference / stratum.variance for stratum in strata) / information, information


def mean_evidence(difference: float, information: float, bound: float, scale: float) -> tuple[float, float]:
    """Log evidence against "the mean is at most ``bound``", and against "at least".

    Asymptotic: valid as far as the sum of observations, in units of information, is a Brownian motion (Waudby-Smith,
    Arbour, Sinha, Kennedy & Ramdas, Annals of Statistics 2024), as the difference of two arms is at any ratio of their
    counts. The one-sided normal mixture of Robbins (1970; Howard et al., Annals of Statistics 2021, section 3.2):
    alternatives beyond the bound are half normal with standard deviation ``scale``.

    >>> above, below = mean_evidence(0.05, 10_000.0, 0.0, 0.05)
    >>> round(above, 2), round(below, 2)
    (11.08, -3.48)
    """
    spread = scale * scale * information
    if not spread:
        return 0.0, 0.0
    z = (difference - bound) * information * scale / math.sqrt(1 + spread)
    flat = math.log(2) - 0.5 * math.log1p(spread)
    return flat + _log_tilted(z), flat + _log_tilted(-z)


def _log_tilted(z: float) -> float:
    """log(exp(z^2 / 2) P(N < z)), without overflow."""
    if z > -20:
        return z * z / 2 + math.log(0.5 * math.erfc(-z / math.sqrt(2)))
    return -math.log(-z * math.sqrt(2 * math.pi)) + math.log1p(-1 / z**2)


def mean_radius(information: float, scale: float, level: float) -> float:
    """Half the width of the confidence sequence for a mean at 1 - ``level``; infinite without information.

    Asymptotic, the two-sided normal mixture of the papers named in `mean_evidence`.

    >>> round(mean_radius(10_000.0, 0.05, 0.05), 4)
    0.031
    """
    spread = scale * scale * information
    if not spread:
        return math.inf
    return math.sqrt(2 * (1 + spread) / (spread * information) * math.log(math.sqrt(1 + spread) / level))


def distance(champion: Sequence[float], challenger: Sequence[float], ordered: bool) -> tuple[float, tuple[int, ...]]:
    """The distance of two distributions over the same classes, from 0 to 1, and a set of classes that attains it.

    Total variation: the most by which the challenger's share of any set of classes exceeds the champion's. Where
    classes are ``ordered``: Kolmogorov and Smirnov's distance, over sets that are one end of the order.

    >>> distance([90, 10, 0], [70, 20, 10], ordered=False)
    (0.2, (1, 2))
    """
    first, second = sum(champion), sum(challenger)
    if not first or not second:
        return math.nan, ()
    differences = [theirs / second - ours / first for ours, theirs in zip(champion, challenger, strict=True)]
    if not ordered:
        larger = tuple(index for index, difference in enumerate(differences) if difference > 0)
        return round(sum(differences[index] for index in larger), 12), larger
    sums = list(accumulate(differences))
    split = max(range(len(sums)), key=lambda index: abs(sums[index]))
    lower, upper = tuple(range(split + 1)), tuple(range(split + 1, len(sums)))
    return round(abs(sums[split]), 12), lower if sums[split] > 0 else upper
