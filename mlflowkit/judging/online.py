"""Judges a challenger against the concurrent champion, at any look. Numbers in, findings out; no clock, no I/O.

What is promised, over all looks and whatever they are followed by:

- a challenger that is within all its limits is said to have FAILED any of them with probability ``level`` at most: each
  question tests with an equal part of it (and each limit of a question with an equal part of that);
- a challenger that is beyond some limit is said to have PASSED all of them with probability ``level`` at most: each
  limit is tested with the whole of it, as every one must pass.

Rates (error_rate, accuracy, agreement) are judged by e-processes that are exact, latency quantiles by ones that are
exact within an epoch up to the width of a bin, other means asymptotically; see `mlflowkit.judging.sequential`.

A question without any limit asks for a margin of 0: FAILED means shown to be worse than the champion, PASSED shown to
be better. That is the question of an A/B test.

FAILED stays, once it is said. PASSED is what the evidence says now, and is taken back where later evidence says less.

Requests are taken to be independent. Under sticky routing one user's requests share their fate, and a few heavy users
can make two equal arms look different; where users send many requests each, ask for a margin that is larger than what
a few of them can move. Rows of one request are not taken to be independent: quality, agreement and predictions count
as many observations as there were requests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

from mlflowkit.judging import sequential
from mlflowkit.judging.evidence import Evidence, Moments, VariantCounts
from mlflowkit.judging.sequential import Share, Stratum, Wealth
from mlflowkit.values import Json, Measurement, Outcome, Verdict


@dataclass(frozen=True, slots=True)
class Question:
    """One metric of a rollout as the judges take it. ``name`` tells it from the others.

    ``margin``, ``ratio``, ``min`` and ``max`` mean what they mean in the recipe; ``measured`` is the value of a metric
    that is measured elsewhere (a Prometheus query), newest last; NaN where there was none.
    """

    name: str
    metric: str
    margin: float | None = None
    ratio: float | None = None
    min: float | None = None
    max: float | None = None
    columns: tuple[str, ...] = ()
    role: Literal["objective", "guardrail"] = "objective"
    measured: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """What one metric said at one look.

    verdict  FAILED: shown to be worse than allowed. PASSED: shown not to be. INCONCLUSIVE: neither yet. Its measurement
             is the difference (challenger minus champion; the ratio where that is asked; the value itself for a bound)
             with its confidence sequence, of the limit that decides; None while there is none
    harm     evidence that it is worse than allowed, as a share of what the level asks for: FAILED from 1 on
    proof    evidence that it is not, on the same scale: PASSED from 1 on
    samples  observations of the champion and of the challenger
    """

    name: str
    verdict: Verdict
    harm: float
    proof: float
    samples: tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Limit:
    """One limit of a question. ``kind`` "margin" or "ratio" compares with the champion, "min" or "max" with a value."""

    kind: Literal["margin", "ratio", "min", "max"]
    value: float


@dataclass(frozen=True, slots=True)
class _Reading:
    """What one limit said: log evidence of harm (the largest so far) and of its absence, and the measurement."""

    limit: _Limit
    harm: float
    proof: float
    measurement: Measurement
    samples: tuple[int, int]
    trace: Mapping[str, Json]
    slice: str = ""


@dataclass(frozen=True, slots=True)
class _Task:
    """A limit to judge: what was counted by epoch (champion, challenger), what was remembered, and the levels."""

    question: Question
    limit: _Limit
    arms: Sequence[tuple[int, VariantCounts, VariantCounts]]
    trace: Mapping[str, Json]
    harm_level: float
    proof_level: float
    histograms: dict[int, sequential.Array]
    """Cumulative histograms that another question has made at this look, by the identity of the mapping."""

    def below(self, histogram: Mapping[int, int]) -> sequential.Array:
        """`sequential.counts_below`, made once a look."""
        if id(histogram) not in self.histograms:
            self.histograms[id(histogram)] = sequential.counts_below(histogram)
        return self.histograms[id(histogram)]

    @property
    def confidence(self) -> float:
        """Of intervals: made at 1 - ``harm_level``, and cut off where a decision, itself right or wrong, cuts them."""
        return 1 - self.harm_level - self.proof_level


def judge(
    questions: Sequence[Question],
    evidence: Evidence,
    *,
    champion: str,
    challenger: str,
    epochs: Sequence[int],
    level: float,
    traces: Mapping[str, Json],
) -> tuple[tuple[Finding, ...], Mapping[str, Json]]:
    """Findings in the order of the questions, and the traces to hand in at the next look.

    ``epochs`` are the routing tables of this rollout under which both variants were measured, oldest first; what was
    counted under different ones is never pooled as if it were one sample. ``level`` bounds the chance that any
    question says FAILED of a challenger that is within its limits, over all looks; it is shared out among them.
    ``traces`` is JSON that belongs to the judges: what a test remembers between looks, by question; {} at first.
    """
    epochs_of = [evidence.epochs.get(epoch, {}) for epoch in epochs]
    nothing = VariantCounts()
    arms = [
        (epoch, variants.get(champion, nothing), variants.get(challenger, nothing))
        for epoch, variants in zip(epochs, epochs_of, strict=True)
    ]
    tested = sum(question.metric != "prometheus" for question in questions)
    findings, kept = [], {}
    made: dict[int, sequential.Array] = {}
    for question in questions:
        if question.metric == "prometheus":
            findings.append(_measured_elsewhere(question))
            continue
        limits = _limits(question)
        before = traces.get(question.name, {})
        share = level / tested / len(limits)
        tasks = [_Task(question, limit, arms, before.get(limit.kind, {}), share, level, made) for limit in limits]
        readings = [_FAMILIES[question.metric](task) for task in tasks]
        findings.append(_finding(question, tasks, readings))
        kept[question.name] = {task.limit.kind: one.trace for task, one in zip(tasks, readings, strict=True)}
    return tuple(findings), kept


def _limits(question: Question) -> tuple[_Limit, ...]:
    given: list[_Limit] = []
    kinds: tuple[Literal["margin", "ratio", "min", "max"], ...] = ("margin", "ratio", "min", "max")
    for kind in kinds:
        value = getattr(question, kind)
        if value is not None:
            given.append(_Limit(kind, float(value)))
    return tuple(given) or (_Limit("margin", 0.0),)


# ------------------------------------------------------------------------------------------------------------- rates


@dataclass(frozen=True, slots=True)
class _Stratum:
    """Of how many observations how many were bad, in each arm under one table; and clusters / observations of each."""

    epoch: int
    first: Share
    second: Share
    factors: tuple[float, float] = (1.0, 1.0)


def _losses(metric: str, epoch: int, first: VariantCounts, second: VariantCounts) -> _Stratum:
    if metric == "error_rate":
        return _Stratum(epoch, Share(first.requests, first.errors), Share(second.requests, second.errors))
    one, two = first.quality.get(metric, Moments()), second.quality.get(metric, Moments())
    return _Stratum(epoch, _missed(one), _missed(two), (_clusters(first), _clusters(second)))


def _missed(moments: Moments) -> Share:
    return Share(moments.count, moments.count - moments.total)


def _clusters(counts: VariantCounts) -> float:
    """Answered requests a row: rows of one request are not independent observations."""
    requests = counts.requests - counts.errors
    return requests / counts.rows if counts.rows > requests > 0 else 1.0


def _mirrored(counts: VariantCounts) -> float:
    """Mirrored requests that the shadow answered, a compared row."""
    requests = counts.mirrored - counts.dropped - counts.errors
    rows = counts.agreement.get("", Moments()).count
    return requests / rows if rows > requests > 0 else 1.0


def _rate(task: _Task) -> _Reading:
    """error_rate, accuracy: the challenger's rate against the champion's or against a bound."""
    metric = task.question.metric
    strata = [_losses(metric, *arms) for arms in task.arms]
    return _rate_reading(task, strata, task.trace)


def _rate_reading(task: _Task, strata: Sequence[_Stratum], trace: Mapping[str, Json]) -> _Reading:
    compared = task.limit.kind == "margin"
    harm, proof = _wealth(trace, "harm"), _wealth(trace, "proof")
    past = Share(*trace.get("past", (0.0, 0.0)))
    best, seen = float(trace.get("best", 0.0)), dict(trace.get("seen", {}))
    for first, second in _blocks(strata, seen, compared):
        if compared:
            worse, better = sequential.rate_difference_bets(first, second, task.limit.value, past)
            past = _remembered(past + first)
        else:
            bound, above = _loss_bound(task)
            worse, better = sequential.rate_bets(second, bound)
            worse, better = (worse, better) if above else (better, worse)
        harm, proof = harm.bet(worse, second.count), proof.bet(better, second.count)
        best = max(best, harm.log)
    after = {
        "seen": seen,
        "past": [past.count, past.hits],
        "harm": [harm.spent, *harm.logs],
        "proof": [proof.spent, *proof.logs],
        "best": best,
    }
    measurement = _rate_measurement(task, strata)
    samples = (round(sum(one.first.count for one in strata)), round(sum(one.second.count for one in strata)))
    return _Reading(task.limit, best, proof.log, measurement, samples, after)


def _wealth(trace: Mapping[str, Json], name: str) -> Wealth:
    spent, *logs = trace.get(name, (0.0,))
    return Wealth(tuple(logs), spent)


def _remembered(past: Share) -> Share:
    """Rates drift: no more of the past counts than as many requests."""
    return past.scaled(min(1.0, 20_000 / past.count))


def _loss_bound(task: _Task) -> tuple[float, bool]:
    """The bound on the rate of bad observations, and whether being above it is what is not allowed."""
    if task.question.metric == "error_rate":
        return task.limit.value, task.limit.kind == "max"
    return 1 - task.limit.value, task.limit.kind == "min"


def _blocks(strata: Sequence[_Stratum], seen: dict[str, Json], compared: bool) -> Iterator[tuple[Share, Share]]:
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


def _rate_measurement(task: _Task, strata: Sequence[_Stratum]) -> Measurement:
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
    return _measurement(task, found, math.sqrt(spread / count) if count else math.nan, round(count), sign, origin)


def _spread(share: Share) -> float:
    """Variance of one observation. Two hits and two misses are added (Agresti & Coull, 1998): few seen are too few."""
    rate = (share.hits + 2) / (share.count + 4)
    return rate * (1 - rate)


def _measurement(
    task: _Task, strata: Sequence[Stratum], deviation: float, samples: int, sign: float = 1.0, origin: float = 0.0
) -> Measurement:
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


def _agreement(task: _Task) -> _Reading:
    """A shadow's agreement with the champion on the same rows: of all rows, and of each slice of the columns asked for.

    The whole is tested with half of the level, the i-th slice to appear with 1 / (i (i + 1)) of the other half. Slices
    guard: each may fail, but only the whole must be shown to hold, as a rare slice might never be.
    """
    limit = _Limit("min", 1 - task.limit.value) if task.limit.kind == "margin" else task.limit
    inner, columns = replace(task, limit=limit), task.question.columns
    names = list(task.trace.get("slices", ()))
    for _, _, second in task.arms:
        names += sorted(name for name in second.agreement if name.partition("=")[0] in columns and name not in names)
    traces: dict[str, Json] = {}
    found = []
    for index, name in enumerate(["", *names]):
        strata = [
            _Stratum(epoch, Share(), _missed(second.agreement.get(name, Moments())), (1.0, _mirrored(second)))
            for epoch, _, second in task.arms
        ]
        reading = _rate_reading(inner, strata, task.trace.get("of", {}).get(name, {}))
        traces[name] = reading.trace
        part = 0.0 if not columns else -math.log(2) - (math.log(index * (index + 1)) if index else 0.0)
        found.append(replace(reading, harm=max(reading.harm + part, 0.0), slice=name))
    worst = max(found, key=lambda reading: reading.harm)
    shown = worst if worst.harm >= -math.log(task.harm_level) else found[0]
    return replace(shown, harm=worst.harm, proof=found[0].proof, trace={"slices": names, "of": traces})


# ---------------------------------------------------------------------------------------------------- means and others


def _mean(task: _Task) -> _Reading:
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
    measurement = _measurement(task, strata, deviation, total[1])
    return _Reading(task.limit, best, better, measurement, (total[0], total[1]), {"deviation": deviation, "best": best})


MINIMUM = 100
"""Observations of each arm before a mean is judged: its test rests on the central limit theorem."""


def _variance_of_mean(moments: Moments, counts: VariantCounts, other: Moments) -> float:
    """Variance of an arm's mean. The smaller arm is given the larger one's variance where that is more: where the
    distribution has a long tail, a small sample that misses it has too small a mean and too small a variance at once.
    """
    variance = _variance(moments)
    if moments.count < other.count:
        variance = max(variance, _variance(other))
    return variance / (moments.count * _clusters(counts))


def _variance(moments: Moments) -> float:
    return max(moments.squares - moments.total * moments.mean, 0.0) / max(moments.count - 1, 1)


# ----------------------------------------------------------------------------------------------------------- latencies

_HEDGE = 0.3
"""Of each epoch's stake this much is not bet, so that an epoch that says little costs little."""


