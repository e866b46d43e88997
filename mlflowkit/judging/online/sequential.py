"""Tests and confidence sequences that hold at every look: counts in, logarithms of e-values out.

An *e-value* against a hypothesis is a number that is at least 0 and has an expectation of at most 1 where the
hypothesis holds; an *e-process* is one at every stopping time. By Ville's inequality it ever reaches 1 / level with
probability at most ``level``, however often and whenever one looks. Everything here is in natural logarithms, so
evidence adds up, and 0 is none.

Two arms are always compared as they were at the same time. A *block* is what came in between two looks. Which of the
tests are exact and which asymptotic, and under what, is said at each. All of them take the requests of an arm to be
independent given the past. Requests that share their fate (one user's, under sticky routing; the rows of one request)
are fewer observations than they are counts: `scaled` says what to do when the size of such clusters is known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from operator import mul
from typing import TYPE_CHECKING

from mlflowkit.judging.online.evidence import LATENCY_GROWTH

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

_ODDS_ABOVE = (1.2, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0)
_ODDS_BELOW = (1.1, 1.25, 1.6, 2.5, 6.0)
_ODDS_TAIL = (1.07, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0)
_SPREAD = (-1.6, -0.7, 0.0, 0.7, 1.6)
_TINY = 1e-9
_LOG_GROWTH = math.log(LATENCY_GROWTH)
_LOG_TAILS = math.log(len(_ODDS_TAIL))

LATENCY_BINS = 1120
"""Bins that latencies are judged in: an hour and more."""


@dataclass(frozen=True, slots=True)
class Share:
    """How many of ``count`` observations were of a kind. Not whole where clusters were scaled down."""

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
        """As many observations as there are clusters: ``factor`` is clusters / observations.

        Exact for clusters of one size: the geometric mean of a cluster's e-values is at most their arithmetic mean,
        whose expectation is at most 1 however the members of the cluster depend on one another.
        """
        return Share(self.count * factor, self.hits * factor)


@dataclass(frozen=True, slots=True)
class Wealth:
    """An e-process: a mixture over alternatives and over the moment from which they are bet on.

    ``logs`` is the wealth of each alternative; ``reserve`` has not been staked; ``spent`` counts observations. Keeping
    a reserve is what lets a challenger that turned bad after a long good time be found out quickly: without it the
    stakes would have been lost by then. By n observations 1 - 1 / (2 + 2 log(1 + n / 500)) of it has been staked, so
    what is lost to waiting grows as slowly as log log n.
    """

    logs: tuple[float, ...] = ()
    spent: float = 0.0

    @classmethod
    def from_json(cls, value: Sequence[float] | None) -> Wealth:
        """The wealth that `to_json` gave; of None, that before the first bet.

        >>> wealth = Wealth().bet([0.5, -0.5], 100)
        >>> Wealth.from_json(wealth.to_json()) == wealth
        True
        """
        spent, *logs = value or (0.0,)
        return cls(tuple(logs), spent)

    def to_json(self) -> list[float]:
        """What was spent, and the wealth of each alternative."""
        return [self.spent, *self.logs]

    @property
    def reserve(self) -> float:
        """What has not been staked, of 1."""
        return _reserve(self.spent)

    @property
    def log(self) -> float:
        """The logarithm of the e-process."""
        return _log_sum((math.log(self.reserve), *self.logs))

    def bet(self, logs: Sequence[float], count: float) -> Wealth:
        """Wealth after a block of ``count`` observations in which each alternative's e-value was exp(logs).

        >>> wealth = Wealth().bet([0.0, 0.0], 100)
        >>> round(wealth.log, 9), round(wealth.bet([3.0, -2.0], 100).log, 2)
        (0.0, 1.9)
        """
        before = 1.0 if not self.logs else self.reserve
        spent = self.spent + count
        stake = math.log(max(before - _reserve(spent), 1e-300) / len(logs))
        held = self.logs or (-math.inf,) * len(logs)
        return Wealth(
            tuple(_log_add(own, stake) + gain for own, gain in zip(held, logs, strict=True)),
            spent,
        )


def _reserve(spent: float) -> float:
    return 0.5 / (1.0 + math.log1p(spent / 500.0)) if spent else 1.0


def _log_add(first: float, second: float) -> float:
    low, high = (first, second) if first < second else (second, first)
    return high + math.log1p(math.exp(low - high))


def _log_sum(values: Sequence[float]) -> float:
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
        [_likelihood_ratio(block, _odds(bound, ratio), bound) for ratio in _ODDS_ABOVE],
        [_likelihood_ratio(block, _odds(bound, 1 / ratio), bound) for ratio in _ODDS_ABOVE],
    )


def _odds(rate: float, ratio: float) -> float:
    return rate * ratio / (1 - rate + rate * ratio)


def _likelihood_ratio(block: Share, rate: float, bound: float) -> float:
    misses = block.count - block.hits
    return block.hits * math.log(rate / bound) + misses * math.log((1 - rate) / (1 - bound))


def rate_difference_bets(
    champion: Share, challenger: Share, margin: float, past: Share
) -> tuple[list[float], list[float]]:
    """Log e-values of a block of two arms: against "challenger - champion <= margin" (harm), and against ">=" (proof).

    Each is the likelihood ratio of an alternative pair of rates against the pair in the hypothesis that is nearest to
    it in Kullback-Leibler divergence (Turner, Ly & Grünwald, JSPI 2024; with a margin: Turner & Grünwald, Statistics &
    Probability Letters 2023). Exact: the expectation's logarithm is concave in the rates, 0 at that nearest pair and
    falls from there into the hypothesis, which is convex. By the same concavity nothing is asked of the rates but that
    their *averages over the block* fulfil the hypothesis: they may drift, together, within blocks and between.

    Alternatives are centred on the champion's rate in ``past`` (blocks before this one), averaged over its
    uncertainty. A bad guess costs power, never validity. Both arms of the block must have observations.

    >>> harm, proof = rate_difference_bets(Share(9500, 95), Share(500, 25), 0.005, Share(9500, 95))
    >>> max(harm) > math.log(100) and max(proof) < 0
    True
    """
    import numpy as np

    base = (past.hits + 0.5) / (past.count + 50.0)
    offsets = np.array(_SPREAD) / math.sqrt(past.hits + 0.5)
    odds = base / (1 - base) * np.exp(offsets)
    first = np.clip(odds / (1 + odds), 1e-7, 1 - margin - 1e-6 if margin < 1 else 1e-6)[None, :]
    edge = np.minimum(first + margin, 1 - 1e-6)
    above, below = _odds_of(edge, _ODDS_ABOVE), _odds_of(first, [1 / ratio for ratio in _ODDS_BELOW])
    nearer = [edge - margin / 2, first] if margin > 0 else []
    second = np.concatenate([above, *nearer, below])
    first = np.broadcast_to(first, second.shape)
    logs = _nearest_pair_logs(champion, challenger, margin, first, second)
    top = logs.max(axis=1)
    mixed = top + np.log(np.exp(logs - top[:, None]).mean(axis=1))
    return mixed[: len(above)].tolist(), mixed[len(above) :].tolist()


def _odds_of(rates: Array, ratios: Sequence[float]) -> Array:
    """Rates (one row) at each ratio of their odds, a row each."""
    import numpy as np

    column = np.array(ratios)[:, None]
    found: Array = rates * column / (1 - rates + rates * column)
    return found


def _nearest_pair_logs(champion: Share, challenger: Share, margin: float, first: Array, second: Array) -> Array:
    """Likelihood ratios of pairs (first, second) against the nearest pairs (t, t + margin)."""
    import numpy as np

    t = nearest_rate(champion.count, challenger.count, margin, first, second)
    moved = t + margin
    kept, lost = champion.hits, champion.count - champion.hits
    found = kept * np.log(first / t) + lost * np.log((1 - first) / (1 - t))
    kept, lost = challenger.hits, challenger.count - challenger.hits
    ratio: Array = found + kept * np.log(second / moved) + lost * np.log((1 - second) / (1 - moved))
    return ratio


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


def pooled(strata: Sequence[Stratum]) -> tuple[float, float]:
    """The difference over all strata, each weighted by its information (1 / variance), and the information.

    Strata with different base rates are never pooled as one sample: only their differences are.

    >>> pooled([Stratum(0.02, 0.0004), Stratum(0.05, 0.0004)])
    (0.035, 5000.0)
    """
    information = sum(1 / stratum.variance for stratum in strata)
    if not information:
        return math.nan, 0.0
    return sum(stratum.difference / stratum.variance for stratum in strata) / information, information


def mean_evidence(difference: float, information: float, bound: float, scale: float) -> tuple[float, float]:
    """Log evidence against "the mean is at most ``bound``", and against "at least".

    Asymptotic: valid as far as the sum of what was seen, in units of information, is a Brownian motion (Waudby-Smith,
    Arbour, Sinha, Kennedy & Ramdas, Annals of Statistics 2024), which two arms' difference is at any ratio of their
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


