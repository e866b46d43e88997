"""Estimated and realised performance: values against scikit-learn, verdicts on planted cases."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from mlflowkit.features.cell_counts import CellCounter, count_cells
from mlflowkit.judging.online.evidence import Moments, latency_bin
from mlflowkit.judging.online.sequential import Share
from mlflowkit.judging.performance import (
    backtest,
    burn_rate,
    calibrator,
    error_table,
    estimated,
    harm,
    maturity,
    realised,
    score_table,
)
from mlflowkit.judging.performance import label_selection as selection
from mlflowkit.judging.performance.backtest import EstimateError
from mlflowkit.judging.performance.burn_rate import RequestCounts
from mlflowkit.judging.performance.harm import PerformanceBlock
from mlflowkit.judging.performance.realised import LabelledCohort
from mlflowkit.judging.shift.column_cells import Cells
from mlflowkit.values import Outcome

pytestmark = pytest.mark.unit
DAY = 86_400.0


def _rows(count: int, shift: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    true = 1 / (1 + np.exp(-(random.normal(size=count) * 1.2 - 1.5 + shift)))
    actual = (random.random(count) < true).astype(np.int64)
    scores = true**1.3  # not calibrated
    return scores, (scores >= 0.3).astype(np.int64), actual


def test_metrics_are_those_of_scikit_learn() -> None:
    from sklearn import metrics

    scores, predicted, actual = _rows(700)
    scores = scores.round(2)  # with ties
    table = score_table.table_of_rows(scores, predicted, actual)
    expected = {
        "roc_auc": metrics.roc_auc_score(actual, scores),
        "average_precision": metrics.average_precision_score(actual, scores),
        "accuracy": metrics.accuracy_score(actual, predicted),
        "recall": metrics.recall_score(actual, predicted),
        "precision": metrics.precision_score(actual, predicted),
        "f1": metrics.f1_score(actual, predicted),
        "brier": metrics.brier_score_loss(actual, scores),
        "log_loss": metrics.log_loss(actual, np.clip(scores, 1e-7, 1 - 1e-7)),
    }
    assert {name: score_table.metric_value(name, table) for name in score_table.SCORE_METRICS} == pytest.approx(
        expected
    )


@pytest.mark.parametrize("metric", score_table.SCORE_METRICS)
def test_the_variance_of_a_metric_is_that_of_a_bootstrap(metric: str) -> None:
    table = score_table.coarsened(score_table.table_of_rows(*_rows(1500)), 60)
    random = np.random.default_rng(1)
    draws = random.multinomial(1500, (table.counts / table.rows).ravel(), size=600).reshape(600, *table.counts.shape)
    values = score_table.metric_values(metric, table.scores, draws.astype(float))
    variance = score_table.sampling_variance(metric, table, table.rows)
    assert math.sqrt(variance) == pytest.approx(float(values.std()), rel=0.15)


def test_score_cells_are_a_grid_of_log_odds() -> None:
    middles = score_table.cell_scores()
    assert [score_table.score_cell(float(middle)) for middle in middles] == list(range(score_table.CELLS))
    with pytest.raises(ValueError, match="no score"):
        score_table.score_cell(math.nan)


def test_a_calibrator_is_read_back_and_has_the_same_bytes_each_time() -> None:
    scores, predicted, actual = _rows(1200)
    cells = Cells("number", edges=tuple(np.quantile(scores, np.linspace(0, 1, 21)).tolist()))
    first, second = (
        calibrator.fit_calibrator(scores, predicted, actual, cells, CellCounter(cells).codes(scores)) for _ in range(2)
    )
    assert first is not None
    assert json.dumps(first.to_json()) == json.dumps(second and second.to_json())
    assert calibrator.Calibrator.from_json(json.loads(json.dumps(first.to_json()))) == first
    assert first.kind == "isotonic"
    assert len(first.bootstrap) == 200
    assert len(first.knots) <= 50


@pytest.mark.parametrize("damage", [{"format": 2}, {"task": "regression"}, {"curve": [0.1]}, {"knots": []}])
def test_a_damaged_calibrator_is_refused(damage: dict[str, object]) -> None:
    fitted = calibrator.fit_calibrator(*_rows(400))
    assert fitted is not None
    assert fitted.kind == "platt"
    with pytest.raises((ValueError, KeyError, TypeError)):
        calibrator.Calibrator.from_json({**fitted.to_json(), **damage})


def test_too_few_positives_have_no_calibrator() -> None:
    scores = np.linspace(0.1, 0.9, 300)
    assert calibrator.fit_calibrator(scores, np.zeros(300, int), (np.arange(300) < 5).astype(np.int64)) is None


def test_a_concept_that_changes_within_the_held_out_rows_is_an_error_of_the_estimates() -> None:
    """In random parts it is seen by none; in consecutive ones estimates and labels fall apart."""
    scores, predicted, actual = _rows(4000)
    late = np.arange(4000) >= 3200
    actual = np.where(late & (np.random.default_rng(5).random(4000) < 0.4), 1 - actual, actual)
    random_parts = calibrator.fit_calibrator(scores, predicted, actual)
    in_time = calibrator.fit_calibrator(scores, predicted, actual, times=np.arange(4000))
    assert random_parts is not None
    assert in_time is not None
    assert in_time.held_out["roc_auc"].error > 2 * random_parts.held_out["roc_auc"].error


@pytest.mark.parametrize("metric", score_table.SCORE_METRICS)
def test_estimates_follow_a_shift_of_the_inputs(metric: str) -> None:
    fitted = calibrator.fit_calibrator(*_rows(6000))
    assert fitted is not None
    table = score_table.table_of_rows(*_rows(6000, shift=1.0, seed=1))
    estimate = estimated.estimate_score_metric(metric, table, fitted, 6000)
    assert estimate is not None
    assert estimate.low <= score_table.metric_value(metric, table) <= estimate.high
    assert estimate.high - estimate.low < 0.16


def test_estimates_from_the_monitor_s_cells_are_near_those_of_rows() -> None:
    scores, predicted, actual = _rows(4000)
    cells = Cells("number", edges=tuple(np.quantile(scores, np.linspace(0, 1, 21)).tolist()))
    fitted = calibrator.fit_calibrator(scores, predicted, actual, cells, CellCounter(cells).codes(scores))
    assert fitted is not None
    live = _rows(3000, shift=0.5, seed=2)
    counts = count_cells(cells, live[0])
    binned = estimated.estimate_score_metric("recall", estimated.score_table_of(counts, fitted), fitted, 3000)
    exact = estimated.estimate_score_metric("recall", score_table.table_of_rows(*live), fitted, 3000)
    assert binned is not None
    assert exact is not None
    assert binned.value == pytest.approx(exact.value, abs=0.02)
    with pytest.raises(ValueError, match="other cells"):
        estimated.score_table_of((1, 2, 3), fitted)


def test_a_table_of_errors_follows_a_shift_of_a_column() -> None:
    random = np.random.default_rng(0)
    group, other = random.integers(0, 4, 5000), random.integers(0, 3, 5000)
    errors = np.abs(random.normal(size=5000)) * (1 + group)
    fitted = error_table.fit_error_table({"group": group, "other": other}, {"group": 4, "other": 3}, errors)
    assert fitted is not None
    assert "group" in fitted.effects
    assert error_table.ErrorTable.from_json(json.loads(json.dumps(fitted.to_json()))) == fitted
    counts = {"group": (0, 0, 0, 2000), "other": (700, 700, 600)}
    estimate = error_table.estimate_error(fitted, counts, 2000)
    assert estimate is not None
    assert estimate.low <= 4 * math.sqrt(2 / math.pi) <= estimate.high
    with pytest.raises(ValueError, match="group"):
        error_table.estimate_error(fitted, {"group": (1, 2)}, 10)


def _accuracy_blocks(rate: float, blocks: int, rows: int = 100, seed: int = 0) -> list[PerformanceBlock]:
    random = np.random.default_rng(seed)
    result = []
    for number in range(blocks):
        bad = float(random.binomial(rows, rate))
        result.append(
            PerformanceBlock(number * DAY, DAY, 1 - bad / rows, rate * (1 - rate) / rows, rows, Share(rows, bad))
        )
    return result


def test_harm_is_failed_then_resolved_when_it_ends() -> None:
    bad = _accuracy_blocks(0.25, 12)
    verdict = harm.judge_blocks("accuracy", bad, 0.88)
    assert verdict.outcome is Outcome.FAILED
    assert verdict.evidence >= 1
    assert verdict.since is not None
    good = [
        PerformanceBlock((12 + i) * DAY, DAY, block.value, block.variance, block.rows, block.share)
        for i, block in enumerate(_accuracy_blocks(0.04, 12, seed=1))
    ]
    assert harm.judge_blocks("accuracy", [*bad, *good], 0.88).outcome is Outcome.PASSED


def test_a_few_blocks_do_not_decide() -> None:
    assert harm.judge_blocks("accuracy", _accuracy_blocks(0.5, 6, 1000), 0.88).outcome is Outcome.INCONCLUSIVE


def test_a_rise_of_a_loss_is_worse() -> None:
    blocks = [PerformanceBlock(i * DAY, DAY, 5.0, 0.01, 300) for i in range(8)]
    assert harm.judge_blocks("absolute_error", blocks, 4.0, scale=1.0).outcome is Outcome.FAILED
    assert harm.judge_blocks("absolute_error", blocks, 6.0, scale=1.0).outcome is Outcome.PASSED


def test_a_design_effect_ignores_one_lasting_change() -> None:
    calm = [PerformanceBlock(i, 1, 0.9, 0.0001, 100) for i in range(10)]
    dropped = [PerformanceBlock(10 + i, 1, 0.6, 0.0001, 100) for i in range(10)]
    noisy = [PerformanceBlock(i, 1, 0.9 + 0.1 * (-1) ** i, 0.0001, 100) for i in range(10)]
    assert harm.design_effect(calm) == 1.0
    assert harm.design_effect([*calm, *dropped]) < harm.design_effect(noisy) / 5


def _cohort(day: int, labelled: float, seed: int, flip: float = 0.0, part: slice = slice(None)) -> LabelledCohort:
    scores, predicted, actual = _rows(1000, seed=seed)
    random = np.random.default_rng(seed)
    actual = np.where(random.random(1000) < flip, 1 - actual, actual)
    cells = [score_table.score_cell(float(score)) for score in scores]
    answered: dict[tuple[int, int], int] = {}
    known: dict[tuple[int, int, int], int] = {}
    order = np.argsort(scores, kind="stable")[part]
    chosen = set(order[random.random(len(order)) < labelled].tolist())
    for row, cell in enumerate(cells):
        key = cell, int(predicted[row])
        answered[key] = answered.get(key, 0) + 1
        if row in chosen:
            known[*key, int(actual[row])] = known.get((*key, int(actual[row])), 0) + 1
    return LabelledCohort(day * DAY, DAY, 1000, answered, known, {}, {17: len(chosen)} if chosen else {})


def test_realised_metrics_of_cohorts() -> None:
    cohorts = [_cohort(day, 1.0, day) for day in range(6)]
    result = realised.realised_performance("roc_auc", cohorts, 300)
    assert result is not None
    assert len(result.blocks) == 6
    assert result.low < result.value < result.high
    scores, predicted, actual = (
        np.concatenate(part) for part in zip(*(_rows(1000, seed=d) for d in (3, 4, 5)), strict=True)
    )
    exact = score_table.metric_value("roc_auc", score_table.table_of_rows(scores, predicted, actual))
    assert result.value == pytest.approx(exact, abs=0.002)


def test_cohorts_with_few_labels_are_joined() -> None:
    cohorts = [_cohort(day, 0.1, day) for day in range(7)]
    joined = realised.join_cohorts(cohorts, 300)
    assert all(cohort.labels >= 300 for cohort in joined)
    assert 1 <= len(joined) < 3
    assert realised.realised_performance("recall", cohorts[:2], 300) is None


def test_moments_give_metrics_of_other_tasks() -> None:
    cohort = LabelledCohort(0, DAY, 10, moments={"absolute_error": Moments(4, 8.0, 20.0)})
    block = realised.cohort_block("absolute_error", cohort)
    assert block is not None
    assert block.value == 2.0
    assert block.variance == pytest.approx(4 / 3 / 4)
    assert realised.cohort_block("roc_auc", cohort) is None


def test_labels_of_some_scores_only_are_seen() -> None:
    fair = [_cohort(day, 0.5, day) for day in range(6)]
    assert selection.judge_selection(fair).outcome is Outcome.PASSED
    tail = [_cohort(day, 0.9, day, part=slice(0, 500)) for day in range(6)]
    assert selection.judge_selection(tail).outcome is Outcome.FAILED
    assert selection.judge_selection([_cohort(0, 0.0, 0)]).outcome is Outcome.INCONCLUSIVE


def test_labels_that_do_not_come_are_late() -> None:
    cohorts = [_cohort(day, 0.8 if day < 4 else 0.0, day) for day in range(6)]
    now = 40 * DAY
    assert "newest mature rows" in maturity.label_maturity(cohorts, now, 21 * DAY).late
    assert "none of" in maturity.label_maturity(cohorts[4:], now, 21 * DAY).late
    fine = maturity.label_maturity(cohorts[:4], now, 21 * DAY)
    assert fine.late == ""
    assert fine.share == pytest.approx(0.8, abs=0.03)
    assert maturity.label_maturity(cohorts[4:], 10 * DAY, 21 * DAY).late == ""  # too young to be missed
    ages = dict(fine.curve)
    assert ages[2.0**16] == 0.0
    assert ages[2.0**17] == pytest.approx(0.8, abs=0.03)


def test_the_back_test_says_what_estimates_are_worth() -> None:
    near = [EstimateError(day, 0.002, 0.0001, 300) for day in range(10)]
    assert backtest.judge_estimates(near, 0.02).trust == "TRUSTED"
    assert backtest.judge_estimates(near[:2], 0.02).trust == "UNKNOWN"
    assert backtest.judge_estimates([], 0.02).trust == "UNKNOWN"
    low = backtest.judge_estimates([EstimateError(day, -0.1, 0.0001, 300) for day in range(10)], 0.02)
    assert low.trust == "BIASED"
    assert "0.100 too low" in low.message
    wild = [EstimateError(day, 0.15 * (-1) ** day, 0.0001, 300) for day in range(10)]
    assert backtest.judge_estimates(wild, 0.02).trust == "UNKNOWN"


def _history(hours: float, share: float, per_minute: int = 100, slow: float = 0.0) -> list[RequestCounts]:
    result = []
    for minute in range(round(hours * 60)):
        errors, slower = round(share * per_minute), round(slow * per_minute)
        latency = {latency_bin(0.005): per_minute - errors - slower}
        latency |= {latency_bin(0.1): slower} if slower else {}
        result.append(RequestCounts(minute * 60.0, 60.0, per_minute, errors, latency))
    return result


def test_burn_rates_need_both_windows() -> None:
    now = 6 * 3600.0
    assert burn_rate.burn_rate(_history(6, 0.0), now, 0.01).outcome is Outcome.PASSED
    burning = burn_rate.burn_rate(_history(6, 0.2), now, 0.01)
    assert burning.outcome is Outcome.FAILED
    assert burning.rate == pytest.approx(20)
    assert burning.factor == 14.4
    over = [*_history(5.4, 0.2), *(RequestCounts(now - 2160 + i * 60, 60, 100, 0) for i in range(36))]
    assert burn_rate.burn_rate(over, now, 0.01).outcome is not Outcome.FAILED  # it ended 36 minutes ago
    assert burn_rate.burn_rate([], now, 0.01).outcome is Outcome.INCONCLUSIVE
    few = [RequestCounts(now - 600, 60, 5, 1)]
    assert burn_rate.burn_rate(few, now, 0.01).outcome is Outcome.INCONCLUSIVE
    slow = burn_rate.burn_rate(_history(6, 0.0, slow=0.3), now, 0.01, slow=0.02)
    assert slow.outcome is Outcome.FAILED
    assert burn_rate.burn_rate(_history(6, 0.0, slow=0.3), now, 0.01, slow=0.2).outcome is Outcome.PASSED


def test_a_quantile_is_of_merged_bins() -> None:
    merged = burn_rate.merge_latency(_history(1, 0.0, slow=0.02))
    assert burn_rate.quantile_seconds(merged, 0.99) == pytest.approx(0.1, rel=0.03)
    assert burn_rate.quantile_seconds(merged, 0.5) == pytest.approx(0.005, rel=0.03)
