"""Latency samples in, quantiles with intervals and a pick out. Pure: the same samples and seed give the same answer.

Samples come in blocks (see `measure.Samples`): requests of one block share the weather of their moment, so they are not
independent, and every resampling here draws whole blocks with replacement. Two candidates were measured in turns, and
the same blocks are drawn for both (paired), so that what disturbed the machine disturbs neither side alone. After
Georges, Buytaert, Eeckhout, "Statistically Rigorous Java Performance Evaluation", OOPSLA 2007; Efron, Tibshirani,
"An Introduction to the Bootstrap", 1993 (percentile interval).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflowkit.errors import UsageError
from mlflowkit.values import Measurement

if TYPE_CHECKING:
    import numpy as np

QUANTILES: Mapping[str, float] = {"latency_p50": 0.50, "latency_p95": 0.95, "latency_p99": 0.99}
"""Objectives and the quantile that each minimises."""
RESAMPLES = 999
CONFIDENCE = 0.95
MIN_GAIN = 0.05
"""A candidate must be faster than an earlier one by this share, surely, to displace it: gains smaller than what two
machines differ by would let the pick, and with it the identity of the bundle, change from run to run."""


def quantile(blocks: np.ndarray, q: float) -> float:
    """The q-quantile of all samples, a value that was observed (inverse of the empirical distribution).

    >>> import numpy as np
    >>> quantile(np.arange(1, 101).reshape(10, 10), 0.99)
    99.0
    """
    import numpy as np

    return float(np.quantile(blocks, q, method="inverted_cdf"))


def quantile_interval(
    blocks: np.ndarray, q: float, *, confidence: float = CONFIDENCE, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of the q-quantile, by block. ``blocks`` is [blocks, requests of a block].

    Where the weather of a block weighs more than the spread within it, the interval of a tail quantile is too narrow:
    at 0.95 it covers the median in 0.94 of simulated cases and p95 in 0.83 to 0.87 (tests/property/test_bench_pick.py).
    The pick does not rest on it but on `ratio_interval`, where the weather of a round is on both sides.
    """
    import numpy as np

    drawn = _resampled_quantiles(blocks, q, _draws(len(blocks), seed))
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    value = quantile(blocks, q)
    return min(float(low), value), max(float(high), value)


def ratio_interval(
    later: np.ndarray, earlier: np.ndarray, q: float, *, confidence: float = CONFIDENCE, seed: int = 0
) -> tuple[float, float]:
    """Interval of quantile(later) / quantile(earlier), paired: block i of both was measured in the same round.

    Raises UsageError when the two have different numbers of blocks.

    >>> import numpy as np
    >>> slow = np.random.default_rng(0).gamma(9, 10, size=(40, 50))
    >>> low, high = ratio_interval(slow / 2, slow, 0.5)
    >>> round(low, 6), round(high, 6)
    (0.5, 0.5)
    """
    import numpy as np

    if len(later) != len(earlier):
        raise UsageError(f"paired samples need as many blocks on both sides; there are {len(later)} and {len(earlier)}")
    draws = _draws(len(later), seed)
    ratios = _resampled_quantiles(later, q, draws) / _resampled_quantiles(earlier, q, draws)
    tail = (1 - confidence) / 2
    low, high = np.quantile(ratios, [tail, 1 - tail])
    return float(low), float(high)


def _draws(blocks: int, seed: int) -> np.ndarray:
    """Indices of blocks drawn with replacement, int [RESAMPLES, blocks]."""
    import numpy as np

    return np.random.default_rng(seed).integers(blocks, size=(RESAMPLES, blocks))


def _resampled_quantiles(blocks: np.ndarray, q: float, draws: np.ndarray) -> np.ndarray:
    """The q-quantile of each resample, float64 [resamples].

    All samples are sorted once; a resample is then a weight for each of them, and its quantile the first whose
    cumulated weight reaches q.
    """
    import numpy as np

    rows, width = blocks.shape
    order = np.argsort(blocks, axis=None, kind="stable")
    values, owners = blocks.ravel()[order], order // width
    quantiles = np.empty(len(draws))
    for index, draw in enumerate(draws):
        weights = np.bincount(draw, minlength=rows)[owners]
        reached = np.searchsorted(np.cumsum(weights), q * rows * width - 1e-9)
        quantiles[index] = values[reached]
    return quantiles


@dataclass(frozen=True, slots=True)
class Latency:
    """What was measured of one candidate. Times are microseconds a request; throughput is rows a second, one caller."""

    p50_us: float
    p95_us: float
    p99_us: float
    interval: tuple[float, float]
    """Of the objective."""
    throughput: float
    samples: int


