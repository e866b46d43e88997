"""Latency samples in, quantiles with intervals and a pick out. Pure: the same samples give the same answer.

Samples come in blocks (see `measure.Samples`), and neither the requests of a block nor blocks that follow one another
are independent: they share the weather of their moment. So intervals here rest on GROUPS groups of consecutive blocks,
each of them long enough to have weather of its own, and on Student's t with what few groups are worth (batch means:
Schmeiser, "Batch size effects in the analysis of simulation output", Operations Research 1982; Georges, Buytaert,
Eeckhout, "Statistically rigorous Java performance evaluation", OOPSLA 2007; Kalibera, Jones, "Rigorous benchmarking in
reasonable time", ISMM 2013). A percentile bootstrap by block was held against it: where the weather lasts for more than
a block it calls identical candidates different in two to four comparisons of ten, and its intervals of a tail quantile
cover it in 0.5 to 0.9 of cases (``tests/property/test_bench_comparisons.py`` keeps the figures of both).

Two candidates are compared by a ratio. Measured in turns, they are paired round by round (`ratio_interval`), so that
what disturbed the machine disturbs neither side alone; measured apart, they are not (`unpaired_ratio_interval`).

A process is faster or slower than the next one of the same graph, by a few percent and for as long as it lives: where
its memory came to lie, what its hashes are. Measuring it longer does not show that, only starting it again does, and
two processes of one graph are told apart by most intervals that rest on one start each
(``benchmarks/comparisons.py``). So where a process was started STARTS times or more, the starts are the groups, paired
where both sides were measured in turns (`started_ratio_interval`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflowkit.errors import UsageError
from mlflowkit.values import Measurement

if TYPE_CHECKING:
    import numpy as np

QUANTILES: Mapping[str, float] = {"latency_p50": 0.50, "latency_p95": 0.95, "latency_p99": 0.99}
"""Objectives and the quantile that each minimises."""
CONFIDENCE = 0.95
GROUPS = 10
"""Groups of consecutive blocks that an interval rests on, where there are as many blocks."""
FINEST_US = 1e-3
"""What a time of nothing counts for in a ratio: the clock cannot tell less."""
STARTS = 3
"""Starts of a process on each side from which on their own spread is what a comparison rests on."""
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
    blocks: np.ndarray, q: float, *, confidence: float = CONFIDENCE, starts: int = 1
) -> tuple[float, float]:
    """Distribution-free interval of the q-quantile of samples in blocks [blocks, requests of a block].

    ``starts`` is how often the process was started meanwhile, each time for as many blocks.

    The interval of a proportion in clustered samples, carried to the order statistics (Woodruff, JASA 1952; Korn,
    Graubard, Survey Methodology 1998). Where there are too few samples to bound the quantile, the smallest or the
    largest stands in for the bound, and `soundness.enough` says so. It is about the machine as it was while the samples
    were taken: candidates are compared by the interval of their ratio, not by whether two of these overlap.

    >>> import numpy as np
    >>> low, high = quantile_interval(np.random.default_rng(0).gamma(9, 10, size=(40, 50)), 0.5)
    >>> bool(low < 86.7 < high)
    True
    """
    import numpy as np

    from mlflowkit.judging import stats

    ordered = np.sort(blocks, axis=None)
    value = quantile(blocks, q)
    groups = min(starts if starts >= STARTS else GROUPS, len(blocks))
    beyond = (blocks > value).astype(np.float64).ravel()
    worth = stats.effective_samples(beyond, (len(blocks) // groups) * blocks.shape[1])
    if groups > 1:
        worth *= (stats.normal_quantile(confidence) / stats.student_quantile(confidence, groups - 1)) ** 2
    low, high = _order_statistics(ordered, q, confidence, worth)
    return min(low, value), max(high, value)


def _order_statistics(ordered: np.ndarray, q: float, confidence: float, worth: float) -> tuple[float, float]:
    """Clopper and Pearson's bounds of the share q of ``worth`` trials, as samples; the outermost where beyond them."""
    from scipy.special import betaincinv

    alpha, hits, count = (1 - confidence) / 2, q * worth, len(ordered)
    low = betaincinv(hits, worth - hits + 1, alpha)
    high = betaincinv(hits + 1, worth - hits, 1 - alpha)
    first, last = math.floor(low * count) - 1, math.ceil(high * count) - 1
    return float(ordered[max(first, 0)]), float(ordered[min(last, count - 1)])


