"""Error rates that performance monitoring promises, by simulation with a known truth.

All seeds are fixed, so on unchanged code a test fails with chance 0; `MOST` states what would be 1 in 10^6 otherwise.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta, binom

from mlflowkit.judging.online.sequential import Share
from mlflowkit.judging.performance.backtest import EstimateError, judge_estimates
from mlflowkit.judging.performance.calibrator import fit_calibrator
from mlflowkit.judging.performance.error_table import estimate_error, fit_error_table
from mlflowkit.judging.performance.estimated import estimate_score_metric
from mlflowkit.judging.performance.harm import PerformanceBlock, judge_blocks
from mlflowkit.judging.performance.score_table import metric_value, table_of_rows
from mlflowkit.values import Outcome

pytestmark = pytest.mark.simulation

CHANCE = 1e-6


def most(runs: int, rate: float) -> int:
    """The number of ``runs`` that an event of probability ``rate`` exceeds with probability CHANCE."""
    return int(binom.ppf(1 - CHANCE, runs, rate))


def clopper_pearson(hits: int, runs: int) -> str:
    """The 95 % interval of a share, for the message of a test that fails."""
    low = float(beta.ppf(0.025, hits, runs - hits + 1)) if hits else 0.0
    high = float(beta.ppf(0.975, hits + 1, runs - hits)) if hits < runs else 1.0
    return f"{hits} of {runs}: {hits / runs:.3f} [{low:.3f}, {high:.3f}]"


def rate_block(index: int, rate: float, rows: int, random: np.random.Generator) -> PerformanceBlock:
    bad = float(random.binomial(rows, rate))
    smoothed = (bad + 2) / (rows + 4)
    variance = smoothed * (1 - smoothed) / rows
    return PerformanceBlock(float(index), 1.0, 1 - bad / rows, variance, rows, Share(rows, bad))


def first_failure(
    metric: str, blocks: list[PerformanceBlock], bound: float, scale: float = 0.08, step: int = 1
) -> int | None:
    """The number of blocks at which a monitor that looks after every ``step`` says FAILED; None for never."""
    return next(
        (
            number
            for number in range(step, len(blocks) + 1, step)
            if judge_blocks(metric, blocks[:number], bound, scale=scale).outcome is Outcome.FAILED
        ),
        None,
    )


def test_a_rate_on_its_bound_is_rarely_called_worse() -> None:
    runs = 200
    failed = sum(
        first_failure("accuracy", [rate_block(i, 0.12, 100, random) for i in range(48)], 0.88, step=3) is not None
        for random in map(np.random.default_rng, range(runs))
    )
    assert failed <= most(runs, 0.05), clopper_pearson(failed, runs)


@pytest.mark.parametrize("effect", [5.0, 30.0])
def test_days_that_differ_by_themselves_are_rarely_called_worse(effect: float) -> None:
    """Beta-binomial days, whose design effect is 1 + (n - 1) r; the mean rate lies on the bound."""
    runs, rows = 150, 400
    concentration = (rows - 1) / (effect - 1) - 1
    failed = 0
    for seed in range(runs):
        random = np.random.default_rng(seed)
        rates = random.beta(0.12 * concentration, 0.88 * concentration, size=40)
        blocks = [rate_block(index, float(rate), rows, random) for index, rate in enumerate(rates)]
        failed += first_failure("accuracy", blocks, 0.88, step=2) is not None
    assert failed <= most(runs, 0.05), clopper_pearson(failed, runs)


def test_a_mean_on_its_bound_is_rarely_called_worse() -> None:
    runs = 150
    failed = 0
    for seed in range(runs):
        random = np.random.default_rng(seed)
        values = [random.exponential(size=200) for _ in range(40)]
        variance = float(np.concatenate(values).var()) / 200
        blocks = [PerformanceBlock(float(i), 1.0, float(x.mean()), variance, 200.0) for i, x in enumerate(values)]
        failed += first_failure("absolute_error", blocks, 1.0, 0.25, step=2) is not None
    assert failed <= most(runs, 0.05), clopper_pearson(failed, runs)


def test_three_points_beyond_the_three_that_are_allowed_are_found_within_1200_labels() -> None:
    """In the median; the smallest number that is possible at this level is log(20) / KL(0.15, 0.12) = 751."""
    labels = []
    for seed in range(100):
        random = np.random.default_rng(seed)
        number = first_failure("accuracy", [rate_block(i, 0.15, 100, random) for i in range(60)], 0.88)
        labels.append(6000 if number is None else 100 * number)
    assert float(np.median(labels)) <= 1200
    assert float(np.quantile(labels, 0.9)) <= 2500


def test_a_loss_after_a_long_good_time_is_found() -> None:
    labels = []
    for seed in range(25):
        random = np.random.default_rng(seed)
        good = [rate_block(i, 0.09, 100, random) for i in range(50)]
        bad = [rate_block(50 + i, 0.19, 100, random) for i in range(20)]
        number = first_failure("accuracy", [*good, *bad], 0.88)
        assert number is None or number > 50
        labels.append(9999 if number is None else 100 * (number - 50))
    assert max(labels) <= 1500


def _scored(
    rows: int, random: np.random.Generator, mean: float, spread: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores that are not calibrated; the outcome depends on the score alone."""
    odds = random.normal(size=rows) * spread + mean
    actual = (random.random(rows) < 1 / (1 + np.exp(-odds))).astype(np.int64)
    scores = 1 / (1 + np.exp(-0.6 * odds - 0.3))
    return scores, (scores >= 0.4).astype(np.int64), actual


