"""Sequential tests and confidence sequences of latency quantiles, on cumulative histograms of latency bins.

Natural logarithms of e-values, as in `sequential`; exact for independent draws, up to the width of a bin.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from operator import mul
from typing import TYPE_CHECKING

from mlflowkit.judging.online.evidence import LATENCY_GROWTH
from mlflowkit.judging.online.sequential import log_sum, scale_odds

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mlflowkit.judging.online.sequential import Array

_ODDS_TAIL = (1.07, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0)
_LOG_GROWTH = math.log(LATENCY_GROWTH)
_LOG_TAILS = math.log(len(_ODDS_TAIL))

LATENCY_BINS = 1120
"""Latency bins that are judged; they reach beyond an hour."""


def tail_logs(below: Array, count: float, quantile: float, too_many: bool) -> Array:
    """Log e-values, for each number of observations ``below`` a point, against "the point is at most the quantile"
    (``too_many`` lie below it) or else against "it is at least the quantile" (too few do).

    Exact at a point that is fixed: a mixture of likelihood ratios of a coin (Howard & Ramdas, Bernoulli 2022, the
    sequence for one quantile, with discrete instead of beta mixing).
    """
    import numpy as np

    slopes, misses = _tail_bets(quantile, too_many)
    parts = np.array(slopes)[:, None] * below + count * np.array(misses)[:, None]
    top = parts.max(axis=0)
    logs: Array = top + np.log(np.exp(parts - top).sum(axis=0)) - _LOG_TAILS
    return logs


def tail_log(below: float, count: float, quantile: float, too_many: bool) -> float:
    """`tail_logs` for one number."""
    slopes, misses = _tail_bets(quantile, too_many)
    return log_sum([below * slope + count * miss for slope, miss in zip(slopes, misses, strict=True)]) - _LOG_TAILS


@lru_cache(maxsize=32)
def _tail_bets(quantile: float, too_many: bool) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Gain of each alternative's log likelihood ratio by an observation below the point, and by any observation."""
    slopes, misses = [], []
    for ratio in _ODDS_TAIL:
        rate = scale_odds(quantile, ratio if too_many else 1 / ratio)
        misses.append(math.log((1 - rate) / (1 - quantile)))
        slopes.append(math.log(rate / quantile) - misses[-1])
    return tuple(slopes), tuple(misses)


