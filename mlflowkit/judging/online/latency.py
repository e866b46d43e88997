"""Latency quantiles: exact within an epoch up to the width of a bin."""

from __future__ import annotations

import math

from mlflowkit.judging.online import quantiles, sequential
from mlflowkit.judging.online.metric_results import LimitResult
from mlflowkit.judging.online.metric_specs import LimitTask
from mlflowkit.judging.online.sequential import Share, Wealth
from mlflowkit.values import Json, Measurement

_HEDGE = 0.3
"""Share of each epoch's stake that is not bet, so that an uninformative epoch costs little."""


def judge_latency(task: LimitTask) -> LimitResult:
    """Judge a latency quantile: compared epoch by epoch with the evidence summed, or held against a bound."""
    quantile = int(task.spec.metric.removeprefix("latency_p").removesuffix("_ms")) / 100
    return (_judge_bound if task.limit.kind in ("min", "max") else _judge_difference)(task, quantile)


def _judge_difference(task: LimitTask, quantile: float) -> LimitResult:
    ratio = task.limit.value if task.limit.kind == "ratio" else 1.0
    margin = task.limit.value / 1000 if task.limit.kind == "margin" else 0.0
    epochs: dict[str, Json] = {}
    harm = proof = 0.0
    estimate, largest = (math.nan, math.nan, math.nan), 0
    totals = [0, 0]
    for epoch, champion, challenger in task.arms:
        counts = [sum(champion.latency.values()), sum(challenger.latency.values())]
        totals = [totals[0] + counts[0], totals[1] + counts[1]]
        if not all(counts):
            continue
        entry = task.trace.get("epochs", {}).get(str(epoch))
        if entry is None or entry[:2] != counts:
            arms = task.below(champion.latency), task.below(challenger.latency)
            logs = quantiles.quantile_evidence(*arms, quantile, ratio, margin)
            entry = [*counts, *(_hedge(log) for log in logs), *_measure_difference(task, *arms, quantile)]
        epochs[str(epoch)] = entry
        harm, proof = harm + entry[2], proof + entry[3]
        if counts[1] > largest:
            largest, estimate = counts[1], (entry[4], entry[5], entry[6])
    max_harm = max(float(task.trace.get("best", 0.0)), harm)
    unit = "x" if task.limit.kind == "ratio" else "ms"
    method = "confidence sequence of quantiles, of the epoch with most answers"
    measurement = Measurement(task.spec.metric, *estimate, totals[1], task.confidence, unit, method)
    trace = {"epochs": epochs, "best": max_harm}
    return LimitResult(task.limit, max_harm, proof, measurement, (totals[0], totals[1]), trace)


def _hedge(log: float) -> float:
    return math.log(_HEDGE + (1 - _HEDGE) * math.exp(log)) if log < 500 else log + math.log(1 - _HEDGE)


def _measure_difference(
    task: LimitTask, champion: sequential.Array, challenger: sequential.Array, quantile: float
) -> tuple[float, float, float]:
    """The difference in ms (or the ratio) of two quantiles, with bounds from the arms' own confidence sequences."""
    level = task.worse_level / 4
    first, second = (quantiles.quantile_bounds(arm, quantile, level) for arm in (champion, challenger))
    if task.limit.kind == "ratio":
        return second[0] / first[0], second[1] / first[2], second[2] / first[1]
    return 1000 * (second[0] - first[0]), 1000 * (second[1] - first[2]), 1000 * (second[2] - first[1])


def _judge_bound(task: LimitTask, quantile: float) -> LimitResult:
    """Test how many answers are slower than the bound against how many may be."""
    seen, bound = dict(task.trace.get("seen", {})), task.limit.value / 1000
    harm, proof = Wealth.from_json(task.trace.get("harm")), Wealth.from_json(task.trace.get("proof"))
    max_harm, total, estimate = float(task.trace.get("best", 0.0)), 0, (math.nan, math.nan, math.nan)
    maximum = task.limit.kind == "max"
    for epoch, _, challenger in task.arms:
        if not challenger.latency:
            continue
        below = task.below(challenger.latency)
        count = float(below[-1])
        total += int(count)
        slower = [count - quantiles.count_below_edge(below, bound, up) for up in (maximum, not maximum)]
        before = seen.get(str(epoch), (0.0, 0.0, 0.0))
        if count > before[0]:
            blocks = [Share(count, hits) - Share(before[0], old) for hits, old in zip(slower, before[1:], strict=True)]
            worse = sequential.rate_bets(blocks[0], 1 - quantile)[0 if maximum else 1]
            not_worse = sequential.rate_bets(blocks[1], 1 - quantile)[1 if maximum else 0]
            harm, proof = harm.bet(worse, count - before[0]), proof.bet(not_worse, count - before[0])
            max_harm = max(max_harm, harm.log)
            seen[str(epoch)] = [count, *slower]
        value, low, high = quantiles.quantile_bounds(below, quantile, task.worse_level / 2)
        estimate = (1000 * value, 1000 * low, 1000 * high)
    method = "confidence sequence of a quantile, last epoch"
    measurement = Measurement(task.spec.metric, *estimate, total, task.confidence, "ms", method)
    trace = {"seen": seen, "harm": harm.to_json(), "proof": proof.to_json(), "best": max_harm}
    samples = (sum(sum(champion.latency.values()) for _, champion, _ in task.arms), total)
    return LimitResult(task.limit, max_harm, proof.log, measurement, samples, trace)