@pytest.mark.parametrize("rows", [800, 3000])
def test_bands_cover_under_covariate_shift(rows: int) -> None:
    """The band at 95 %, of scores whose mean and spread are others than those that the calibrator was fitted to."""
    runs, metrics = 20, ("roc_auc", "recall", "precision", "accuracy", "brier", "log_loss")
    covered = dict.fromkeys(metrics, 0)
    for seed in range(runs):
        random = np.random.default_rng(seed)
        fitted = fit_calibrator(*_scored(rows, random, -1.0, 1.2))
        assert fitted is not None
        table = table_of_rows(*_scored(1500, random, random.uniform(-1.6, -0.2), random.uniform(0.7, 1.4)))
        for metric in metrics:
            estimate = estimate_score_metric(metric, table, fitted, table.rows)
            assert estimate is not None
            covered[metric] += estimate.low <= metric_value(metric, table) <= estimate.high
    for metric, hits in covered.items():
        assert hits >= runs - most(runs, 0.1), f"{metric}: {clopper_pearson(hits, runs)}"


def test_bands_of_an_error_table_cover_under_covariate_shift() -> None:
    runs, covered = 80, 0
    for seed in range(runs):
        random = np.random.default_rng(seed)

        def rows(count: int, shares: np.ndarray, random: np.random.Generator = random) -> tuple[np.ndarray, ...]:
            first, second = random.choice(5, count, p=shares), random.integers(0, 4, count)
            return first, second, np.abs(random.standard_t(5, size=count)) * (0.5 + first + 0.4 * second)

        first, second, errors = rows(2500, np.full(5, 0.2))
        table = fit_error_table({"a": first, "b": second}, {"a": 5, "b": 4}, errors)
        assert table is not None
        first, second, errors = rows(800, random.dirichlet(np.ones(5)))
        counts = {"a": np.bincount(first, minlength=5), "b": np.bincount(second, minlength=4)}
        estimate = estimate_error(table, {name: tuple(counts[name].tolist()) for name in table.effects}, 800.0)
        assert estimate is not None
        covered += estimate.low <= float(errors.mean()) <= estimate.high
    assert covered >= runs - most(runs, 0.1), clopper_pearson(covered, runs)


@pytest.mark.parametrize(("bias", "wrong"), [(0.02, "BIASED"), (0.0201, "TRUSTED"), (0.0, "BIASED")])
def test_the_back_test_is_rarely_wrong_at_any_look(bias: float, wrong: str) -> None:
    """At the tolerance of 0.02 estimates must hardly ever be called BIASED, just beyond it hardly ever TRUSTED."""
    runs, times = 200, 0
    for seed in range(runs):
        random = np.random.default_rng(seed)
        errors = [EstimateError(float(i), bias + 0.03 * float(random.normal()), 0.03**2, 300) for i in range(60)]
        times += any(judge_estimates(errors[:n], 0.02).trust == wrong for n in range(3, 61, 3))
    assert times <= most(runs, 0.05), clopper_pearson(times, runs)