def _latency(task: _Task) -> _Reading:
    """A latency quantile: compared epoch by epoch, the evidence of epochs added; or held against a bound."""
    return _latency_bound(task) if task.limit.kind in ("min", "max") else _latency_difference(task)


def _quantile(metric: str) -> float:
    return int(metric.removeprefix("latency_p").removesuffix("_ms")) / 100


def _latency_difference(task: _Task) -> _Reading:
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
    return _Reading(task.limit, best, proof, measurement, (totals[0], totals[1]), {"epochs": epochs, "best": best})


def _hedged(log: float) -> float:
    return math.log(_HEDGE + (1 - _HEDGE) * math.exp(log)) if log < 500 else log + math.log(1 - _HEDGE)


def _latency_interval(
    task: _Task, champion: sequential.Array, challenger: sequential.Array, quantile: float
) -> tuple[float, float, float]:
    """The difference in ms (or the ratio) of two quantiles, between the ends of the arms' own confidence sequences."""
    level = task.harm_level / 4
    first, second = (sequential.quantile_bounds(arm, quantile, level) for arm in (champion, challenger))
    if task.limit.kind == "ratio":
        return second[0] / first[0], second[1] / first[2], second[2] / first[1]
    return 1000 * (second[0] - first[0]), 1000 * (second[1] - first[2]), 1000 * (second[2] - first[1])


