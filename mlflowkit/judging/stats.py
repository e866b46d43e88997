"""Intervals of a fixed sample, in closed form.

An interval is two-sided: at confidence c each of its bounds is wrong with probability (1 - c) / 2. Sources are named
where a method is coded; ``tests/property/test_judging_calibration.py`` shows the error rates by simulation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

from mlflowkit.errors import DataError
from mlflowkit.values import Measurement

if TYPE_CHECKING:
    import numpy as np

Bounds = tuple[float, float]
"""Lower and upper bound."""


class UndefinedMetricError(DataError):
    """The sample does not determine the metric: one class only, no rows, no spread. Gates turn it into INCONCLUSIVE."""

    kind = "undefined-metric"


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number whose interval can be computed at any confidence.

    ``basis`` describes the sample ("1,479 rows, 78 positive").

    >>> measurement = Estimate("accuracy", 0.9, 100, lambda confidence: wilson(90, 100, confidence), "Wilson").at(0.95)
    >>> round(measurement.low, 4)
    0.8256
    """

    name: str
    value: float
    samples: int
    bounds: Callable[[float], Bounds]
    method: str
    unit: str = ""
    basis: str = ""

    def at(self, confidence: float) -> Measurement:
        """The measurement with its two-sided interval at ``confidence``; rounding never excludes the value."""
        low, high = self.bounds(confidence)
        low, high = min(low, self.value), max(high, self.value)
        return Measurement(self.name, self.value, low, high, self.samples, confidence, self.unit, self.method)


def normal_quantile(confidence: float) -> float:
    """z such that a standard normal is within [-z, z] with probability ``confidence``.

    >>> round(normal_quantile(0.95), 3)
    1.96
    """
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def student_quantile(confidence: float, freedom: float) -> float:
    """t such that Student's t with ``freedom`` degrees of freedom is within [-t, t] with probability ``confidence``.

    >>> round(student_quantile(0.95, 10), 3)
    2.228
    """
    from scipy.special import stdtrit

    return float(stdtrit(max(freedom, 1.0), 0.5 + confidence / 2))


def wilson(successes: float, trials: float, confidence: float) -> Bounds:
    """Score interval of a proportion (Wilson, JASA 1927; Brown, Cai, DasGupta, Statistical Science 2001).

    >>> tuple(round(bound, 3) for bound in wilson(0, 10, 0.95))
    (0.0, 0.278)
    """
    z = normal_quantile(confidence)
    share = successes / trials
    centre = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def no_failure_bound(trials: int, confidence: float) -> float:
    """Upper bound on a failure rate after no failure in ``trials``: 1 - ((1 - c) / 2) ** (1 / trials).

    The Clopper-Pearson bound; used where an estimated variance of zero would give an interval of no width.

    >>> round(no_failure_bound(100, 0.95), 4)
    0.0362
    """
    return float(1 - ((1 - confidence) / 2) ** (1 / trials))


def mover_mean(values: Sequence[float], intervals: Sequence[Bounds]) -> Bounds:
    """Interval of the mean of independent estimates from their own intervals.

    Method of variance estimates recovery (Zou, Donner, Statistics in Medicine 2008).

    >>> mover_mean([0.5, 0.7], [(0.4, 0.6), (0.6, 0.8)])[1] < 0.7
    True
    """
    count = len(values)
    centre = math.fsum(values) / count
    below = math.sqrt(math.fsum((value - low) ** 2 for value, (low, _) in zip(values, intervals, strict=True)))
    above = math.sqrt(math.fsum((high - value) ** 2 for value, (_, high) in zip(values, intervals, strict=True)))
    return centre - below / count, centre + above / count


def mover_difference(
    first: float, second: float, first_interval: Bounds, second_interval: Bounds, correlation: float
) -> Bounds:
    """Interval of ``first - second`` from the intervals of both and the correlation of the estimates.

    With Wilson intervals and the phi coefficient this is Newcombe's method 10 for paired proportions
    (Newcombe, Statistics in Medicine 1998; Zou, Donner 2008 for the general case).
    """
    below, above = first - first_interval[0], first_interval[1] - first
    under, over = second - second_interval[0], second_interval[1] - second
    low = below**2 - 2 * correlation * below * over + over**2
    high = above**2 - 2 * correlation * above * under + under**2
    return first - second - math.sqrt(max(low, 0.0)), first - second + math.sqrt(max(high, 0.0))


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's correlation of two estimates from their influence values; 0 where one does not vary.

    At most 1 - 2/n: few rows cannot show that two models never differ, and 1 would give an interval of no width.
    """
    first, second = first - first.mean(), second - second.mean()
    product = math.sqrt(float((first**2).sum()) * float((second**2).sum()))
    return min(float((first * second).sum()) / product, 1 - 2 / len(first)) if product > 0 else 0.0


def newcombe(both: int, first_only: int, second_only: int, neither: int, confidence: float) -> Bounds:
    """Interval of a difference of paired proportions (Newcombe, Statistics in Medicine 1998, method 10).

    The arguments count the rows on which both, only the first, only the second and neither was correct.

    >>> tuple(round(bound, 4) for bound in newcombe(36, 12, 2, 0, 0.95))  # Newcombe's table II (a)
    (0.0569, 0.3404)
    """
    rows = both + first_only + second_only + neither
    first, second = both + first_only, both + second_only
    product = first * (rows - first) * second * (rows - second)
    # Newcombe's continuity correction of phi: only where the table agrees more than by chance.
    excess = float(both * neither - first_only * second_only)
    excess = max(excess - rows / 2, 0.0) if excess > 0 else excess
    phi = excess / math.sqrt(product) if product else 0.0
    intervals = wilson(first, rows, confidence), wilson(second, rows, confidence)
    return mover_difference(first / rows, second / rows, *intervals, phi)


def mean_bounds(value: float, influence: np.ndarray, confidence: float) -> Bounds:
    """Interval of a mean, or of a statistic with these influence values (mean zero), one a row.

    Student's t with the skewness removed by Hall's cubic transformation (Hall, JRSS-B 1992), which corrects the bound
    that a plain t interval gets wrong when errors are skewed. Raises UndefinedMetricError without spread.

    >>> import numpy as np
    >>> low, high = mean_bounds(1.0, np.random.default_rng(0).exponential(size=40) - 1, 0.95)
    >>> high - 1.0 > 1.0 - low
    True
    """
    rows = len(influence)
    centred = influence - influence.mean()
    variance = float((centred**2).sum()) / (rows - 1) if rows > 1 else 0.0
    if variance <= 0 or not math.isfinite(variance):
        raise UndefinedMetricError(f"no spread among {rows:,} rows: no interval can be computed")
    error = math.sqrt(variance / rows)
    skewness = float((centred**3).mean()) / variance**1.5
    t = student_quantile(confidence, rows - 1)
    return value - error * _unskewed(t, skewness, rows), value - error * _unskewed(-t, skewness, rows)


def _unskewed(t: float, skewness: float, rows: int) -> float:
    """Inverse of Hall's transformation of a Studentised mean."""
    if abs(skewness) < 1e-6:
        return t
    root = math.sqrt(rows)
    inner = 1 + skewness * (t / root - skewness / (6 * rows))
    return root * 3 / skewness * (math.copysign(abs(inner) ** (1 / 3), inner) - 1)


