"""Means of losses from feedback: asymptotic tests, and the confidence sequence of a mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import mul

from mlflowkit.judging.online import sequential
from mlflowkit.judging.online.evidence import Moments
from mlflowkit.judging.online.metric_results import LimitResult
from mlflowkit.judging.online.metric_specs import LimitTask
from mlflowkit.judging.online.sequential import Stratum
from mlflowkit.values import Measurement

MIN_OBSERVATIONS = 100
"""Observations of each arm before a mean is judged: the test relies on the central limit theorem."""
_SCALE = 0.09
"""Scale of the alternatives, in standard deviations of one observation."""


def judge_mean(task: LimitTask) -> LimitResult:
    """Judge log_loss, absolute_error or squared_error; uses epochs with `MIN_OBSERVATIONS` of each arm."""
    compared = task.limit.kind == "margin"
    strata, by_key, totals, sums = [], [], [0, 0], Moments()
    deviation = float(task.trace.get("deviation", 0.0))
    for _, champion, challenger in task.arms:
        (first, one), (second, other) = (arm.graded(task.spec.metric) for arm in (champion, challenger))
        totals = [totals[0] + first.count, totals[1] + second.count]
        if min(second.count, first.count if compared else second.count) < MIN_OBSERVATIONS:
            continue
        variances = [_variance_of_mean(second, first if compared else second) / other]
        variances += [_variance_of_mean(first, second) / one] if compared else []
        if sum(variances) > 0:
            difference = second.mean - (first.mean if compared else 0.0)
            strata.append(Stratum(difference, sum(variances)))
            repeats = [
                arm.count / counts.keys.effective(arm.count)
                for arm, counts in ((second, challenger), (first, champion))[: len(variances)]
            ]
            by_key.append(Stratum(difference, sum(map(mul, variances, repeats))))
            sums = sums + second
    if strata and not deviation:
        deviation = math.sqrt(_variance(sums))
    worse, not_worse = _evidence(task, by_key, deviation)[0], _evidence(task, strata, deviation)[1]
    max_harm = max(float(task.trace.get("best", 0.0)), worse)
    measurement = measure_mean(task, strata, deviation, totals[1])
    trace = {"deviation": deviation, "best": max_harm}
    return LimitResult(task.limit, max_harm, not_worse, measurement, (totals[0], totals[1]), trace)


def measure_mean(
    task: LimitTask, strata: Sequence[Stratum], deviation: float, samples: int, sign: float = 1.0, origin: float = 0.0
) -> Measurement:
    """``sign`` * pooled value + ``origin``, with its confidence sequence; ``deviation`` is that of one observation."""
    value, information = sequential.pool(strata)
    radius = sequential.mean_radius(information, _SCALE * deviation, task.worse_level) if strata else math.inf
    low, high = sorted((sign * (value - radius) + origin, sign * (value + radius) + origin))
    method, value = "confidence sequence (normal mixture)", sign * value + origin
    return Measurement(task.spec.metric, value, low, high, samples, task.confidence, method=method)


def _evidence(task: LimitTask, strata: Sequence[Stratum], deviation: float) -> tuple[float, float]:
    """Log evidence against "not worse" and against "worse"."""
    if not strata:
        return 0.0, 0.0
    above, below = sequential.mean_evidence(*sequential.pool(strata), task.limit.value, _SCALE * deviation)
    return (below, above) if task.limit.kind == "min" else (above, below)


def _variance_of_mean(moments: Moments, other: Moments) -> float:
    """Variance of an arm's mean. The smaller arm takes the larger one's variance where that is larger: a small sample
    of a long-tailed distribution that misses the tail underestimates mean and variance at once."""
    variance = _variance(moments)
    if moments.count < other.count:
        variance = max(variance, _variance(other))
    return variance / moments.count


def _variance(moments: Moments) -> float:
    return max(moments.squares - moments.total * moments.mean, 0.0) / max(moments.count - 1, 1)
