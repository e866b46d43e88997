"""The distance between the predictions of two variants."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate

from mlflowkit.judging.online import sequential
from mlflowkit.judging.online.clusters import clusters
from mlflowkit.judging.online.evidence import VariantCounts
from mlflowkit.judging.online.questions import Reading, Task
from mlflowkit.judging.online.rates import recent
from mlflowkit.judging.online.sequential import Share, Wealth
from mlflowkit.values import Json, Measurement

_KINDS = ("label", "score", "decile")
"""Kinds of predictions; scores and deciles have an order."""


def drift(task: Task) -> Reading:
    """The distance between the two variants' predictions: total variation of labels, Kolmogorov-Smirnov of scores.

    Harm: the set of classes in which earlier blocks showed the distance is tested in the next block, as a difference of
    two rates; under a distance of at most the limit no set differs by more, whichever was chosen. Proof: asymptotic,
    and every set that could show the distance must be shown not to. Where labels and scores were both counted, either
    may fail (each with half of the level), and both must pass.
    """
    present = [
        kind
        for kind in _KINDS
        if any(key.startswith(f"{kind}:") for _, *both in task.arms for counts in both for key in counts.predictions)
    ]
    readings = [_drift_of(task, kind, task.trace.get(kind, {})) for kind in present]
    if not readings:
        measurement = Measurement(task.question.metric, math.nan, -math.inf, math.inf, 0, task.confidence)
        return Reading(task.limit, 0.0, 0.0, measurement, (0, 0), task.trace)
    parts = {kind: reading.trace for kind, reading in zip(present, readings, strict=True)}
    worst = max(readings, key=lambda reading: reading.harm)
    harm = max(worst.harm - math.log(len(readings)), 0.0)
    least = min(readings, key=lambda reading: reading.proof)
    shown = worst if harm >= -math.log(task.harm_level) else least
    return replace(shown, harm=harm, proof=least.proof, trace={**task.trace, **parts})


def _drift_of(task: Task, kind: str, trace: Mapping[str, Json]) -> Reading:
    prefix, ordered, limit = f"{kind}:", kind != "label", task.limit.value
    harm, best, seen = Wealth.from_json(trace.get("harm")), float(trace.get("best", 0.0)), dict(trace.get("seen", {}))
    sums: tuple[dict[str, float], dict[str, float]] = ({}, {})
    for earlier in seen.values():
        _add(sums, earlier)
    now: list[list[dict[str, float]]] = []
    for epoch, first, second in task.arms:
        counts = [_predicted(arm, prefix) for arm in (first, second)]
        now.append(
            [
                {name: count * clusters(arm) for name, count in found.items()}
                for found, arm in zip(counts, (first, second), strict=True)
            ]
        )
        before = seen.get(str(epoch), [{}, {}])
        news = [_less(new, old) for new, old in zip(counts, before, strict=True)]
        if not all(sum(new.values()) > 0 and min(new.values()) >= 0 for new in news):
            continue
        classes = _ordered({*sums[0], *sums[1]})
        first_sums, second_sums = ([part.get(name, 0.0) for name in classes] for part in sums)
        _, chosen = sequential.distance(first_sums, second_sums, ordered)
        names = {classes[index] for index in chosen}
        if names:
            one, two = (
                _share(new, names).scaled(clusters(arm)) for new, arm in zip(news, (first, second), strict=True)
            )
            worse, _ = sequential.rate_difference_bets(one, two, limit, recent(_share(sums[0], names)))
            harm = harm.bet(worse, two.count)
            best = max(best, harm.log)
        seen[str(epoch)] = counts
        _add(sums, news)
    proof, measurement, samples = _drift_shown(task, now, ordered)
    after = {"seen": seen, "harm": harm.to_json(), "best": best}
    return Reading(task.limit, best, proof, measurement, samples, after)


def _drift_shown(
    task: Task, epochs: Sequence[Sequence[Mapping[str, float]]], ordered: bool
) -> tuple[float, Measurement, tuple[int, int]]:
    """The evidence that the distance is within the limit, and the distance with its confidence sequence.

    Differences are pooled over epochs by the information of a rate of one half, the least that a rate can have.
    """
    told = [(one, two) for one, two in epochs if sum(one.values()) and sum(two.values())]
    classes = _ordered({name for both in told for counts in both for name in counts})
    sums = [0.0] * len(classes)
    information, totals = 0.0, [0.0, 0.0]
    for one, two in told:
        first, second = sum(one.values()), sum(two.values())
        weight = 4 / (1 / first + 1 / second)
        information, totals = information + weight, [totals[0] + first, totals[1] + second]
        for index, name in enumerate(classes):
            sums[index] += weight * (two.get(name, 0.0) / second - one.get(name, 0.0) / first)
    differences = [total / information for total in sums]
    if ordered:
        value, family = max((abs(part) for part in accumulate(differences)), default=math.nan), 2.0 * len(classes)
    else:
        value, family = sum(max(part, 0.0) for part in differences), 2.0 ** min(len(classes), 1000)
    _, proof = sequential.mean_evidence(value, information, task.limit.value, max(task.limit.value, 0.01))
    radius = sequential.mean_radius(information, 0.045, task.harm_level / family) if told else math.inf
    low, high = max(value - radius, 0.0), min(value + radius, 1.0)
    method = "confidence sequence of " + ("Kolmogorov-Smirnov's distance" if ordered else "total variation")
    name, size = task.question.metric, round(totals[1])
    measurement = Measurement(name, value if told else math.nan, low, high, size, task.confidence, method=method)
    return proof if told else 0.0, measurement, (round(totals[0]), size)


def _predicted(counts: VariantCounts, prefix: str) -> dict[str, float]:
    return {key: float(value) for key, value in counts.predictions.items() if key.startswith(prefix)}


def _ordered(classes: set[str]) -> list[str]:
    """Classes in their order: by number where they are numbered."""
    return sorted(classes, key=lambda name: (int(last) if (last := name.rpartition(":")[2]).isdigit() else -1, name))


def _share(counts: Mapping[str, float], names: set[str]) -> Share:
    return Share(sum(counts.values()), sum(value for name, value in counts.items() if name in names))


def _less(counts: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    return {name: value - before.get(name, 0.0) for name, value in counts.items()}


def _add(sums: Sequence[dict[str, float]], news: Sequence[Mapping[str, float]]) -> None:
    for total, new in zip(sums, news, strict=True):
        for name, value in new.items():
            total[name] = total.get(name, 0.0) + value
