"""The error rates that intervals and gates promise, measured by simulation with a known truth.

Each bound of an interval at 95 % may be wrong in 2.5 % of samples. Chance that a test fails when all is well: 0 on
unchanged code, as all seeds are fixed; at most 1e-6 a test if the random numbers change (`limit`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binom

from mlflowkit.judging import gates, metrics, stats
from mlflowkit.judging.gates import GateSpec
from mlflowkit.judging.metrics import LabelledPredictions, estimate
from mlflowkit.judging.paired_metrics import difference
from mlflowkit.judging.stats import Estimate, UndefinedMetricError
from mlflowkit.values import Outcome

pytestmark = pytest.mark.simulation

CHANCE = 1e-6
"""Bound on the chance that a test fails although the error rate is as promised."""


def limit(runs: int, rate: float = 0.025, checks: int = 1) -> float:
    """The share of ``runs`` that an error of probability ``rate`` exceeds with probability CHANCE / ``checks``."""
    return float(binom.ppf(1 - CHANCE / checks, runs, rate)) / runs


RUNS = 850
MOST = limit(RUNS, checks=2)
Draw = Callable[[int, np.random.Generator], tuple[LabelledPredictions, LabelledPredictions]]


def classifier(share: float, strength: float, threshold: float) -> Draw:
    """Two equally good models whose scores are correlated, on a binary outcome; probabilities are calibrated."""

    def draw(rows: int, rng: np.random.Generator) -> tuple[LabelledPredictions, LabelledPredictions]:
        actual = (rng.random(rows) < share).astype(np.int64)
        common = rng.normal(size=rows)
        models = []
        for _ in range(2):
            signal = 0.8 * common + 0.6 * rng.normal(size=rows) + strength * actual
            positive = 1 / (1 + np.exp(-(np.log(share / (1 - share)) + strength * signal - strength**2 / 2)))
            scores = np.stack([1 - positive, positive], axis=1)
            models.append(
                LabelledPredictions("classification", actual, (positive > threshold).astype(np.int64), scores)
            )
        return models[0], models[1]

    return draw


def regressor(rows: int, rng: np.random.Generator) -> tuple[LabelledPredictions, LabelledPredictions]:
    """Two equally good models with correlated, skewed, heavy-tailed errors."""
    actual = rng.normal(size=rows)
    common = rng.gamma(2.0, size=rows) - 2
    models = [actual + 0.3 * common + 0.1 * rng.standard_t(6, size=rows) for _ in range(2)]
    return LabelledPredictions("regression", actual, models[0]), LabelledPredictions("regression", actual, models[1])


def three_classes(rows: int, rng: np.random.Generator) -> tuple[LabelledPredictions, LabelledPredictions]:
    actual = rng.choice(3, p=[0.6, 0.3, 0.1], size=rows)
    common = rng.normal(size=(rows, 3))
    models = []
    for _ in range(2):
        logits = 1.3 * np.eye(3)[actual] + 0.8 * common + 0.6 * rng.normal(size=(rows, 3))
        scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        models.append(LabelledPredictions("classification", actual, scores.argmax(axis=1), scores))
    return models[0], models[1]


RARE, EVEN = classifier(0.06, 1.0, 0.12), classifier(0.4, 1.2, 0.5)
CASES = [
    *((f"rare-{name}", RARE, name, 800) for name in (*metrics.BINARY, "balanced_accuracy", "log_loss", "macro_f1")),
    *((f"small-{name}", EVEN, name, 60) for name in (*metrics.BINARY, *metrics.CLASSIFICATION)),
    *((f"three-{name}", three_classes, name, 200) for name in metrics.CLASSIFICATION),
    *((f"regression-{name}", regressor, name, 120) for name in metrics.REGRESSION),
]


def rates(truth: float, make: Callable[[np.random.Generator], Estimate], seed: int) -> tuple[float, float]:
    """How often the truth is below the lower bound, and above the upper one."""
    rng = np.random.default_rng(seed)
    below = above = defined = 0
    for _ in range(RUNS):
        try:
            low, high = make(rng).bounds(0.95)
        except UndefinedMetricError:
            continue
        defined += 1
        below += truth < low
        above += truth > high
    assert defined > 0.95 * RUNS
    return below / defined, above / defined


@pytest.fixture(scope="module")
def truths() -> dict[tuple[Draw, str], float]:
    """The value of each metric on a sample so large that it is as good as the truth."""
    values: dict[tuple[Draw, str], float] = {}
    large = {draw: draw(600_000, np.random.default_rng(99))[0] for draw in {case[1] for case in CASES}}
    for _, draw, name, _ in CASES:
        values[draw, name] = estimate(name, large[draw]).value
    return values


@pytest.mark.parametrize(("draw", "name", "rows"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_bounds_of_a_metric_are_wrong_as_seldom_as_they_say(
    truths: dict[tuple[Draw, str], float], draw: Draw, name: str, rows: int
) -> None:
    below, above = rates(truths[draw, name], lambda rng: estimate(name, draw(rows, rng)[0]), seed=1)
    assert below <= MOST
    assert above <= MOST
    assert below + above > 0


@pytest.mark.parametrize(("draw", "name", "rows"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_bounds_of_a_paired_difference_are_wrong_as_seldom_as_they_say(draw: Draw, name: str, rows: int) -> None:
    below, above = rates(0.0, lambda rng: difference(name, *draw(rows, rng)), seed=2)
    assert below <= MOST
    assert above <= MOST


def test_a_paired_difference_is_narrower_than_two_intervals_apart() -> None:
    candidate, champion = EVEN(1000, np.random.default_rng(3))
    for name in metrics.metrics_of("classification", 2):
        low, high = difference(name, candidate, champion).bounds(0.95)
        apart = [estimate(name, each).bounds(0.95) for each in (candidate, champion)]
        assert high - low < sum(bounds[1] - bounds[0] for bounds in apart)


def accuracy_of(hits: int, rows: int) -> Estimate:
    return Estimate("accuracy", hits / rows, rows, lambda confidence: stats.wilson(hits, rows, confidence), "Wilson")


def test_a_gate_at_the_threshold_says_passed_and_failed_each_in_a_fortieth() -> None:
    """Exact, by enumeration of all samples of 400 rows: hits are discrete, so the rates are near 0.025, not at it."""
    spec = GateSpec("g", "accuracy", 0.85, "min")
    chances = dict.fromkeys(Outcome, 0.0)
    for hits in range(401):
        chances[gates.judge(spec, accuracy_of(hits, 400)).outcome] += float(binom.pmf(hits, 400, 0.85))
    assert 0.01 < chances[Outcome.PASSED] < 0.033
    assert 0.01 < chances[Outcome.FAILED] < 0.033


FAMILIES = 2500


@pytest.mark.parametrize("outcome", [Outcome.PASSED, Outcome.FAILED])
def test_a_family_of_slices_errs_as_seldom_as_one_gate(outcome: Outcome) -> None:
    rng = np.random.default_rng(5)
    spec = GateSpec("g", "accuracy", 0.8, "min")
    wrong = alone = 0
    for hits in rng.binomial(200, 0.8, size=(FAMILIES, 12)):
        estimates = {str(place): accuracy_of(int(hit), 200) for place, hit in enumerate(hits)}
        wrong += any(verdict.outcome is outcome for verdict in gates.judge_family(spec, estimates))
        alone += any(gates.judge(spec, each).outcome is outcome for each in estimates.values())
    assert wrong / FAMILIES <= limit(FAMILIES) < 0.042
    assert alone / FAMILIES > 0.15  # what would happen without the correction


def test_holm_decides_more_than_bonferroni() -> None:
    spec = GateSpec("g", "accuracy", 0.5, "min")
    clear = {str(number): accuracy_of(195, 200) for number in range(9)}
    verdicts = gates.judge_family(spec, {**clear, "close": accuracy_of(116, 200)})
    assert verdicts[-1].outcome is Outcome.PASSED
    assert verdicts[-1].measurement is not None
    assert verdicts[-1].measurement.confidence == pytest.approx(0.95)
    alone = gates.judge_family(spec, {str(number): accuracy_of(116, 200) for number in range(10)})
    assert {verdict.outcome for verdict in alone} == {Outcome.INCONCLUSIVE}


def test_non_inferiority_is_seldom_granted_to_a_model_worse_by_the_margin() -> None:
    rng = np.random.default_rng(6)
    margin, rows, runs = 0.05, 500, 2400
    spec = GateSpec("g", "accuracy", -margin, "min", change=True)
    granted = {0.0: 0, margin: 0}
    for worse in granted:
        for _ in range(runs):
            champion = rng.random(rows) < 0.85
            kept = rng.random(rows) < np.where(champion, (0.85 - worse - 0.15 * 0.3) / 0.85, 0.3)
            actual = np.ones(rows, dtype=np.int64)
            scores = np.full((rows, 2), 0.5)
            answers = [
                LabelledPredictions("classification", actual, each.astype(np.int64), scores)
                for each in (kept, champion)
            ]
            scores = scores + 1e-3  # the models are not the same artifact
            answers[0] = LabelledPredictions("classification", actual, kept.astype(np.int64), scores)
            verdict = gates.judge(spec, difference("accuracy", *answers))
            granted[worse] += verdict.outcome is Outcome.PASSED
    assert granted[margin] / runs <= limit(runs) < 0.043
    assert granted[0.0] / runs > 0.7


@pytest.mark.parametrize("metric", ["latency_p50_ms", "latency_p95_ms", "latency_p99_ms"])
def test_bounds_of_latency_hold_for_independent_requests(metric: str) -> None:
    quantile = int(metric[9:11]) / 100
    truth = float(np.quantile(np.random.default_rng(7).lognormal(4, 0.5, 4_000_000), quantile)) / 1000
    below, above = rates(truth, lambda rng: metrics.latency(metric, rng.lognormal(4, 0.5, 1000), 50), seed=8)
    assert below <= MOST
    assert above <= MOST


def test_requests_slowed_in_bursts_count_for_less() -> None:
    def burst(rng: np.random.Generator) -> np.ndarray:
        slow = np.repeat(rng.random(60) < 0.3, 50)
        return rng.lognormal(4, 0.2, 3000) * np.where(slow, 1.5, 1.0)

    truth = float(np.median(np.concatenate([burst(np.random.default_rng(seed)) for seed in range(300)]))) / 1000
    below, above = rates(truth, lambda rng: metrics.latency("latency_p50_ms", burst(rng), 50), seed=9)
    naive_below, naive_above = rates(truth, lambda rng: metrics.latency("latency_p50_ms", burst(rng), 1), seed=9)
    assert below < MOST + 0.02
    assert above < MOST + 0.02
    assert naive_below + naive_above > 2 * (below + above)