def _latency_bound(task: _Task) -> _Reading:
    """How many are slower than the bound, against how many may be."""
    quantile, bound = _quantile(task.question.metric), task.limit.value / 1000
    seen = dict(task.trace.get("seen", {}))
    harm, proof = _wealth(task.trace, "harm"), _wealth(task.trace, "proof")
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
    after = {"seen": seen, "harm": [harm.spent, *harm.logs], "proof": [proof.spent, *proof.logs], "best": best}
    samples = (sum(sum(first.latency.values()) for _, first, _ in task.arms), total)
    return _Reading(task.limit, best, proof.log, measurement, samples, after)


_KINDS = ("label", "score", "decile")
"""Kinds of predictions; scores and deciles have an order."""


def _drift(task: _Task) -> _Reading:
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
        return _Reading(task.limit, 0.0, 0.0, measurement, (0, 0), task.trace)
    parts = {kind: reading.trace for kind, reading in zip(present, readings, strict=True)}
    worst = max(readings, key=lambda reading: reading.harm)
    harm = max(worst.harm - math.log(len(readings)), 0.0)
    least = min(readings, key=lambda reading: reading.proof)
    shown = worst if harm >= -math.log(task.harm_level) else least
    return replace(shown, harm=harm, proof=least.proof, trace={**task.trace, **parts})


