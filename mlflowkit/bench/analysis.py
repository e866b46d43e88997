"""Latency statistics: quantiles, their intervals, and intervals of ratios of two candidates. Pure and deterministic.

Samples come in blocks (`measure.Samples`). Requests of one block, and neighbouring blocks, are correlated, so intervals
rest on GROUPS groups of consecutive blocks and Student's t (batch means: Schmeiser, "Batch size effects in the analysis
of simulation output", Operations Research 1982; Georges, Buytaert, Eeckhout, "Statistically rigorous Java performance
evaluation", OOPSLA 2007; Kalibera, Jones, "Rigorous benchmarking in reasonable time", ISMM 2013). A percentile
bootstrap by block is worse here: with disturbances longer than a block it calls identical candidates different in two
to four comparisons of ten, and its intervals of a tail quantile cover it in 0.5 to 0.9 of cases
(``tests/property/test_bench_comparisons.py`` keeps the figures of both).

Two candidates are compared by a ratio: paired round by round if they were measured in turns (`ratio_interval`), else
unpaired (`unpaired_ratio_interval`). Processes of the same graph differ by a few percent for as long as they live
(memory layout, hash seeds), which only restarts show (``benchmarks/comparisons.py``); with STARTS or more starts of
each process, the starts are the unit of comparison (`started_ratio_interval`).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflowkit.errors import UsageError
from mlflowkit.judging import stats
from mlflowkit.values import Measurement

if TYPE_CHECKING:
    import numpy as np

QUANTILES: Mapping[str, float] = {"latency_p50": 0.50, "latency_p95": 0.95, "latency_p99": 0.99}
"""Objectives and the quantile that each minimises."""
CONFIDENCE = 0.95
GROUPS = 10
"""Maximum number of groups of consecutive blocks in an interval."""
FINEST_US = 1e-3
"""Lower limit of a time in a ratio: the resolution of the clock."""
STARTS = 3
"""Minimum number of starts on each side for a comparison of starts instead of blocks."""
MIN_GAIN = 0.05
"""Minimum gain, by the bound of the interval, for a candidate to displace an earlier one. Smaller gains differ between
machines, and would change the pick, and so the identity of the bundle, from run to run."""


def quantile(blocks: np.ndarray, q: float) -> float:
    """Return the q-quantile of all samples: an observed value (inverse of the empirical distribution).

    >>> import numpy as np
    >>> quantile(np.arange(1, 101).reshape(10, 10), 0.99)
    99.0
    """
    import numpy as np

    return float(np.quantile(blocks, q, method="inverted_cdf"))


def quantile_interval(
    blocks: np.ndarray, q: float, *, confidence: float = CONFIDENCE, starts: int = 1
) -> tuple[float, float]:
    """Return a distribution-free interval of the q-quantile of samples in blocks [blocks, requests of a block].

    ``starts`` is the number of process starts, with equally many blocks each. The interval of a proportion in clustered
    samples is carried to the order statistics (Woodruff, JASA 1952; Korn, Graubard, Survey Methodology 1998). With too
    few samples to bound the quantile (`validity.check_adequacy`), the bound is the smallest or largest sample. Compare
    candidates by the interval of their ratio, not by the overlap of two of these.

    >>> import numpy as np
    >>> low, high = quantile_interval(np.random.default_rng(0).gamma(9, 10, size=(40, 50)), 0.5)
    >>> bool(low < 86.7 < high)
    True
    """
    import numpy as np

    ordered = np.sort(blocks, axis=None)
    value = quantile(blocks, q)
    groups = min(starts if starts >= STARTS else GROUPS, len(blocks))
    exceeds = (blocks > value).astype(np.float64).ravel()
    effective = stats.effective_samples(exceeds, (len(blocks) // groups) * blocks.shape[1])
    if groups > 1:
        effective *= (stats.normal_quantile(confidence) / stats.student_quantile(confidence, groups - 1)) ** 2
    low, high = _order_statistics(ordered, q, confidence, effective)
    return min(low, value), max(high, value)


def _order_statistics(ordered: np.ndarray, q: float, confidence: float, effective: float) -> tuple[float, float]:
    """Return the samples at the Clopper-Pearson bounds of q in ``effective`` trials, clipped to the extremes."""
    from scipy.special import betaincinv

    alpha, hits, count = (1 - confidence) / 2, q * effective, len(ordered)
    low = betaincinv(hits, effective - hits + 1, alpha)
    high = betaincinv(hits + 1, effective - hits, 1 - alpha)
    first, last = math.floor(low * count) - 1, math.ceil(high * count) - 1
    return float(ordered[max(first, 0)]), float(ordered[min(last, count - 1)])


def ratio_interval(
    later: np.ndarray, earlier: np.ndarray, q: float, *, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Return the interval of quantile(later) / quantile(earlier), paired: both blocks i were measured in round i.

    Both sides of a round are divided by its pace (the geometric mean of the two medians), which removes common
    disturbances; the interval is Student's t of the log ratios of the groups' quantiles. Raises UsageError for
    different numbers of blocks, or fewer than two.

    >>> import numpy as np
    >>> slow = np.random.default_rng(0).gamma(9, 10, size=(40, 50))
    >>> [round(end, 6) for end in ratio_interval(slow / 2, slow, 0.5)]
    [0.5, 0.5]
    """
    _require_pairs(later, earlier)
    later, earlier = _divide_by_pace(later, earlier)
    return _paired_interval(_group_logs(later, q) - _group_logs(earlier, q), confidence)


