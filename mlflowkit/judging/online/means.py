"""Means of losses from feedback: asymptotic tests, and the confidence sequence of a mean."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mlflowkit.judging.online import sequential
from mlflowkit.judging.online.evidence import Moments, VariantCounts
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
    strata, totals, sums, deviation = [], [0, 0], Moments(), float(task.trace.get("deviation", 0.0))
    for _, champion, challenger in task.arms:
        first, second = (arm.quality.get(task.spec.metric, Moments()) for arm in (champion, challenger))
        totals = [totals[0] + first.count, totals[1] + second.count]
        if min(second.count, first.count if compared else second.count) < MIN_OBSERVATIONS:
            continue
        variance = _variance_of_mean(second, challenger, first if compared else second)
        if compared:
            variance += _variance_of_mean(first, champion, second)
        if variance > 0:
            strata.append(Stratum(second.mean - (first.mean if compared else 0.0), variance))
            sums = sums + second
    if strata and not deviation:
        deviation = math.sqrt(_variance(sums))
    value, information = sequential.pool(strata)
    above, below = 0.0, 0.0
    if strata:
        above, below = sequential.mean_evidence(value, information, task.limit.value, _SCALE * deviation)
    worse, not_worse = (below, above) if task.limit.kind == "min" else (above, below)
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


def _variance_of_mean(moments: Moments, counts: VariantCounts, other: Moments) -> float:
    """Variance of an arm's mean. The smaller arm takes the larger one's variance where that is larger: a small sample
    of a long-tailed distribution that misses the tail underestimates mean and variance at once."""
    variance = _variance(moments)
    if moments.count < other.count:
        variance = max(variance, _variance(other))
    return variance / (moments.count * counts.clusters_per_row)


def _variance(moments: Moments) -> float:
    return max(moments.squares - moments.total * moments.mean, 0.0) / max(moments.count - 1, 1)
