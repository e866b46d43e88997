"""What makes the sequential tests honest: expectations of at most 1, by enumeration; and error rates by simulation.

Simulated rollouts have their truth exactly on the limit, so FAILED and PASSED may each occur in at most a share `LEVEL`
of them. Chance that a test fails when all is well: 0 on unchanged code, as all seeds are fixed; if the random numbers
change, at most 1e-6 a test of an error rate (`most`), while tests of power would have to be looked at again.
`python -m benchmarks.sequential` does the same with 1,000 rollouts.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from benchmarks.sequential import (
    AS_GOOD,
    LEVEL,
    ON_THE_LIMIT,
    PLANTED,
    Case,
    Draw,
    errors,
    labels,
    latencies,
    log_losses,
    quality,
    right,
    rollout,
    scores,
)
from mlflowkit.judging.online import quantiles, sequential
from mlflowkit.judging.online.evidence import Evidence, VariantCounts
from mlflowkit.judging.online.judge import MetricSpec, judge
from mlflowkit.judging.online.sequential import Share, Wealth
from mlflowkit.values import Outcome

CHANCE = 1e-6
"""Bound on the chance that a test of an error rate fails although the rate is LEVEL."""


def most(runs: int, checks: int = 1) -> int:
    """The number of errors that ``runs`` with an error rate of LEVEL exceed with probability CHANCE / ``checks``."""
    return int(binom.ppf(1 - CHANCE / checks, runs, LEVEL))


ROLLOUTS = 80
SIMULATED = [replace(case, looks=min(case.looks, 25)) for case in ON_THE_LIMIT if case.looks <= 1000]

rates = st.floats(0.001, 0.999)
margins = st.sampled_from([0.0, 0.005, 0.05, 0.3])


def likelihood(count: int, hits: int, rate: float) -> float:
    return float(binom.pmf(hits, count, rate))


@settings(max_examples=60, deadline=None)
@given(rates, rates, margins, st.integers(1, 7), st.integers(1, 7), st.integers(0, 30))
def test_expectation_of_two_arms_is_at_most_one(
    first: float, second: float, margin: float, champion: int, challenger: int, past: int
) -> None:
    """Over every outcome of a block, at any pair of rates within either hypothesis, inside of it or on its edge."""
    within = min(second, first + margin), max(second, min(first + margin, 1.0))
    pasts = Share(30, past)
    for side, rate in enumerate(within):
        if side and rate < first + margin:
            continue
        total: list[float] = []
        for one, two in itertools.product(range(champion + 1), range(challenger + 1)):
            bets = sequential.rate_difference_bets(Share(champion, one), Share(challenger, two), margin, pasts)[side]
            weight = likelihood(champion, one, first) * likelihood(challenger, two, rate)
            total = total or [0.0] * len(bets)
            total = [part + weight * math.exp(bet) for part, bet in zip(total, bets, strict=True)]
        assert max(total) <= 1 + 1e-9


@settings(max_examples=100, deadline=None)
@given(rates, st.floats(0.001, 1), st.integers(1, 30))
def test_expectation_of_one_arm_is_at_most_one(bound: float, part: float, count: int) -> None:
    for side, rate in enumerate((bound * part, bound + (1 - bound) * part)):
        total = np.zeros(7)
        for hits in range(count + 1):
            bets = sequential.rate_bets(Share(count, hits), bound)[side]
            total += likelihood(count, hits, rate) * np.exp(bets)
        assert total.max() <= 1 + 1e-9


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([0.5, 0.9, 0.95, 0.99]), st.floats(0.001, 1), st.integers(1, 60))
def test_expectation_of_a_quantile_is_at_most_one(quantile: float, part: float, count: int) -> None:
    below = np.arange(count + 1.0)
    for too_many, rate in ((True, quantile * part), (False, quantile + (1 - quantile) * part)):
        logs = quantiles.tail_logs(below, count, quantile, too_many)
        assert float(np.sum(binom.pmf(below, count, rate) * np.exp(logs))) <= 1 + 1e-9


@pytest.mark.simulation
@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=3), rates)
def test_wealth_keeps_its_expectation(blocks: list[int], bound: float) -> None:
    """Blocks of any sizes, some of the stake waiting: the mixture over starts spends what it has once."""
    total = 0.0
    for outcome in itertools.product(*(range(count + 1) for count in blocks)):
        wealth, weight = Wealth(), 1.0
        for count, hits in zip(blocks, outcome, strict=True):
            wealth = wealth.bet(sequential.rate_bets(Share(count, hits), bound)[0], count)
            weight *= likelihood(count, hits, bound)
        total += weight * math.exp(wealth.log)
    assert total == pytest.approx(1.0, abs=1e-9)


@settings(max_examples=200, deadline=None)
@given(rates, rates, margins, st.floats(1, 1e6), st.floats(1, 1e6))
def test_the_nearest_pair_is_nearest(
    first: float, second: float, margin: float, champion: float, challenger: float
) -> None:
    first = min(first, 0.999 - margin)
    nearest = float(sequential.nearest_rate(champion, challenger, margin, np.array([first]), np.array([second]))[0])

    def divergence(rate: float) -> float:
        parts = ((champion, first, rate), (challenger, second, rate + margin))
        return sum(count * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))) for count, p, q in parts)

    assert 0 < nearest < 1 - margin
    for other in (nearest * 0.999, nearest * 1.001):
        if 0 < other < 1 - margin:
            assert divergence(nearest) <= divergence(other) * (1 + 1e-9)


@pytest.mark.simulation
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 0.95, 0.99]), st.sampled_from([1.0, 1.2, 3.0]))
def test_the_least_product_is_found_in_its_window(seed: int, quantile: float, ratio: float) -> None:
    """The smallest product is over all bins, though most are only bounded."""
    random = np.random.default_rng(seed)
    arms = []
    for scale in (1.0, random.choice([1.0, 1.5, 4.0])):
        count = int(10 ** random.uniform(0, 5)) + 1
        seconds = scale * random.lognormal(-5, random.uniform(0.05, 1.5), count)
        bins, counts = np.unique((np.log(seconds * 1e6) / math.log(1.02)).astype(int), return_counts=True)
        arms.append(quantiles.counts_below(dict(zip(bins.tolist(), counts.tolist(), strict=True))))
    champion, challenger = arms
    total, others = float(champion[-1]), float(challenger[-1])
    shift = math.log(ratio) / math.log(1.02)
    logs: list[list[float]] = [[], []]
    for index in range(quantiles.LATENCY_BINS):
        many = quantiles.tail_log(float(champion[index]), total, quantile, True)
        few = quantiles.tail_log(float(champion[index + 1]), total, quantile, False)
        away = float(np.logaddexp(np.logaddexp(many, few), 0.0)) - math.log(3)
        beyond = min(math.ceil(index + 1 + shift - 1e-9), quantiles.LATENCY_BINS)
        within = min(math.floor(index + shift + 1e-9), quantiles.LATENCY_BINS)
        logs[0].append(away + quantiles.tail_log(float(challenger[beyond]), others, quantile, False))
        logs[1].append(away + quantiles.tail_log(float(challenger[within]), others, quantile, True))
    evidence = quantiles.quantile_evidence(champion, challenger, quantile, ratio)
    assert evidence == pytest.approx([min(part) for part in logs], rel=1e-9, abs=1e-9)


@pytest.mark.simulation
@pytest.mark.parametrize("quantile", [0.5, 0.99])
def test_a_quantile_is_within_its_sequence(quantile: float) -> None:
    """At 50 looks of 400 streams, the true quantile is outside at any of them in at most 5 % of the streams."""
    random = np.random.default_rng(5)
    truth = float(np.exp(-5.0 + 0.5 * {0.5: 0.0, 0.99: 2.3263478740408408}[quantile]))
    missed = 0
    for _ in range(400):
        places = (np.log(1e6 * random.lognormal(-5.0, 0.5, (50, 40))) / math.log(1.02)).astype(int)
        histogram: dict[int, int] = {}
        for block in places:
            for place in block.tolist():
                histogram[place] = histogram.get(place, 0) + 1
            _, low, high = quantiles.quantile_bounds(quantiles.counts_below(histogram), quantile, LEVEL / 2)
            if not low <= truth <= high:
                missed += 1
                break
    assert missed <= most(400)


COVERED: dict[str, tuple[MetricSpec, Draw, float]] = {
    "error_rate": (MetricSpec("q", "error_rate", margin=0.5), errors(0.01, 0.03), 0.02),
    "rare errors": (MetricSpec("q", "error_rate", margin=0.5), errors(0.001, 0.01), 0.009),
    "accuracy": (MetricSpec("q", "accuracy", margin=0.5), right(0.9, 0.85), -0.05),
    "log_loss": (MetricSpec("q", "log_loss", margin=5.0), quality("log_loss", log_losses), 0.0),
    "latency": (MetricSpec("q", "latency_p99_ms", ratio=50.0), latencies(1.5), 1.5),
    "labels": (MetricSpec("q", "prediction_drift", max=0.9), labels(0.2), 0.2),
    "scores": (MetricSpec("q", "prediction_drift", max=0.9), scores(0.2), 0.2),
}


@pytest.mark.simulation
@pytest.mark.parametrize("name", COVERED)
def test_the_truth_is_in_the_interval_at_every_look(name: str) -> None:
    """Of 100 rollouts, looked at 30 times, with 5 % of the traffic."""
    spec, draw, truth = COVERED[name]
    missed = 0
    for seed in range(100):
        random = np.random.default_rng(seed)
        arms, traces, inside = [VariantCounts(), VariantCounts()], {}, True
        for _ in range(30):
            challengers = int(random.binomial(400, 0.05))
            for arm, count in enumerate((400 - challengers, challengers)):
                arms[arm] = arms[arm] + draw(random, count, arm, 0.0) if count else arms[arm]
            evidence = Evidence("e", {1: dict(zip(("champion", "challenger"), arms, strict=True))})
            (result,), traces = judge(
                [spec],
                evidence,
                champion="champion",
                challenger="challenger",
                epochs=[1],
                level=LEVEL,
                traces=traces,
            )
            measurement = result.verdict.measurement
            inside = inside and (measurement is None or measurement.low <= truth <= measurement.high)
        missed += not inside
    assert missed <= most(100)


@pytest.mark.simulation
@pytest.mark.parametrize("case", SIMULATED, ids=[case.name for case in SIMULATED])
def test_the_level_is_kept_on_the_limit(case: Case) -> None:
    runs = ROLLOUTS // 2 if len(case.questions) > 1 else ROLLOUTS
    outcomes = [decision.outcome for seed in range(runs) for decision in rollout(case, seed)]
    assert outcomes.count(Outcome.FAILED) <= most(ROLLOUTS, checks=2)
    assert outcomes.count(Outcome.PASSED) <= most(ROLLOUTS, checks=2)


@pytest.mark.parametrize("case", PLANTED, ids=[case.name for case in PLANTED])
def test_a_planted_regression_is_found(case: Case) -> None:
    outcomes = [decision for seed in range(6) for decision in rollout(replace(case, looks=60), seed, (Outcome.FAILED,))]
    assert sum(decision.outcome is Outcome.FAILED for decision in outcomes) >= 5


@pytest.mark.parametrize("case", AS_GOOD, ids=[case.name for case in AS_GOOD])
def test_a_challenger_as_good_is_shown_to_be(case: Case) -> None:
    outcomes = [decision for seed in range(6) for decision in rollout(replace(case, looks=60), seed, (Outcome.PASSED,))]
    assert sum(decision.outcome is Outcome.PASSED for decision in outcomes) >= 5
