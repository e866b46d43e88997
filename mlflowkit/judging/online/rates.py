"""Rates of errors, of correct labels and of agreement, against the champion's or a bound, by exact e-processes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from mlflowkit.judging.online import sequential
from mlflowkit.judging.online.evidence import Moments, VariantCounts
from mlflowkit.judging.online.means import measure_mean
from mlflowkit.judging.online.metric_results import LimitResult
from mlflowkit.judging.online.metric_specs import Limit, LimitTask
from mlflowkit.judging.online.sequential import Share, Stratum, Wealth
from mlflowkit.values import Json, Measurement

MAX_PAST_REQUESTS = 20_000
"""Weight of earlier blocks when alternatives are centred: rates drift."""
ROUNDING = 1e-6
"""Means over the rows of a request add up to whole numbers up to this."""


@dataclass(frozen=True, slots=True)
class RateCounts:
    """Bad observations of both arms in one epoch; ``factors`` are clusters / observations of each arm, and
    ``effective`` the observations that each is worth where affinity keys repeat. ``by_request`` counts are not
    comparable with counts by rows."""

    epoch: int
    champion: Share
    challenger: Share
    factors: tuple[float, float] = (1.0, 1.0)
    effective: tuple[float, float] = (math.inf, math.inf)
    by_request: bool = False


@dataclass(frozen=True, slots=True)
class _Block:
    """New counts of both arms; ``key_factors`` scale them to keys as independent observations."""

    champion: Share
    challenger: Share
    key_factors: tuple[float, float]


def judge_rate(task: LimitTask) -> LimitResult:
    """Judge error_rate or accuracy: the challenger's rate against the champion's or against a bound."""
    strata = [_count_losses(task.spec.metric, *arm) for arm in task.arms]
    return _judge_strata(task, strata, task.trace)


def judge_agreement(task: LimitTask) -> LimitResult:
    """Judge a shadow's agreement with the champion on the same rows: overall, and by slice of the given columns.

    The overall rate is tested at half of the level, the i-th slice to appear at 1 / (i (i + 1)) of the other half.
    Slices guard: each may fail, but only the overall rate must be shown to hold, as a rare slice might never be.
    """
    limit = Limit("min", 1 - task.limit.value) if task.limit.kind == "margin" else task.limit
    rate_task, columns = replace(task, limit=limit), task.spec.columns
    names = list(task.trace.get("slices", ()))
    for _, _, shadow in task.arms:
        names += sorted(name for name in shadow.agreement if name.partition("=")[0] in columns and name not in names)
    traces: dict[str, Json] = {}
    results = []
    for index, name in enumerate(["", *names]):
        strata = []
        for epoch, _, shadow in task.arms:
            moments, factor = shadow.agreeing(name)
            effective = shadow.keys.effective(moments.count)
            by_request = bool(shadow.request_agreement)
            strata.append(RateCounts(epoch, Share(), misses(moments), (1.0, factor), (math.inf, effective), by_request))
        result = _judge_strata(rate_task, strata, task.trace.get("of", {}).get(name, {}))
        traces[name] = result.trace
        log_share = 0.0 if not columns else -math.log(2) - (math.log(index * (index + 1)) if index else 0.0)
        results.append(replace(result, evidence_worse=max(result.evidence_worse + log_share, 0.0), slice=name))
    worst = max(results, key=lambda result: result.evidence_worse)
    overall = results[0]
    decisive = worst if worst.evidence_worse >= -math.log(task.worse_level) else overall
    return replace(
        decisive,
        evidence_worse=worst.evidence_worse,
        evidence_not_worse=overall.evidence_not_worse,
        trace={"slices": names, "of": traces},
    )


def misses(moments: Moments) -> Share:
    """The observations that do not count 1 (incorrect, or not agreeing)."""
    return Share(moments.count, moments.count - moments.total)


def discount_past(past: Share) -> Share:
    """Earlier blocks, weighted as at most `MAX_PAST_REQUESTS`."""
    return past.scaled(min(1.0, MAX_PAST_REQUESTS / past.count))


def _count_losses(metric: str, epoch: int, champion: VariantCounts, challenger: VariantCounts) -> RateCounts:
    arms = (champion, challenger)
    if metric == "error_rate":
        failed, others = (Share(arm.requests, arm.errors) for arm in arms)
        return RateCounts(epoch, failed, others)
    (first, one), (second, other) = (arm.graded(metric) for arm in arms)
    effective = champion.keys.effective(first.count), challenger.keys.effective(second.count)
    by_request = any(arm.request_quality for arm in arms)
    return RateCounts(epoch, misses(first), misses(second), (one, other), effective, by_request)


def _judge_strata(task: LimitTask, strata: Sequence[RateCounts], trace: Mapping[str, Json]) -> LimitResult:
    """Test one limit on a rate; ``trace`` belongs to exactly these counts."""
    compared = task.limit.kind == "margin"
    harm, proof = Wealth.from_json(trace.get("harm")), Wealth.from_json(trace.get("proof"))
    past = Share(*trace.get("past", (0.0, 0.0)))
    max_harm, seen = float(trace.get("best", 0.0)), dict(trace.get("seen", {}))
    for block in _new_blocks(strata, seen, compared):
        champion, challenger = block.champion, block.challenger
        worse, not_worse = _bets(task, champion, challenger, past)
        proof = proof.bet(not_worse, challenger.count)
        if block.key_factors != (1.0, 1.0):
            champion, challenger = (
                arm.scaled(factor) for arm, factor in zip((champion, challenger), block.key_factors, strict=True)
            )
            worse = _bets(task, champion, challenger, past)[0] if min(block.key_factors) > 0 else ()
        if worse:
            harm = harm.bet(worse, challenger.count)
            max_harm = max(max_harm, harm.log)
        past = discount_past(past + block.champion) if compared else past
    wealth = {"harm": harm.to_json(), "proof": proof.to_json()}
    next_trace = {"seen": seen, "past": [past.count, past.hits], **wealth, "best": max_harm}
    samples = (round(sum(part.champion.count for part in strata)), round(sum(part.challenger.count for part in strata)))
    return LimitResult(task.limit, max_harm, proof.log, _measure(task, strata), samples, next_trace)


def _bets(task: LimitTask, champion: Share, challenger: Share, past: Share) -> tuple[Sequence[float], Sequence[float]]:
    """Log e-values of a block against "not worse" and against "worse"."""
    if task.limit.kind == "margin":
        return sequential.rate_difference_bets(champion, challenger, task.limit.value, past)
    bound, upper = _loss_bound(task)
    above, below = sequential.rate_bets(challenger, bound)
    return (above, below) if upper else (below, above)


def _loss_bound(task: LimitTask) -> tuple[float, bool]:
    """The bound on the rate of bad observations, and whether it is an upper bound."""
    if task.spec.metric == "error_rate":
        return task.limit.value, task.limit.kind == "max"
    return 1 - task.limit.value, task.limit.kind == "min"


def _new_blocks(strata: Sequence[RateCounts], seen: dict[str, Json], compared: bool) -> Iterator[_Block]:
    """Counts since the last look, by epoch; updates ``seen``. An epoch waits while an arm has nothing new."""
    for stratum in strata:
        champion, challenger = stratum.champion, stratum.challenger
        counts = [champion.count, champion.hits, challenger.count, challenger.hits]
        effective = [min(stratum.effective[0], champion.count), min(stratum.effective[1], challenger.count)]
        now = counts if effective == [champion.count, challenger.count] else counts + effective
        epoch = seen_key(stratum.epoch, stratum.by_request, seen, now)
        if epoch is None:
            continue
        before = seen.get(epoch, (0.0, 0.0, 0.0, 0.0))
        news = champion - Share(*before[:2]), challenger - Share(*before[2:4])
        required = news if compared else news[1:]
        if all(part.count > 0 and -ROUNDING <= part.hits <= part.count + ROUNDING for part in required):
            seen[epoch] = now
            earlier = before[4:] or (before[0], before[2])
            factors = tuple(map(added_share, effective, earlier, (news[0].count, news[1].count)))
            first, second = (part.scaled(factor) for part, factor in zip(news, stratum.factors, strict=True))
            yield _Block(first, second, (factors[0] if compared else 1.0, factors[1]))


def seen_key(epoch: int, by_request: bool, seen: dict[str, Json], now: Json) -> str | None:
    """The key in ``seen`` of an epoch's counts; None where they wait, because their unit is another than before.

    Counts by requests that follow counts by rows (the writer was updated) start at ``now``, so that nothing counts
    twice; counts by rows never follow.

    >>> seen = {"1": [5, 1, 5, 0]}
    >>> seen_key(1, False, seen, []), seen_key(1, True, seen, [3, 1, 3, 0]), seen
    ('1', '1r', {'1r': [3, 1, 3, 0]})
    >>> seen_key(1, False, seen, [])
    """
    rows, requests = str(epoch), f"{epoch}r"
    if not by_request:
        return None if requests in seen else rows
    if seen.pop(rows, None) is not None:
        seen[requests] = now
    return requests


def added_share(effective: float, before: float, news: float) -> float:
    """The share of new observations that are effective, from the totals before and after.

    >>> added_share(150.0, 100.0, 200.0), added_share(90.0, 100.0, 200.0), added_share(0.0, 0.0, 0.0)
    (0.25, 0.0, 1.0)
    """
    return min(max((effective - before) / news, 0.0), 1.0) if news > 0 else 1.0


def _measure(task: LimitTask, strata: Sequence[RateCounts]) -> Measurement:
    """The difference of rates (or the rate), in the metric's own direction, with its confidence sequence."""
    compared = task.limit.kind == "margin"
    differences, count, total_variance = [], 0.0, 0.0
    for stratum in strata:
        first, second = stratum.champion.scaled(stratum.factors[0]), stratum.challenger.scaled(stratum.factors[1])
        if second.count and (first.count or not compared):
            variance = _variance(second) / second.count + (_variance(first) / first.count if compared else 0.0)
            differences.append(Stratum(second.rate - (first.rate if compared else 0.0), variance))
            count, total_variance = count + second.count, total_variance + _variance(second) * second.count
    sign, origin = (1.0, 0.0) if task.spec.metric == "error_rate" else (-1.0, 0.0 if compared else 1.0)
    deviation = math.sqrt(total_variance / count) if count else math.nan
    return measure_mean(task, differences, deviation, round(count), sign, origin)


def _variance(share: Share) -> float:
    """Variance of one observation, with two hits and two misses added (Agresti & Coull, 1998) for small counts."""
    rate = (share.hits + 2) / (share.count + 4)
    return rate * (1 - rate)