def logit_bounds(value: float, error: float, quantile: float) -> Bounds:
    """Interval of a number in (0, 1) with standard error ``error``, computed on the log-odds scale.

    >>> low, high = logit_bounds(0.95, 0.03, 1.96)
    >>> (round(low, 3), round(high, 3))
    (0.846, 0.985)
    """
    centre, half = math.log(value / (1 - value)), quantile * error / (value * (1 - value))
    return _expit(centre - half), _expit(centre + half)


def _expit(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def placements(positive: np.ndarray, scores: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Area under the ROC curve, and the placement of each positive and of each negative (DeLong's V10, V01).

    By midranks in n log n (Sun, Xu, IEEE Signal Processing Letters 2014). ``positive`` is bool [n], ``scores`` [n].
    """
    from scipy.stats import rankdata

    ranks = rankdata(scores)
    hits, misses = ranks[positive], ranks[~positive]
    v10 = (hits - rankdata(scores[positive])) / len(misses)
    v01 = 1 - (misses - rankdata(scores[~positive])) / len(hits)
    return float(v10.mean()), v10, v01


def placement_error(v10: np.ndarray, v01: np.ndarray) -> tuple[float, float]:
    """Standard error of a mean placement (DeLong, DeLong, Clarke-Pearson, Biometrics 1988) and its degrees of freedom.

    Degrees of freedom by Welch and Satterthwaite, as in Brunner and Munzel (Biometrical Journal 2000): few positives
    widen the interval. Given differences of placements, the error is that of the paired difference.
    """
    m, n = len(v10), len(v01)
    first, second = float(v10.var(ddof=1)) / m, float(v01.var(ddof=1)) / n
    spread = first**2 / (m - 1) + second**2 / (n - 1)
    return math.sqrt(first + second), (first + second) ** 2 / spread if spread > 0 else float(min(m, n) - 1)


def quantile_bounds(samples: np.ndarray, quantile: float, confidence: float, effective: float) -> Bounds:
    """Distribution-free interval of a quantile from order statistics of sorted ``samples``.

    The bounds of a binomial proportion (Clopper, Pearson) with ``effective`` trials, mapped to the samples (Woodruff,
    JASA 1952). Raises UndefinedMetricError where too few samples bound the quantile on both sides.
    """
    from scipy.special import betaincinv

    alpha = (1 - confidence) / 2
    hits = quantile * effective
    low = float(betaincinv(hits, effective - hits + 1, alpha))
    high = float(betaincinv(hits + 1, effective - hits, 1 - alpha))
    count = len(samples)
    first, last = math.floor(low * count) - 1, math.ceil(high * count) - 1
    beyond = max(quantile**effective, (1 - quantile) ** effective)
    if first < 0 or last >= count or beyond > alpha:
        needed = math.ceil(math.log(alpha) / math.log(max(quantile, 1 - quantile)))
        sample = f"{count:,} samples (worth {effective:,.0f} independent ones)"
        reason = f"do not bound the {quantile:g} quantile on both sides; it takes {needed:,} or more"
        raise UndefinedMetricError(f"{sample} {reason}")
    return float(samples[first]), float(samples[last])


def effective_samples(exceeds: np.ndarray, block: int) -> float:
    """The effective sample size of a series of 0 and 1, measured in ``block`` consecutive samples at a time.

    Kish's design effect: the variance between blocks over that under independence. A busy neighbour slows many
    consecutive requests, which count less than as many slow requests at random.

    >>> import numpy as np
    >>> effective_samples(np.repeat([0.0, 1.0] * 10, 50), block=50) < 50
    True
    """
    count, share = len(exceeds), float(exceeds.mean())
    blocks = count // block
    if block <= 1 or blocks < 5 or share in (0.0, 1.0):
        return float(count)
    means = exceeds[: blocks * block].reshape(blocks, block).mean(axis=1)
    effect = float(means.var(ddof=1)) * block / (share * (1 - share))
    return count / max(effect, 1.0)
