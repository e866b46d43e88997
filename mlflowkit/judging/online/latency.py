"""Latency quantiles: exact within an epoch up to the width of a bin."""

from __future__ import annotations

import math

from mlflowkit.judging.online import sequential
from mlflowkit.judging.online.questions import Reading, Task
from mlflowkit.judging.online.sequential import Share, Wealth
from mlflowkit.values import Json, Measurement

_HEDGE = 0.3
"""Of each epoch's stake this much is not bet, so that an epoch that says little costs little."""


def latency(task: Task) -> Reading:
    """A latency quantile: compared epoch by epoch, the evidence of epochs added; or held against a bound."""
    return _latency_bound(task) if task.limit.kind in ("min", "max") else _latency_difference(task)


def _quantile(metric: str) -> float:
    return int(metric.removeprefix("latency_p").removesuffix("_ms")) / 100


def _latency_difference(task: Task) -> Reading:
    quantile = _quantile(task.question.metric)
    ratio = task.limit.value if task.limit.kind == "ratio" else 1.0
    margin = task.limit.value / 1000 if task.limit.kind == "margin" else 0.0
    epochs: dict[str, Json] = {}
    harm = proof = 0.0
    shown, most = (math.nan, math.nan, math.nan), 0
    totals = [0, 0]
    for epoch, first, second in task.arms:
        counts = [sum(first.latency.values()), sum(second.latency.values())]
        totals = [totals[0] + counts[0], totals[1] + counts[1]]
        if not all(counts):
            continue
        known = task.trace.get("epochs", {}).get(str(epoch))
        if known is None or known[:2] != counts:
            arms = task.below(first.latency), task.below(second.latency)
            logs = sequential.quantile_evidence(*arms, quantile, ratio, margin)
            interval = _latency_interval(task, *arms, quantile)
            known = [*counts, *(_hedged(log) for log in logs), *interval]
        epochs[str(epoch)] = known
        harm, proof = harm + known[2], proof + known[3]
        if counts[1] > most:
            most, shown = counts[1], (known[4], known[5], known[6])
    best = max(float(task.trace.get("best", 0.0)), harm)
    unit = "x" if task.limit.kind == "ratio" else "ms"
    method = "confidence sequence of quantiles, of the epoch with most answers"
    measurement = Measurement(task.question.metric, *shown, totals[1], task.confidence, unit, method)
    return Reading(task.limit, best, proof, measurement, (totals[0], totals[1]), {"epochs": epochs, "best": best})


def _hedged(log: float) -> float:
    return math.log(_HEDGE + (1 - _HEDGE) * math.exp(log)) if log < 500 else log + math.log(1 - _HEDGE)


def _latency_interval(
    task: Task, champion: sequential.Array, challenger: sequential.Array, quantile: float
) -> tuple[float, float, float]:
    """The difference in ms (or the ratio) of two quantiles, between the ends of the arms' own confidence sequences."""
    level = task.harm_level / 4
    first, second = (sequential.quantile_bounds(arm, quantile, level) for arm in (champion, challenger))
    if task.limit.kind == "ratio":
        return second[0] / first[0], second[1] / first[2], second[2] / first[1]
    return 1000 * (second[0] - first[0]), 1000 * (second[1] - first[2]), 1000 * (second[2] - first[1])


def _latency_bound(task: Task) -> Reading:
    """How many are slower than the bound, against how many may be."""
    quantile, bound = _quantile(task.question.metric), task.limit.value / 1000
    seen = dict(task.trace.get("seen", {}))
    harm, proof = Wealth.from_json(task.trace.get("harm")), Wealth.from_json(task.trace.get("proof"))
    best, total, shown = float(task.trace.get("best", 0.0)), 0, (math.nan, math.nan, math.nan)
    maximum = task.limit.kind == "max"
    for epoch, _, second in task.arms:
        if not second.latency:
            continue
        below = task.below(second.latency)
        count = float(below[-1])
        total += int(count)
        slower = [count - sequential.at_edge(below, bound, up) for up in (maximum, not maximum)]
        before = seen.get(str(epoch), (0.0, 0.0, 0.0))
        if count > before[0]:
            blocks = [Share(count, one) - Share(before[0], old) for one, old in zip(slower, before[1:], strict=True)]
            worse = sequential.rate_bets(blocks[0], 1 - quantile)[0 if maximum else 1]
            better = sequential.rate_bets(blocks[1], 1 - quantile)[1 if maximum else 0]
            harm, proof = harm.bet(worse, count - before[0]), proof.bet(better, count - before[0])
            best = max(best, harm.log)
            seen[str(epoch)] = [count, *slower]
        value, low, high = sequential.quantile_bounds(below, quantile, task.harm_level / 2)
        shown = (1000 * value, 1000 * low, 1000 * high)
    method = "confidence sequence of a quantile, last epoch"
    measurement = Measurement(task.question.metric, *shown, total, task.confidence, "ms", method)
    after = {"seen": seen, "harm": harm.to_json(), "proof": proof.to_json(), "best": best}
    samples = (sum(sum(first.latency.values()) for _, first, _ in task.arms), total)
    return Reading(task.limit, best, proof.log, measurement, samples, after)