def tail_logs(below: Array, count: float, quantile: float, too_many: bool) -> Array:
    """Log e-values, for each number of observations ``below`` a point, against "the point is at most the quantile"
    (too many lie below it) or else against "it is at least the quantile" (too few do).

    Exact at a point that is fixed: a mixture of likelihood ratios of a coin (Howard & Ramdas, Bernoulli 2022, the
    sequence for one quantile, with discrete instead of beta mixing).
    """
    import numpy as np

    slopes, misses = _tail_bets(quantile, too_many)
    found = np.array(slopes)[:, None] * below + count * np.array(misses)[:, None]
    top = found.max(axis=0)
    logs: Array = top + np.log(np.exp(found - top).sum(axis=0)) - _LOG_TAILS
    return logs


def tail_log(below: float, count: float, quantile: float, too_many: bool) -> float:
    """`tail_logs` of one number."""
    slopes, misses = _tail_bets(quantile, too_many)
    return _log_sum([below * slope + count * miss for slope, miss in zip(slopes, misses, strict=True)]) - _LOG_TAILS


@lru_cache(maxsize=32)
def _tail_bets(quantile: float, too_many: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What each alternative's log likelihood ratio gains by an observation below the point, and per observation."""
    slopes, misses = [], []
    for ratio in _ODDS_TAIL:
        rate = _odds(quantile, ratio if too_many else 1 / ratio)
        misses.append(math.log((1 - rate) / (1 - quantile)))
        slopes.append(math.log(rate / quantile) - misses[-1])
    return tuple(slopes), tuple(misses)


def distance(champion: Sequence[float], challenger: Sequence[float], ordered: bool) -> tuple[float, tuple[int, ...]]:
    """How far apart two distributions over the same classes are, from 0 to 1, and a set of classes in which it shows.

    Total variation, the most by which the challenger's share of any set of classes exceeds the champion's; or, where
    classes are ``ordered``, Kolmogorov and Smirnov's distance, of sets that are one end of the order.

    >>> distance([90, 10, 0], [70, 20, 10], ordered=False)
    (0.2, (1, 2))
    """
    ones, twos = sum(champion), sum(challenger)
    if not ones or not twos:
        return math.nan, ()
    differences = [two / twos - one / ones for one, two in zip(champion, challenger, strict=True)]
    if not ordered:
        chosen = tuple(index for index, difference in enumerate(differences) if difference > 0)
        return round(sum(differences[index] for index in chosen), 12), chosen
    sums = list(accumulate(differences))
    place = max(range(len(sums)), key=lambda index: abs(sums[index]))
    upto, beyond = tuple(range(place + 1)), tuple(range(place + 1, len(sums)))
    return round(abs(sums[place]), 12), upto if sums[place] > 0 else beyond


def counts_below(histogram: Mapping[int, int]) -> Array:
    """How many latencies lie in bins before bin j, for j = 0 ... `LATENCY_BINS`; the last bin holds all above."""
    import numpy as np

    found = np.zeros(LATENCY_BINS + 1)
    if histogram:
        indices = np.fromiter(histogram.keys(), dtype=np.int64, count=len(histogram))
        counts = np.fromiter(histogram.values(), dtype=np.float64, count=len(histogram))
        np.add.at(found, np.minimum(indices, LATENCY_BINS - 1) + 1, counts)
    below: Array = np.cumsum(found)
    return below


@lru_cache(maxsize=64)
def _moved_edges(ratio: float, margin: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each edge the first edge at or above ``ratio`` * edge + ``margin``, and the last at or below it."""
    import numpy as np

    seconds = np.exp(np.arange(LATENCY_BINS + 1) * _LOG_GROWTH) / 1e6
    moved = np.log((seconds * ratio + margin) * 1e6) / _LOG_GROWTH
    beyond = np.minimum(np.ceil(moved - 1e-9), LATENCY_BINS).astype(np.int64)
    return beyond, np.clip(np.floor(moved + 1e-9), 0, LATENCY_BINS).astype(np.int64)


def quantile_evidence(
    champion: Array, challenger: Array, quantile: float, ratio: float = 1.0, margin: float = 0.0
) -> tuple[float, float]:
    """Log evidence that the challenger's quantile is above ``ratio`` * champion's + ``margin`` (seconds), and below.

    ``champion`` and ``challenger`` are `counts_below`, gathered at the same time. Were x the champion's quantile, then
    e0(x), which says that it is not, and e1(ratio * x + margin), which says that the challenger's is beyond, would be
    e-processes of independent streams, and so would be their product; the smallest product over all x is at most that.
    A third of e0's stake is not bet, so that little is lost where x is the quantile indeed. Exact, but for the width of
    the bins, which is counted against either claim, where latencies of each arm are independent draws over the epoch;
    the arms need not be of one size. (Howard & Ramdas, Bernoulli 2022, section 5, combine the two arms' intervals
    instead, which asks for more observations.)

    >>> fast, slow = counts_below({400: 9950, 450: 50}), counts_below({400: 970, 450: 30})
    >>> [round(log, 1) for log in quantile_evidence(fast, slow, 0.99, ratio=1.2)]
    [10.1, -4.3]
    """
    import numpy as np

    total = float(champion[-1])
    if not total or not float(challenger[-1]):
        return 0.0, 0.0
    spread = 9 * math.sqrt(total * quantile * (1 - quantile)) + 9
    low = max(int(np.searchsorted(champion, total * quantile - spread)) - 1, 0)
    high = min(int(np.searchsorted(champion, total * quantile + spread)) + 1, LATENCY_BINS)

    arms = _Arms(champion, challenger, quantile, *_moved_edges(ratio, margin))
    harm, proof = arms.products(low, high)
    harm_beyond, proof_beyond = arms.outside(low, high)
    return (harm, proof) if harm <= harm_beyond and proof <= proof_beyond else arms.products(0, LATENCY_BINS)


@dataclass(frozen=True, slots=True)
class _Arms:
    """Two arms' `counts_below`, and the edges that the champion's move to: no less than exact, and no more."""

    champion: Array
    challenger: Array
    quantile: float
    beyond: NDArray[np.int64]
    within: NDArray[np.int64]

    def champions(self, edges: slice | NDArray[np.int64], too_many: bool) -> Array:
        """`tail_logs` of the champion at edges."""
        return tail_logs(self.champion[edges], float(self.champion[-1]), self.quantile, too_many)

    def challengers(self, edges: NDArray[np.int64], too_many: bool) -> Array:
        """`tail_logs` of the challenger at edges."""
        return tail_logs(self.challenger[edges], float(self.challenger[-1]), self.quantile, too_many)

    def products(self, low: int, high: int) -> tuple[float, float]:
        """The smallest products over the bins from low to high."""
        import numpy as np

        many = self.champions(slice(low, high), True)
        few = self.champions(slice(low + 1, high + 1), False)
        away = np.logaddexp(np.logaddexp(many, few), 0.0) - math.log(3)
        too_few = self.challengers(self.beyond[low + 1 : high + 1], False)
        too_many = self.challengers(self.within[low:high], True)
        return float((away + too_few).min()), float((away + too_many).min())

    def outside(self, low: int, high: int) -> tuple[float, float]:
        """What no product is below outside of the window: each factor is monotone, so a cell's ends bound it."""
        import numpy as np

        others = float(self.challenger[-1])
        widths = 2 ** np.arange(12) - 1
        ends = np.maximum(low - widths[::-1], 0)
        few = self.champions(ends[1:], False)
        left = self.challengers(self.within[ends[:-1]], True) + np.maximum(few, 0.0)
        ends = np.minimum(high + widths, LATENCY_BINS)
        many = self.champions(ends[:-1], True)
        right = self.challengers(self.beyond[ends[1:]], False) + np.maximum(many, 0.0)
        first = max(few[-1], 0.0) + tail_log(self.challenger[self.beyond[low]], others, self.quantile, False)
        last = max(many[0], 0.0) + tail_log(self.challenger[self.within[high]], others, self.quantile, True)
        return min(first, float(right.min())) - math.log(3), min(last, float(left.min())) - math.log(3)


def quantile_bounds(below: Array, quantile: float, level: float) -> tuple[float, float, float]:
    """A quantile (seconds; NaN without observations) and its confidence sequence at 1 - 2 * ``level``.

    Exact for independent draws, up to the width of a bin: the points that neither side of `tail_logs` excludes, from
    the first bin to the last.

    >>> bounds = quantile_bounds(counts_below({340: 500, 350: 400, 360: 100}), 0.5, 0.025)
    >>> [round(1000 * seconds, 3) for seconds in bounds]
    [0.84, 0.84, 1.044]
    """
    import numpy as np

    count = float(below[-1])
    if not count:
        return math.nan, _edge(0), _edge(LATENCY_BINS)
    middle = int(np.searchsorted(below, quantile * count)) - 1
    few, many = _excluding(count, quantile, math.log(1 / level))
    low = int(np.searchsorted(below, few, side="right")) - 1
    high = int(np.searchsorted(below, many))
    return _edge(middle), _edge(low), _edge(min(high, LATENCY_BINS))


def _excluding(count: float, quantile: float, barrier: float) -> tuple[int, int]:
    """The largest number below a point that says it is below the quantile, and the smallest that says it is above.

    -1 and ``count`` + 1 where no number does. Newton's method from the outside on a convex function: it stays outside.
    """
    found = []
    reach = math.sqrt(3 * count * quantile * (1 - quantile) * (barrier + 3))
    for too_many in (False, True):
        slopes, misses = _tail_bets(quantile, too_many)
        end = count if too_many else 0.0
        if tail_log(end, count, quantile, too_many) < barrier:
            found.append(count + 1 if too_many else -1)
            continue
        near = min(quantile * count + reach, count) if too_many else max(quantile * count - reach, 0.0)
        below = near if tail_log(near, count, quantile, too_many) >= barrier else end
        while True:
            logs = [below * slope + count * miss for slope, miss in zip(slopes, misses, strict=True)]
            excess = _log_sum(logs) - _LOG_TAILS - barrier
            top = max(logs)
            weights = [math.exp(log - top) for log in logs]
            slope = sum(map(mul, weights, slopes)) / sum(weights)
            if excess < max(abs(slope) / 2, 0.1):
                break
            below -= excess / slope
        found.append(below)
    return math.floor(found[0]), math.ceil(found[1])


def _edge(index: int) -> float:
    return math.exp(max(index, 0) * _LOG_GROWTH) / 1e6


def at_edge(below: Array, seconds: float, up: bool) -> float:
    """How many observations lie below the first edge at or above ``seconds`` (or the last at or below it)."""
    place = math.log(max(seconds * 1e6, 1.0)) / _LOG_GROWTH
    index = math.ceil(place - 1e-9) if up else math.floor(place + 1e-9)
    return float(below[min(index, len(below) - 1)])
