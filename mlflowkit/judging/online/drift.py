"""The distance between the predictions of two variants."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from operator import mul

from mlflowkit.judging.online import sequential
from mlflowkit.judging.online.evidence import VariantCounts
from mlflowkit.judging.online.metric_results import LimitResult
from mlflowkit.judging.online.metric_specs import LimitTask
from mlflowkit.judging.online.rates import ROUNDING, added_share, discount_past, seen_key
from mlflowkit.judging.online.sequential import Share, Wealth
from mlflowkit.values import Json, Measurement

_KINDS = ("label", "score", "decile")


def judge_drift(task: LimitTask) -> LimitResult:
    """Judge the distance of the variants' predictions: total variation of labels, Kolmogorov-Smirnov of scores.

    Worse: the set of classes in which earlier blocks showed the distance is tested in the next block, as a difference
    of two rates; under a distance of at most the limit no set differs by more, however it was chosen. Not worse:
    asymptotic, and every set that could show the distance must be shown not to. Where labels and scores were both
    counted, either may fail (each at half of the level), and both must pass.
    """
    present = [kind for kind in _KINDS if any(arm.predicted(f"{kind}:")[0] for _, *both in task.arms for arm in both)]
    results = [_judge_kind(task, kind, task.trace.get(kind, {})) for kind in present]
    if not results:
        measurement = Measurement(task.spec.metric, math.nan, -math.inf, math.inf, 0, task.confidence)
        return LimitResult(task.limit, 0.0, 0.0, measurement, (0, 0), task.trace)
    traces = {kind: result.trace for kind, result in zip(present, results, strict=True)}
    worst = max(results, key=lambda result: result.evidence_worse)
    least = min(results, key=lambda result: result.evidence_not_worse)
    evidence_worse = max(worst.evidence_worse - math.log(len(results)), 0.0)
    return replace(
        worst if evidence_worse >= -math.log(task.worse_level) else least,
        evidence_worse=evidence_worse,
        evidence_not_worse=least.evidence_not_worse,
        trace={**task.trace, **traces},
    )


def _judge_kind(task: LimitTask, kind: str, trace: Mapping[str, Json]) -> LimitResult:
    prefix, ordered, limit = f"{kind}:", kind != "label", task.limit.value
    harm, max_harm = Wealth.from_json(trace.get("harm")), float(trace.get("best", 0.0))
    seen, effective_totals = dict(trace.get("seen", {})), dict(trace.get("effective", {}))
    sums: tuple[dict[str, float], dict[str, float]] = ({}, {})
    for counted in seen.values():
        _add(sums, counted)
    scaled_counts: list[list[dict[str, float]]] = []
    for epoch, *arms in task.arms:
        counts, factors = map(list, zip(*(arm.predicted(prefix) for arm in arms), strict=True))
        scaled_counts.append(
            [{name: count * factor for name, count in of.items()} for of, factor in zip(counts, factors, strict=True)]
        )
        key = seen_key(epoch, any(arm.request_predictions for arm in arms), seen, [dict(now) for now in counts])
        if key is None:
            continue
        news = [
            {name: value - before.get(name, 0.0) for name, value in now.items()}
            for now, before in zip(counts, seen.get(key, [{}, {}]), strict=True)
        ]
        if not all(sum(new.values()) > 0 and min(new.values()) >= -ROUNDING for new in news):
            continue
        effective, shares = _key_shares(arms, counts, news, effective_totals.get(key))
        if effective:
            effective_totals[key] = effective
            factors = list(map(mul, factors, shares))
        if (names := _most_different(sums, ordered)) and min(factors) > 0:
            first, second = (_share(new, names).scaled(factor) for new, factor in zip(news, factors, strict=True))
            worse, _ = sequential.rate_difference_bets(first, second, limit, discount_past(_share(sums[0], names)))
            harm = harm.bet(worse, second.count)
            max_harm = max(max_harm, harm.log)
        seen[key] = [dict(now) for now in counts]
        _add(sums, news)
    evidence_not_worse, measurement, samples = _measure(task, scaled_counts, ordered)
    next_trace = {"seen": seen, "harm": harm.to_json(), "best": max_harm}
    if effective_totals:
        next_trace["effective"] = effective_totals
    return LimitResult(task.limit, max_harm, evidence_not_worse, measurement, samples, next_trace)


def _key_shares(
    arms: Sequence[VariantCounts],
    counts: Sequence[Mapping[str, float]],
    news: Sequence[Mapping[str, float]],
    before: Sequence[float] | None,
) -> tuple[list[float], list[float]]:
    """What each arm's counts are worth where affinity keys repeat, and the share of its new counts; ([], []) where
    none does. ``before`` is the former of the last look."""
    totals = [sum(now.values()) for now in counts]
    effective = [arm.keys.effective(total) for arm, total in zip(arms, totals, strict=True)]
    if effective == totals:
        return [], []
    added = [sum(new.values()) for new in news]
    earlier = before or [total - new for total, new in zip(totals, added, strict=True)]
    return effective, list(map(added_share, effective, earlier, added))


def _measure(
    task: LimitTask, epochs: Sequence[Sequence[Mapping[str, float]]], ordered: bool
) -> tuple[float, Measurement, tuple[int, int]]:
    """The evidence that the distance is within the limit, the distance with its confidence sequence, and the samples.

    Differences are pooled over epochs by the information of a rate of one half, the least that a rate can have.
    """
    compared = [(first, second) for first, second in epochs if sum(first.values()) and sum(second.values())]
    classes = _sort_classes({name for both in compared for counts in both for name in counts})
    sums = [0.0] * len(classes)
    information, totals = 0.0, [0.0, 0.0]
    for first, second in compared:
        count, other = sum(first.values()), sum(second.values())
        weight = 4 / (1 / count + 1 / other)
        information, totals = information + weight, [totals[0] + count, totals[1] + other]
        for index, name in enumerate(classes):
            sums[index] += weight * (second.get(name, 0.0) / other - first.get(name, 0.0) / count)
    differences = [total / information for total in sums]
    if ordered:
        value, family = max((abs(part) for part in accumulate(differences)), default=math.nan), 2.0 * len(classes)
    else:
        value, family = sum(max(part, 0.0) for part in differences), 2.0 ** min(len(classes), 1000)
    _, evidence = sequential.mean_evidence(value, information, task.limit.value, max(task.limit.value, 0.01))
    radius = sequential.mean_radius(information, 0.045, task.worse_level / family) if compared else math.inf
    low, high = max(value - radius, 0.0), min(value + radius, 1.0)
    method = "confidence sequence of " + ("Kolmogorov-Smirnov's distance" if ordered else "total variation")
    name, size = task.spec.metric, round(totals[1])
    value = value if compared else math.nan
    measurement = Measurement(name, value, low, high, size, task.confidence, method=method)
    return evidence if compared else 0.0, measurement, (round(totals[0]), size)


def _most_different(sums: Sequence[Mapping[str, float]], ordered: bool) -> set[str]:
    """The set of classes in which the counts so far differ most."""
    classes = _sort_classes({*sums[0], *sums[1]})
    first, second = ([part.get(name, 0.0) for name in classes] for part in sums)
    return {classes[index] for index in sequential.distance(first, second, ordered)[1]}


def _sort_classes(classes: set[str]) -> list[str]:
    """Classes in order, by number where they are numbered."""
    return sorted(classes, key=lambda name: (int(last) if (last := name.rpartition(":")[2]).isdigit() else -1, name))


def _share(counts: Mapping[str, float], names: set[str]) -> Share:
    return Share(sum(counts.values()), sum(value for name, value in counts.items() if name in names))


def _add(sums: Sequence[dict[str, float]], news: Sequence[Mapping[str, float]]) -> None:
    for total, new in zip(sums, news, strict=True):
        for name, value in new.items():
            total[name] = total.get(name, 0.0) + value
