"""Rates: of errors and of right answers, against the champion's or a bound, by e-processes that are exact."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mlflowkit.judging.online import sequential
from mlflowkit.judging.online.clusters import clusters
from mlflowkit.judging.online.evidence import Moments, VariantCounts
from mlflowkit.judging.online.means import mean_measurement
from mlflowkit.judging.online.questions import Reading, Task
from mlflowkit.judging.online.sequential import Share, Stratum, Wealth
from mlflowkit.values import Json, Measurement


def rate(task: Task) -> Reading:
    """error_rate, accuracy: the challenger's rate against the champion's or against a bound."""
    metric = task.question.metric
    strata = [_losses(metric, *arms) for arms in task.arms]
    return reading_of(task, strata, task.trace)


@dataclass(frozen=True, slots=True)
class Counted:
    """Of how many observations how many were bad, in each arm under one table; and clusters / observations of each."""

    epoch: int
    first: Share
    second: Share
    factors: tuple[float, float] = (1.0, 1.0)


def _losses(metric: str, epoch: int, first: VariantCounts, second: VariantCounts) -> Counted:
    if metric == "error_rate":
        return Counted(epoch, Share(first.requests, first.errors), Share(second.requests, second.errors))
    one, two = first.quality.get(metric, Moments()), second.quality.get(metric, Moments())
    return Counted(epoch, missed(one), missed(two), (clusters(first), clusters(second)))


def missed(moments: Moments) -> Share:
    """Of observations that count 1 where they are right: those that are not."""
    return Share(moments.count, moments.count - moments.total)


def reading_of(task: Task, strata: Sequence[Counted], trace: Mapping[str, Json]) -> Reading:
    """What a limit on a rate says; ``trace`` is what was remembered of just these counts."""
    compared = task.limit.kind == "margin"
    harm, proof = Wealth.from_json(trace.get("harm")), Wealth.from_json(trace.get("proof"))
    past = Share(*trace.get("past", (0.0, 0.0)))
    best, seen = float(trace.get("best", 0.0)), dict(trace.get("seen", {}))
    for first, second in _blocks(strata, seen, compared):
        if compared:
            worse, better = sequential.rate_difference_bets(first, second, task.limit.value, past)
            past = recent(past + first)
        else:
            bound, above = _loss_bound(task)
            worse, better = sequential.rate_bets(second, bound)
            worse, better = (worse, better) if above else (better, worse)
        harm, proof = harm.bet(worse, second.count), proof.bet(better, second.count)
        best = max(best, harm.log)
    after = {
        "seen": seen,
        "past": [past.count, past.hits],
        "harm": harm.to_json(),
        "proof": proof.to_json(),
        "best": best,
    }
    measurement = _measured(task, strata)
    samples = (round(sum(one.first.count for one in strata)), round(sum(one.second.count for one in strata)))
    return Reading(task.limit, best, proof.log, measurement, samples, after)


def recent(past: Share) -> Share:
    """Rates drift: no more of the past counts than as many requests."""
    return past.scaled(min(1.0, 20_000 / past.count))


def _loss_bound(task: Task) -> tuple[float, bool]:
    """The bound on the rate of bad observations, and whether being above it is what is not allowed."""
    if task.question.metric == "error_rate":
        return task.limit.value, task.limit.kind == "max"
    return 1 - task.limit.value, task.limit.kind == "min"


def _blocks(strata: Sequence[Counted], seen: dict[str, Json], compared: bool) -> Iterator[tuple[Share, Share]]:
    """What came in since the last look, by epoch; it waits for the next look where an arm has nothing new."""
    for stratum in strata:
        first, second, name = stratum.first, stratum.second, str(stratum.epoch)
        before = seen.get(name, (0.0, 0.0, 0.0, 0.0))
        one, two = first - Share(*before[:2]), second - Share(*before[2:])
        told = two.count > 0 and 0 <= two.hits <= two.count
        if compared:
            told = told and one.count > 0 and 0 <= one.hits <= one.count
        if told:
            seen[name] = [first.count, first.hits, second.count, second.hits]
            yield one.scaled(stratum.factors[0]), two.scaled(stratum.factors[1])


def _measured(task: Task, strata: Sequence[Counted]) -> Measurement:
    """The difference of rates (or the rate), in the metric's own direction, with its confidence sequence."""
    compared = task.limit.kind == "margin"
    found, count, spread = [], 0.0, 0.0
    for stratum in strata:
        first, second = stratum.first.scaled(stratum.factors[0]), stratum.second.scaled(stratum.factors[1])
        if second.count and (first.count or not compared):
            variance = _spread(second) / second.count + (_spread(first) / first.count if compared else 0.0)
            found.append(Stratum(second.rate - (first.rate if compared else 0.0), variance))
            count, spread = count + second.count, spread + _spread(second) * second.count
    sign, origin = (1.0, 0.0) if task.question.metric == "error_rate" else (-1.0, 0.0 if compared else 1.0)
    return mean_measurement(task, found, math.sqrt(spread / count) if count else math.nan, round(count), sign, origin)


def _spread(share: Share) -> float:
    """Variance of one observation. Two hits and two misses are added (Agresti & Coull, 1998): few seen are too few."""
    rate = (share.hits + 2) / (share.count + 4)
    return rate * (1 - rate)