def summarise(blocks: np.ndarray, batch: int, objective: str, *, seed: int = 0) -> Latency:
    """Quantiles, the objective's interval and the throughput of samples in microseconds [blocks, requests]."""
    return Latency(
        p50_us=quantile(blocks, 0.50),
        p95_us=quantile(blocks, 0.95),
        p99_us=quantile(blocks, 0.99),
        interval=quantile_interval(blocks, _q(objective), seed=seed),
        throughput=batch * blocks.size / float(blocks.sum()) * 1e6,
        samples=int(blocks.size),
    )


@dataclass(frozen=True, slots=True)
class Pick:
    """The candidate to serve, and in words why each of the others was not chosen."""

    name: str
    reasons: Mapping[str, str]


def pick(samples: Mapping[str, np.ndarray], objective: str, *, confidence: float = CONFIDENCE, seed: int = 0) -> Pick:
    """The candidate that minimises the objective, of those that may serve, in the recipe's order of preference.

    A later candidate displaces an earlier one only where the whole interval of the ratio of their objectives lies below
    ``1 - MIN_GAIN``. The confidence holds for all comparisons together (Bonferroni): of candidates that are in truth
    alike, a later one is picked with probability ``(1 - confidence) / 2`` at most. Raises UsageError for no candidate.

    >>> import numpy as np
    >>> base = np.random.default_rng(0).gamma(9, 10, size=(40, 50))
    >>> pick({"onnx": base, "onnx-int8": base * 0.99}, "latency_p50").name
    'onnx'
    >>> pick({"onnx": base, "onnx-int8": base * 0.5}, "latency_p50").name
    'onnx-int8'
    """
    if not samples:
        raise UsageError("there is no candidate to pick from", hint="add onnx to optimize.candidates")
    names, q = list(samples), _q(objective)
    share = (1 - confidence) / max(1, len(names) - 1)
    chosen, reasons = names[0], {}
    for name in names[1:]:
        low, high = ratio_interval(samples[name], samples[chosen], q, confidence=1 - share, seed=seed)
        beaten, winner = (chosen, name) if high < 1 - MIN_GAIN else (name, chosen)
        reasons[beaten] = _words(name, chosen, objective, (low, high), beaten == chosen)
        chosen = winner
    return Pick(chosen, reasons)


def _words(later: str, earlier: str, objective: str, interval: tuple[float, float], displaced: bool) -> str:
    said = f"{objective} of {later} is {interval[0]:.2f} to {interval[1]:.2f} times that of {earlier}"
    if displaced:
        return f"{said}: {later} is faster"
    if interval[0] > 1:
        return f"{said}: it is slower"
    return f"{said}: not surely faster by {MIN_GAIN:.0%}, and {earlier} comes first in the recipe"


def _q(objective: str) -> float:
    try:
        return QUANTILES[objective]
    except KeyError:
        raise UsageError(f"no objective {objective!r}", hint=f"one of {', '.join(QUANTILES)}") from None


def accepts(drop: Measurement, most: float) -> tuple[bool, str]:
    """Whether a loss of the metric is surely borne: accepted only where the interval's upper bound is at most ``most``.

    Where the interval straddles ``most`` the rows cannot tell, and a candidate that may lose more than the recipe bears
    is rejected: the float graph is there to serve instead.

    >>> accepts(Measurement("roc_auc", 0.001, -0.001, 0.003, samples=1000), 0.005)
    (True, '')
    """
    if drop.high <= most:
        return True, ""
    words = f"{drop.name} drops by {drop.value:.4f} ({drop.low:.4f} to {drop.high:.4f}, {drop.samples:,} rows)"
    if drop.low > most:
        return False, f"{words}: more than max_metric_drop {most:g}"
    return False, f"{words}: it may be more than max_metric_drop {most:g}"


def stationary(medians: Sequence[float], *, window: int = 4, spread: float = 0.02) -> bool:
    """Whether the last ``window`` block medians have a coefficient of variation of at most ``spread``.

    >>> stationary([90, 60, 40, 30, 30, 30, 30]), stationary([90, 60, 40, 30])
    (True, False)
    """
    if len(medians) < window:
        return False
    last = list(medians)[-window:]
    mean = sum(last) / window
    deviation = (sum((value - mean) ** 2 for value in last) / (window - 1)) ** 0.5
    return bool(deviation <= spread * mean)
