"""Means of losses that feedback told: asymptotic tests, and the confidence sequence of a mean."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mlflowkit.judging.online import sequential
from mlflowkit.judging.online.clusters import clusters
from mlflowkit.judging.online.evidence import Moments, VariantCounts
from mlflowkit.judging.online.questions import Reading, Task
from mlflowkit.judging.online.sequential import Stratum
from mlflowkit.values import Measurement

MINIMUM = 100
"""Observations of each arm before a mean is judged: its test rests on the central limit theorem."""


def mean(task: Task) -> Reading:
    """log_loss, absolute_error, squared_error: asymptotic, from `MINIMUM` observations of each arm and epoch on."""
    compared = task.limit.kind == "margin"
    strata, total, sums, deviation = [], [0, 0], Moments(), float(task.trace.get("deviation", 0.0))
    for _, first, second in task.arms:
        one, two = (
            first.quality.get(task.question.metric, Moments()),
            second.quality.get(task.question.metric, Moments()),
        )
        total[0], total[1] = total[0] + one.count, total[1] + two.count
        if min(two.count, one.count if compared else two.count) < MINIMUM:
            continue
        variance = _variance_of_mean(two, second, one if compared else two)
        if compared:
            variance += _variance_of_mean(one, first, two)
        if variance > 0:
            strata.append(Stratum(two.mean - (one.mean if compared else 0.0), variance))
            sums = sums + two
    if strata and not deviation:
        deviation = math.sqrt(_variance(sums))
    value, information = sequential.pooled(strata)
    worse, better = (
        sequential.mean_evidence(value, information, task.limit.value, 0.09 * deviation) if strata else (0.0, 0.0)
    )
    if task.limit.kind == "min":
        worse, better = better, worse
    best = max(float(task.trace.get("best", 0.0)), worse)
    measurement = mean_measurement(task, strata, deviation, total[1])
    return Reading(task.limit, best, better, measurement, (total[0], total[1]), {"deviation": deviation, "best": best})


def mean_measurement(
    task: Task, strata: Sequence[Stratum], deviation: float, samples: int, sign: float = 1.0, origin: float = 0.0
) -> Measurement:
    """``sign`` * the pooled value + ``origin``, with its confidence sequence; ``deviation`` is of one observation."""
    value, information = sequential.pooled(strata)
    radius = sequential.mean_radius(information, 0.09 * deviation, task.harm_level) if strata else math.inf
    low, high = sorted((sign * (value - radius) + origin, sign * (value + radius) + origin))
    return Measurement(
        name=task.question.metric,
        value=sign * value + origin,
        low=low,
        high=high,
        samples=samples,
        confidence=task.confidence,
        method="confidence sequence (normal mixture)",
    )


def _variance_of_mean(moments: Moments, counts: VariantCounts, other: Moments) -> float:
    """Variance of an arm's mean. The smaller arm is given the larger one's variance where that is more: where the
    distribution has a long tail, a small sample that misses it has too small a mean and too small a variance at once.
    """
    variance = _variance(moments)
    if moments.count < other.count:
        variance = max(variance, _variance(other))
    return variance / (moments.count * clusters(counts))


def _variance(moments: Moments) -> float:
    return max(moments.squares - moments.total * moments.mean, 0.0) / max(moments.count - 1, 1)