def ratio_interval(
    later: np.ndarray, earlier: np.ndarray, q: float, *, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Interval of quantile(later) / quantile(earlier), paired: block i of both was measured in the same round.

    Both sides of a round are first divided by the round's pace (the geometric mean of the two medians), which removes
    what was common to them; then come the log ratios of the groups' quantiles, their mean, and Student's t. Raises
    UsageError when the two have different numbers of blocks, or fewer than two.

    >>> import numpy as np
    >>> slow = np.random.default_rng(0).gamma(9, 10, size=(40, 50))
    >>> low, high = ratio_interval(slow / 2, slow, 0.5)
    >>> round(low, 6), round(high, 6)
    (0.5, 0.5)
    """

    _as_many(later, earlier)
    later, earlier = _paced(later, earlier)
    logs = _group_logs(later, q) - _group_logs(earlier, q)
    return _student_ratio(float(logs.mean()), _variance(logs), len(logs) - 1, confidence)


def started_ratio_interval(
    later: Sequence[np.ndarray], earlier: Sequence[np.ndarray], q: float, *, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Interval of quantile(later) / quantile(earlier) over starts of their processes: start i of both ran in turns.

    The log ratio of each start, their mean, and Student's t: what differs from start to start is in the interval, and
    what differs from round to round with it. With fewer than STARTS it rests on groups of blocks, as `ratio_interval`
    does, and holds of these very processes only. Raises UsageError when the two have not as many starts and blocks.

    >>> import numpy as np
    >>> generator = np.random.default_rng(0)
    >>> slow = [generator.gamma(900, 0.1, size=(8, 50)) * placed for placed in (1.02, 0.98, 1.0, 1.03, 0.99)]
    >>> low, high = started_ratio_interval([blocks / 2 for blocks in slow], slow, 0.5)
    >>> round(low, 6), round(high, 6)
    (0.5, 0.5)
    """
    import numpy as np

    _as_many(later, earlier, "starts")
    if not rests_on_starts(later, earlier):
        return ratio_interval(np.concatenate(later), np.concatenate(earlier), q, confidence=confidence)
    logs = np.array([_log_ratio(*sides, q) for sides in zip(later, earlier, strict=True)])
    return _student_ratio(float(logs.mean()), _variance(logs), len(logs) - 1, confidence)


def mean_ratio_interval(
    later: np.ndarray, earlier: np.ndarray, *, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Interval of mean(later) / mean(earlier), paired as `ratio_interval` is: what throughput and cost go by.

    >>> import numpy as np
    >>> slow = np.random.default_rng(0).gamma(9, 10, size=(40, 50))
    >>> low, high = mean_ratio_interval(slow / 2, slow)
    >>> round(low, 6), round(high, 6)
    (0.5, 0.5)
    """
    import numpy as np

    _as_many(later, earlier)
    sums = [[float(group.sum()) for group in _groups(blocks)] for blocks in (later, earlier)]
    logs = np.log(np.maximum(sums[0], FINEST_US)) - np.log(np.maximum(sums[1], FINEST_US))
    return _student_ratio(float(logs.mean()), _variance(logs), len(logs) - 1, confidence)


def unpaired_ratio_interval(
    later: Sequence[np.ndarray], earlier: Sequence[np.ndarray], q: float, *, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Interval of quantile(later) / quantile(earlier), measured apart; each side is the blocks of one or more starts.

    Welch's t on log quantiles. A process that is started again is faster or slower as a whole (Kalibera, Jones 2013):
    with STARTS or more on each side it is the starts that are compared. With fewer, the groups of blocks are, and what
    differs from start to start is not in the interval.

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
    one, two = (_variance(logs) for logs in sides)
    total = one + two
    freedom = total**2 / sum(v**2 / (len(logs) - 1) for v, logs in zip((one, two), sides, strict=True)) if total else 1
    return _student_ratio(float(sides[0].mean() - sides[1].mean()), total, freedom, confidence)


def rests_on_starts(later: Sequence[np.ndarray], earlier: Sequence[np.ndarray]) -> bool:
    """Whether a comparison has the starts of processes for its units."""
    return min(len(later), len(earlier)) >= STARTS


def _as_many(later: Sized, earlier: Sized, things: str = "blocks") -> None:
    if len(later) != len(earlier):
        found = f"there are {len(later)} and {len(earlier)}"
        raise UsageError(f"paired samples need as many {things} on both sides; {found}")


def _paced(later: np.ndarray, earlier: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both sides of each round over the round's pace."""
    import numpy as np

    pace = np.sqrt(np.median(later, axis=1) * np.median(earlier, axis=1))[:, None]
    pace = np.maximum(pace, FINEST_US)
    return later / pace, earlier / pace


def _log_ratio(later: np.ndarray, earlier: np.ndarray, q: float) -> float:
    """Of the quantiles of one start of each."""
    _as_many(later, earlier)
    one, two = (max(quantile(blocks, q), FINEST_US) for blocks in _paced(later, earlier))
    return math.log(one / two)


def _groups(blocks: np.ndarray) -> list[np.ndarray]:
    """Consecutive blocks, as many in each group as may be."""
    import numpy as np

    if len(blocks) < 2:
        raise UsageError("one block of samples has no interval", hint="measure two blocks or more")
    return np.array_split(blocks, min(GROUPS, len(blocks)))


def _group_logs(blocks: np.ndarray, q: float) -> np.ndarray:
    """Logarithm of the q-quantile of each group of blocks, float64 [groups]."""
    import numpy as np

    return np.log([max(quantile(group, q), FINEST_US) for group in _groups(blocks)])


def _variance(logs: np.ndarray) -> float:
    """Of their mean."""
    return float(logs.var(ddof=1)) / len(logs)


def _student_ratio(centre: float, variance: float, freedom: float, confidence: float) -> tuple[float, float]:
    from mlflowkit.judging.stats import student_quantile

    half = student_quantile(confidence, freedom) * math.sqrt(variance)
    return math.exp(centre - half), math.exp(centre + half)


@dataclass(frozen=True, slots=True)
class Latency:
    """What was measured of one candidate. Times are microseconds a request; throughput is rows a second."""

    p50_us: float
    p95_us: float
    p99_us: float
    interval: tuple[float, float]
    """Of the objective."""
    throughput: float
    samples: int


def summarise(blocks: np.ndarray, batch: int, objective: str, *, callers: int = 1) -> Latency:
    """Quantiles, the objective's interval and the throughput of samples in microseconds [blocks, requests].

    ``callers`` is how many asked at once: each of them always had one request under way, so throughput follows from the
    mean latency (Little's law).
    """
    return Latency(
        p50_us=quantile(blocks, 0.50),
        p95_us=quantile(blocks, 0.95),
        p99_us=quantile(blocks, 0.99),
        interval=quantile_interval(blocks, quantile_of(objective)),
        throughput=callers * batch * blocks.size / float(blocks.sum()) * 1e6,
        samples=int(blocks.size),
    )


def quantile_of(objective: str) -> float:
    """The quantile that an objective minimises. Raises UsageError for one that is none.

    >>> quantile_of("latency_p99")
    0.99
    """
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