def counts_below(histogram: Mapping[int, int]) -> Array:
    """How many latencies lie in bins before bin j, for j = 0 ... `LATENCY_BINS`; the last bin holds all above."""
    import numpy as np

    indices = np.fromiter(histogram.keys(), dtype=np.int64, count=len(histogram))
    counts = np.fromiter(histogram.values(), dtype=np.float64, count=len(histogram))
    bins = np.minimum(indices, LATENCY_BINS - 1) + 1
    below: Array = np.cumsum(np.bincount(bins, weights=counts, minlength=LATENCY_BINS + 1))
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

    ``champion`` and ``challenger`` are `counts_below` of the same period. If x is the champion's quantile, then e0(x),
    against "x is the quantile", and e1(ratio * x + margin), against "the challenger's is not beyond", are e-processes
    of independent streams, and so is their product; the smallest product over all x is at most that. A third of e0's
    stake is not bet, so that little is lost where x is the quantile. Exact (bin widths count against either claim)
    where latencies of each arm are independent draws over the epoch; the arms may differ in size. (Howard & Ramdas,
    Bernoulli 2022, section 5, combine the two arms' intervals instead, which needs more observations.)

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
    above, below = arms.min_products(low, high)
    outside_above, outside_below = arms.bounds_outside(low, high)
    return (above, below) if above <= outside_above and below <= outside_below else arms.min_products(0, LATENCY_BINS)


@dataclass(frozen=True, slots=True)
class _Arms:
    """Two arms' `counts_below`, and the edges that the champion's edges move to, rounded up and rounded down."""

    champion: Array
    challenger: Array
    quantile: float
    beyond: NDArray[np.int64]
    within: NDArray[np.int64]

    def champion_logs(self, edges: slice | NDArray[np.int64], too_many: bool) -> Array:
        return tail_logs(self.champion[edges], float(self.champion[-1]), self.quantile, too_many)

    def challenger_logs(self, edges: NDArray[np.int64], too_many: bool) -> Array:
        return tail_logs(self.challenger[edges], float(self.challenger[-1]), self.quantile, too_many)

    def min_products(self, low: int, high: int) -> tuple[float, float]:
        """The smallest products over the bins from low to high."""
        import numpy as np

        many = self.champion_logs(slice(low, high), True)
        few = self.champion_logs(slice(low + 1, high + 1), False)
        away = np.logaddexp(np.logaddexp(many, few), 0.0) - math.log(3)
        too_few = self.challenger_logs(self.beyond[low + 1 : high + 1], False)
        too_many = self.challenger_logs(self.within[low:high], True)
        return float((away + too_few).min()), float((away + too_many).min())

    def bounds_outside(self, low: int, high: int) -> tuple[float, float]:
        """Lower bounds of the products outside the window: each factor is monotone, so a cell's ends bound it."""
        import numpy as np

        others = float(self.challenger[-1])
        widths = 2 ** np.arange(12) - 1
        ends = np.maximum(low - widths[::-1], 0)
        few = self.champion_logs(ends[1:], False)
        left = self.challenger_logs(self.within[ends[:-1]], True) + np.maximum(few, 0.0)
        ends = np.minimum(high + widths, LATENCY_BINS)
        many = self.champion_logs(ends[:-1], True)
        right = self.challenger_logs(self.beyond[ends[1:]], False) + np.maximum(many, 0.0)
        first = max(few[-1], 0.0) + tail_log(self.challenger[self.beyond[low]], others, self.quantile, False)
        last = max(many[0], 0.0) + tail_log(self.challenger[self.within[high]], others, self.quantile, True)
        return min(first, float(right.min())) - math.log(3), min(last, float(left.min())) - math.log(3)


def quantile_bounds(below: Array, quantile: float, level: float) -> tuple[float, float, float]:
    """A quantile (seconds; NaN without observations) and its confidence sequence at 1 - 2 * ``level``.

    Exact for independent draws, up to the width of a bin: the points that neither side of `tail_logs` excludes.

    >>> bounds = quantile_bounds(counts_below({340: 500, 350: 400, 360: 100}), 0.5, 0.025)
    >>> [round(1000 * seconds, 3) for seconds in bounds]
    [0.84, 0.84, 1.044]
    """
    import numpy as np

    count = float(below[-1])
    if not count:
        return math.nan, _edge(0), _edge(LATENCY_BINS)
    middle = int(np.searchsorted(below, quantile * count)) - 1
    few, many = _excluded_counts(count, quantile, math.log(1 / level))
    low = int(np.searchsorted(below, few, side="right")) - 1
    high = int(np.searchsorted(below, many))
    return _edge(middle), _edge(low), _edge(min(high, LATENCY_BINS))


def _excluded_counts(count: float, quantile: float, barrier: float) -> tuple[int, int]:
    """The largest number below a point that shows it to be below the quantile, and the smallest that shows it above.

    -1 and ``count`` + 1 where no number does. Newton's method from the outside on a convex function: it stays outside.
    """
    limits = []
    reach = math.sqrt(3 * count * quantile * (1 - quantile) * (barrier + 3))
    for too_many in (False, True):
        slopes, misses = _tail_bets(quantile, too_many)
        end = count if too_many else 0.0
        if tail_log(end, count, quantile, too_many) < barrier:
            limits.append(count + 1 if too_many else -1)
            continue
        near = min(quantile * count + reach, count) if too_many else max(quantile * count - reach, 0.0)
        below = near if tail_log(near, count, quantile, too_many) >= barrier else end
        while True:
            logs = [below * slope + count * miss for slope, miss in zip(slopes, misses, strict=True)]
            excess = log_sum(logs) - _LOG_TAILS - barrier
            top = max(logs)
            weights = [math.exp(log - top) for log in logs]
            slope = sum(map(mul, weights, slopes)) / sum(weights)
            if excess < max(abs(slope) / 2, 0.1):
                break
            below -= excess / slope
        limits.append(below)
    return math.floor(limits[0]), math.ceil(limits[1])


def _edge(index: int) -> float:
    return math.exp(max(index, 0) * _LOG_GROWTH) / 1e6


def count_below_edge(below: Array, seconds: float, up: bool) -> float:
    """How many observations lie below the first edge at or above ``seconds`` (or the last at or below it)."""
    position = math.log(max(seconds * 1e6, 1.0)) / _LOG_GROWTH
    index = math.ceil(position - 1e-9) if up else math.floor(position + 1e-9)
    return float(below[min(index, len(below) - 1)])