def _drift_of(task: _Task, kind: str, trace: Mapping[str, Json]) -> _Reading:
    prefix, ordered, limit = f"{kind}:", kind != "label", task.limit.value
    harm, best, seen = _wealth(trace, "harm"), float(trace.get("best", 0.0)), dict(trace.get("seen", {}))
    sums: tuple[dict[str, float], dict[str, float]] = ({}, {})
    for earlier in seen.values():
        _add(sums, earlier)
    now: list[list[dict[str, float]]] = []
    for epoch, first, second in task.arms:
        counts = [_predicted(arm, prefix) for arm in (first, second)]
        now.append(
            [
                {name: count * _clusters(arm) for name, count in found.items()}
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
                _share(new, names).scaled(_clusters(arm)) for new, arm in zip(news, (first, second), strict=True)
            )
            worse, _ = sequential.rate_difference_bets(one, two, limit, _remembered(_share(sums[0], names)))
            harm = harm.bet(worse, two.count)
            best = max(best, harm.log)
        seen[str(epoch)] = counts
        _add(sums, news)
    proof, measurement, samples = _drift_shown(task, now, ordered)
    after = {"seen": seen, "harm": [harm.spent, *harm.logs], "best": best}
    return _Reading(task.limit, best, proof, measurement, samples, after)


def _drift_shown(
    task: _Task, epochs: Sequence[Sequence[Mapping[str, float]]], ordered: bool
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


_FAMILIES: Mapping[str, Callable[[_Task], _Reading]] = {
    "error_rate": _rate,
    "accuracy": _rate,
    "agreement": _agreement,
    "log_loss": _mean,
    "absolute_error": _mean,
    "squared_error": _mean,
    "prediction_drift": _drift,
    "latency_p50_ms": _latency,
    "latency_p90_ms": _latency,
    "latency_p95_ms": _latency,
    "latency_p99_ms": _latency,
}


# ------------------------------------------------------------------------------------------------------------- verdicts

IN_A_ROW = 3
"""Measurements in a row that decide on a metric that is measured elsewhere."""


def _measured_elsewhere(question: Question) -> Finding:
    """A Prometheus query: no statistics, no level. `IN_A_ROW` measurements beyond a bound fail, as many within pass."""
    last = question.measured[-IN_A_ROW:]
    low = -math.inf if question.min is None else question.min
    high = math.inf if question.max is None else question.max
    beyond = _run(question.measured, lambda value: not low <= value <= high)
    within = _run(question.measured, lambda value: low <= value <= high)
    outcome = Outcome.FAILED if beyond >= IN_A_ROW else Outcome.PASSED if within >= IN_A_ROW else Outcome.INCONCLUSIVE
    limits = " and ".join(f"{name} {_short(value)}" for name, value in _bounds(question))
    if not last or math.isnan(last[-1]):
        text = f"{question.name}: no measurement"
    elif beyond:
        text = f"{question.name} {_short(last[-1])} beyond {limits}, {beyond} in a row (failed from {IN_A_ROW} on)"
    else:
        text = f"{question.name} {_short(last[-1])} within {limits}, {within} in a row (passed from {IN_A_ROW} on)"
    verdict = Verdict(
        gate=question.name,
        outcome=outcome,
        message=f"{text}: {outcome}",
        metric=question.metric,
        threshold=_bounds(question)[0][1] if _bounds(question) else None,
        direction=_bounds(question)[0][0] if _bounds(question) else "max",
    )
    return Finding(question.name, verdict, beyond / IN_A_ROW, within / IN_A_ROW, (0, len(question.measured)))


def _bounds(question: Question) -> list[tuple[Literal["min", "max"], float]]:
    found: list[tuple[Literal["min", "max"], float]] = []
    if question.min is not None:
        found.append(("min", question.min))
    if question.max is not None:
        found.append(("max", question.max))
    return found


def _run(values: Sequence[float], holds: Callable[[float], bool]) -> int:
    """How many of the newest values in a row are numbers for which it holds."""
    length = 0
    for value in reversed(values):
        if math.isnan(value) or not holds(value):
            break
        length += 1
    return length


_MORE_IS_BETTER = ("accuracy", "agreement")


def _finding(question: Question, tasks: Sequence[_Task], readings: Sequence[_Reading]) -> Finding:
    """The question fails where one limit does, and passes where all do."""
    harms = [max(one.harm, 0.0) / math.log(1 / task.harm_level) for task, one in zip(tasks, readings, strict=True)]
    proofs = [max(one.proof, 0.0) / math.log(1 / task.proof_level) for task, one in zip(tasks, readings, strict=True)]
    harm, proof = max(harms), min(proofs)
    outcome = Outcome.FAILED if harm >= 1 else Outcome.PASSED if proof >= 1 else Outcome.INCONCLUSIVE
    reading = readings[harms.index(harm) if harm >= 1 else proofs.index(proof)]
    direction, threshold = _threshold(question, reading.limit)
    measurement = _cut(reading.measurement, outcome, direction, threshold)
    verdict = Verdict(
        gate=question.name,
        outcome=outcome,
        message=_message(replace(reading, measurement=measurement), outcome, direction),
        metric=question.metric,
        measurement=None if math.isnan(measurement.value) else measurement,
        threshold=threshold,
        direction=direction,
        slice=reading.slice,
        change=reading.limit.kind in ("margin", "ratio"),
    )
    return Finding(question.name, verdict, harm, proof, reading.samples)


def _cut(measurement: Measurement, outcome: Outcome, direction: str, threshold: float) -> Measurement:
    """The interval without what the decision excludes: the e-process that decided has seen more than the interval.

    Not where a failure is past, and the measurement is within its limit again.
    """
    if math.isnan(measurement.value) or outcome is Outcome.INCONCLUSIVE:
        return measurement
    above = (outcome is Outcome.FAILED) == (direction == "max")
    if (measurement.value < threshold) if above else (measurement.value > threshold):
        return measurement
    if above:
        low = max(measurement.low, threshold)
        return replace(measurement, low=low, high=max(measurement.high, low))
    high = min(measurement.high, threshold)
    return replace(measurement, low=min(measurement.low, high), high=high)


def _threshold(question: Question, limit: _Limit) -> tuple[Literal["min", "max"], float]:
    """What the measurement is held against, in the metric's own direction."""
    if limit.kind in ("min", "max"):
        return ("min" if limit.kind == "min" else "max"), limit.value
    if question.metric in _MORE_IS_BETTER:
        return "min", -limit.value
    return "max", limit.value


def _message(reading: _Reading, outcome: Outcome, direction: str) -> str:
    """The numbers in words, as the gates put them."""
    measurement, limit = reading.measurement, reading.limit
    first, second = reading.samples
    where = f" where {reading.slice}" if reading.slice else ""
    things = "requests" if measurement.name == "error_rate" or measurement.name.startswith("latency_") else "rows"
    counts = f"{second:,}/{first:,} {things}" if limit.kind in ("margin", "ratio") else f"{second:,} {things}"
    if math.isnan(measurement.value):
        return f"{measurement.name}{where}: too little seen yet, {counts}: {outcome}"
    unit = f" {measurement.unit}" if measurement.unit else ""
    plus = "+" if limit.kind == "margin" else ""
    low, high = told_ends(measurement.value, measurement.low, measurement.high, limit.value, measurement.unit)
    shown = f"{measurement.value + 0.0:{plus}.3g}{unit} {_interval(low, high)}"
    worse, better = ("<", ">=") if direction == "min" else (">", "<=")
    sign = {Outcome.FAILED: worse, Outcome.PASSED: better}.get(outcome, "undecided against")
    minus = "-" if direction == "min" and limit.kind == "margin" and limit.value else ""
    return (
        f"{measurement.name} {shown}{where} {sign} {limit.kind} {minus}{_short(limit.value)} after {counts}: {outcome}"
    )


BEYOND = 1000.0
"""An end of an interval that is so many times larger than what it is about says that little was seen, and no more."""


def told_ends(
    value: float, low: float | None, high: float | None, threshold: float | None, unit: str = ""
) -> tuple[float | None, float | None]:
    """The ends of an interval that are worth telling a person; None for one that is infinite or absurdly far away.

    A latency quantile of a few requests is bounded by the ends of the histogram only.

    >>> told_ends(0.48, 0.09, 2.18e6, 2.0, "x")
    (0.09, None)
    """
    far = BEYOND * max(1.0, abs(value), abs(threshold or 0.0))
    near = 1 / BEYOND if unit == "x" else -far
    return (
        low if low is not None and low >= near else None,
        high if high is not None and high <= far else None,
    )


def _interval(low: float | None, high: float | None) -> str:
    """An interval in words; an end that is None is left out."""
    if low is not None and high is not None:
        return f"[{_short(low)}, {_short(high)}]"
    if low is not None:
        return f"(at least {_short(low)})"
    return "(no bounds yet)" if high is None else f"(at most {_short(high)})"


def _short(value: float) -> str:
    """A number in three digits; adding 0 makes minus zero zero."""
    return f"{value + 0.0:.3g}"
