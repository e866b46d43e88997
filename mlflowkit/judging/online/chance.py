"""Agreement beyond chance: Cohen's kappa of a shadow's answers and the champion's, at least a bound. Asymptotic."""

from __future__ import annotations

import math

from mlflowkit.judging.online import sequential
from mlflowkit.judging.online.evidence import PairMoments
from mlflowkit.judging.online.metric_results import LimitResult
from mlflowkit.judging.online.metric_specs import Limit, LimitTask
from mlflowkit.judging.online.sequential import Stratum
from mlflowkit.values import Measurement

MIN_PAIRS = 100
"""Pairs of requests before kappa is judged: the test relies on the central limit theorem."""
_SCALE = 0.09
"""Scale of the alternatives, in standard deviations of one pair."""


def judge_kappa(task: LimitTask) -> LimitResult:
    """Judge whether kappa = 1 - D / E is at least a bound k: whether the mean of D - (1 - k) E is at most 0.

    Each pair of mirrored requests observes D and E once (`serving.observer.paired_answers`), so that this is the mean
    of independent observations, and no ratio. Uses epochs with `MIN_PAIRS`.
    """
    bound = 1 - task.limit.value if task.limit.kind == "margin" else task.limit.value
    shadows = [shadow for _, _, shadow in task.arms if shadow.pairs.pairs >= MIN_PAIRS]
    epochs = [shadow.pairs for shadow in shadows]
    total = sum((shadow.pairs for _, _, shadow in task.arms), PairMoments())
    strata, by_key = [], []
    for shadow in shadows:
        pairs, requests = shadow.pairs, 2 * shadow.pairs.pairs
        stratum = Stratum(pairs.excess(bound), pairs.variance(bound) / pairs.pairs)
        if stratum.variance > 0:
            strata.append(stratum)
            repeats = requests / shadow.keys.effective(requests)
            by_key.append(Stratum(stratum.difference, stratum.variance * repeats))
    deviation = float(task.trace.get("deviation", 0.0))
    if strata and not deviation:
        deviation = math.sqrt(sum(epochs, PairMoments()).variance(bound))
    worse, not_worse = 0.0, 0.0
    if strata:
        worse, _ = sequential.mean_evidence(*sequential.pool(by_key), 0.0, _SCALE * deviation)
        _, not_worse = sequential.mean_evidence(*sequential.pool(strata), 0.0, _SCALE * deviation)
    max_harm = max(float(task.trace.get("best", 0.0)), worse)
    trace = {"deviation": deviation, "best": max_harm}
    limit = Limit("min", bound)
    return LimitResult(limit, max_harm, not_worse, _measure(task, epochs), (0, 2 * total.pairs), trace)


def _measure(task: LimitTask, epochs: list[PairMoments]) -> Measurement:
    """Kappa over the epochs, with its confidence sequence by linearisation at the estimate."""
    total = sum(epochs, PairMoments())
    method, samples = "confidence sequence (normal mixture)", 2 * total.pairs
    if not total.chance:
        return Measurement(task.spec.metric, math.nan, -math.inf, math.inf, samples, task.confidence, method=method)
    value = 1 - total.apart / total.chance
    scale = total.chance / total.pairs
    variance = max(total.variance(value), 1e-12)
    radius = sequential.mean_radius(total.pairs / variance, _SCALE * math.sqrt(variance), task.worse_level) / scale
    return Measurement(task.spec.metric, value, value - radius, value + radius, samples, task.confidence, method=method)