def started_ratio_interval(
    later: Sequence[np.ndarray], earlier: Sequence[np.ndarray], q: float, *, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Return the interval of quantile(later) / quantile(earlier) over starts: start i of both ran in turns.

    Student's t of the log ratio of each start, so variation between starts and between rounds is included. With fewer
    than STARTS it is `ratio_interval` over groups of blocks, which holds for these processes only. Raises UsageError
    for different numbers of starts or blocks.

    >>> import numpy as np
    >>> generator = np.random.default_rng(0)
    >>> slow = [generator.gamma(900, 0.1, size=(8, 50)) * speed for speed in (1.02, 0.98, 1.0, 1.03, 0.99)]
    >>> [round(end, 6) for end in started_ratio_interval([blocks / 2 for blocks in slow], slow, 0.5)]
    [0.5, 0.5]
    """
    import numpy as np

    _require_pairs(later, earlier, "starts")
    if not rests_on_starts(later, earlier):
        return ratio_interval(np.concatenate(later), np.concatenate(earlier), q, confidence=confidence)
    logs = []
    for sides in zip(later, earlier, strict=True):
        _require_pairs(*sides)
        above, below = (max(quantile(blocks, q), FINEST_US) for blocks in _divide_by_pace(*sides))
        logs.append(math.log(above / below))
    return _paired_interval(np.array(logs), confidence)


def mean_ratio_interval(
    later: np.ndarray, earlier: np.ndarray, *, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Return the interval of mean(later) / mean(earlier), paired as `ratio_interval`: for throughput and cost.

    >>> import numpy as np
    >>> slow = np.random.default_rng(0).gamma(9, 10, size=(40, 50))
    >>> [round(end, 6) for end in mean_ratio_interval(slow / 2, slow)]
    [0.5, 0.5]
    """
    import numpy as np

    _require_pairs(later, earlier)
    sums = [[float(group.sum()) for group in _groups(blocks)] for blocks in (later, earlier)]
    return _paired_interval(np.log(np.maximum(sums[0], FINEST_US)) - np.log(np.maximum(sums[1], FINEST_US)), confidence)


def unpaired_ratio_interval(
    later: Sequence[np.ndarray], earlier: Sequence[np.ndarray], q: float, *, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Return the interval of quantile(later) / quantile(earlier), measured separately; a side is its starts' blocks.

    Welch's t on log quantiles: of the starts with STARTS or more on each side (Kalibera, Jones 2013), else of groups of
    blocks, without the variation between starts.

    >>> import numpy as np
    >>> slow = np.random.default_rng(0).gamma(900, 0.1, size=(40, 50))
    >>> low, high = unpaired_ratio_interval([slow / 2], [slow], 0.5)
    >>> bool(0.49 < low < 0.5 < high < 0.51)
    True
    """
    import numpy as np

    if rests_on_starts(later, earlier):
        sides = [np.log([quantile(blocks, q) for blocks in side]) for side in (later, earlier)]
    else:
        sides = [np.concatenate([_group_logs(blocks, q) for blocks in side]) for side in (later, earlier)]
    variances = [_variance_of_mean(logs) for logs in sides]
    total = sum(variances)
    parts = (variance**2 / (len(logs) - 1) for variance, logs in zip(variances, sides, strict=True))
    freedom = total**2 / sum(parts) if total else 1
    return _student_ratio(float(sides[0].mean() - sides[1].mean()), total, freedom, confidence)


def rests_on_starts(later: Sequence[np.ndarray], earlier: Sequence[np.ndarray]) -> bool:
    """Return whether both sides have enough starts for a comparison of starts."""
    return min(len(later), len(earlier)) >= STARTS


def _require_pairs(later: Sized, earlier: Sized, unit: str = "blocks") -> None:
    if len(later) != len(earlier):
        counts = f"there are {len(later)} and {len(earlier)}"
        raise UsageError(f"paired samples need as many {unit} on both sides; {counts}")


def _divide_by_pace(later: np.ndarray, earlier: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    import numpy as np

    pace = np.maximum(np.sqrt(np.median(later, axis=1) * np.median(earlier, axis=1))[:, None], FINEST_US)
    return later / pace, earlier / pace


def _groups(blocks: np.ndarray) -> list[np.ndarray]:
    """Split consecutive blocks into at most GROUPS groups of similar size."""
    import numpy as np

    if len(blocks) < 2:
        raise UsageError("one block of samples has no interval", hint="measure two blocks or more")
    return np.array_split(blocks, min(GROUPS, len(blocks)))


def _group_logs(blocks: np.ndarray, q: float) -> np.ndarray:
    """Return the logarithm of the q-quantile of each group of blocks, float64 [groups]."""
    import numpy as np

    count = min(GROUPS, len(blocks))
    if blocks.ndim == 2 and count > 1 and len(blocks) % count == 0:  # groups of equal size, all at once
        quantiles = np.quantile(blocks.reshape(count, -1), q, axis=1, method="inverted_cdf")
    else:
        quantiles = np.array([quantile(group, q) for group in _groups(blocks)])
    logs: np.ndarray = np.log(np.maximum(quantiles, FINEST_US))
    return logs


def _variance_of_mean(logs: np.ndarray) -> float:
    return float(logs.var(ddof=1)) / len(logs)


def _paired_interval(logs: np.ndarray, confidence: float) -> tuple[float, float]:
    return _student_ratio(float(logs.mean()), _variance_of_mean(logs), len(logs) - 1, confidence)


def _student_ratio(centre: float, variance: float, freedom: float, confidence: float) -> tuple[float, float]:
    half = stats.student_quantile(confidence, freedom) * math.sqrt(variance)
    return math.exp(centre - half), math.exp(centre + half)


@dataclass(frozen=True, slots=True)
class Latency:
    """Latency of one candidate, in microseconds a request; throughput in rows a second."""

    p50_us: float
    p95_us: float
    p99_us: float
    interval: tuple[float, float]
    """Interval of the objective."""
    throughput: float
    samples: int


def summarise(blocks: np.ndarray, batch: int, objective: str, *, callers: int = 1) -> Latency:
    """Summarise samples in microseconds [blocks, requests]: quantiles, the objective's interval, throughput.

    Each of the ``callers`` always had one request in flight, so throughput follows from the mean latency (Little).
    """
    p50, p95, p99 = (quantile(blocks, q) for q in QUANTILES.values())
    throughput = callers * batch * blocks.size / float(blocks.sum()) * 1e6
    return Latency(p50, p95, p99, quantile_interval(blocks, quantile_of(objective)), throughput, int(blocks.size))


def quantile_of(objective: str) -> float:
    """Return the quantile that an objective minimises. Raises UsageError for an unknown objective.

    >>> quantile_of("latency_p99")
    0.99
    """
    try:
        return QUANTILES[objective]
    except KeyError:
        raise UsageError(f"no objective {objective!r}", hint=f"one of {', '.join(QUANTILES)}") from None


def accepts(drop: Measurement, limit: float) -> tuple[bool, str]:
    """Accept a drop of the metric if the upper bound of its interval is at most ``limit``; else return the reason.

    An interval that straddles ``limit`` is rejected too: the float graph can serve instead.

    >>> accepts(Measurement("roc_auc", 0.001, -0.001, 0.003, samples=1000), 0.005)
    (True, '')
    """
    if drop.high <= limit:
        return True, ""
    message = f"{drop.name} drops by {drop.value:.4f} ({drop.low:.4f} to {drop.high:.4f}, {drop.samples:,} rows)"
    may_be = "" if drop.low > limit else "it may be "
    return False, f"{message}: {may_be}more than max_metric_drop {limit:g}"


def stationary(medians: Sequence[float], *, window: int = 4, spread: float = 0.02) -> bool:
    """Return whether the last ``window`` block medians have a coefficient of variation of at most ``spread``.

    >>> stationary([90, 60, 40, 30, 30, 30, 30]), stationary([90, 60, 40, 30])
    (True, False)
    """
    last = list(medians)[-window:]
    return len(last) == window and statistics.stdev(last) <= spread * statistics.fmean(last)
