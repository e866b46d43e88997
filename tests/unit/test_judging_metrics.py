"""Values against scikit-learn and SciPy, intervals against published examples and slow formulas, and odd samples."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlflowkit.errors import UsageError
from mlflowkit.judging import metrics, stats
from mlflowkit.judging.metrics import LabelledPredictions, estimate, latency, unusable_reason
from mlflowkit.judging.paired_metrics import difference
from mlflowkit.judging.stats import UndefinedMetricError


def classified(rows: int, classes: int, seed: int, *, ties: bool = False) -> LabelledPredictions:
    rng = np.random.default_rng(seed)
    actual = rng.integers(classes, size=rows)
    logits = np.eye(classes)[actual] + rng.normal(size=(rows, classes))
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    if ties:
        scores = np.round(scores * 4) / 4 + 0.01
        scores /= scores.sum(axis=1, keepdims=True)
    return LabelledPredictions("classification", actual, scores.argmax(axis=1), scores)


def regressed(rows: int, seed: int) -> LabelledPredictions:
    rng = np.random.default_rng(seed)
    actual = rng.normal(size=rows)
    return LabelledPredictions("regression", actual, actual + rng.gamma(1.0, 0.3, size=rows))


def any_answers(task: str, rows: int, seed: int, *, ties: bool = False) -> LabelledPredictions:
    return regressed(rows, seed) if task == "regression" else classified(rows, int(task), seed, ties=ties)


def reference(name: str, answers: LabelledPredictions) -> float:
    from sklearn import metrics as theirs

    actual, predicted = answers.actual, answers.predicted
    if answers.scores is None:
        return float(
            {
                "rmse": theirs.root_mean_squared_error,
                "mae": theirs.mean_absolute_error,
                "r2": theirs.r2_score,
                "median_absolute_error": theirs.median_absolute_error,
            }[name](actual, predicted)
        )
    binary = answers.classes == 2
    ranked = answers.scores[:, 1] if binary else answers.scores
    if name == "macro_f1":
        return float(theirs.f1_score(actual, predicted, average="macro"))
    if name == "log_loss":
        return float(theirs.log_loss(actual, answers.scores, labels=range(answers.classes)))
    if name == "macro_roc_auc":
        return float(theirs.roc_auc_score(actual, ranked, multi_class="ovr", average="macro"))
    if name in ("roc_auc", "average_precision", "brier"):
        function = {
            "roc_auc": theirs.roc_auc_score,
            "average_precision": theirs.average_precision_score,
            "brier": theirs.brier_score_loss,
        }[name]
        return float(function(actual, ranked))
    return float(getattr(theirs, f"{name}_score")(actual, predicted))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("task", ["2", "4", "regression"])
def test_values_are_scikit_learns(task: str, ties: bool) -> None:
    answers = any_answers(task, 311, seed=1, ties=ties)
    for name in metrics.metrics_of(answers.task, answers.classes):
        assert estimate(name, answers).value == pytest.approx(reference(name, answers), rel=1e-9), name


@settings(max_examples=60, deadline=None)
@given(
    task=st.sampled_from(["2", "3", "regression"]),
    rows=st.integers(2, 80),
    seed=st.integers(0, 10_000),
    ties=st.booleans(),
)
def test_an_interval_holds_its_value_grows_with_confidence_and_never_crashes(
    task: str, rows: int, seed: int, ties: bool
) -> None:
    answers, other = any_answers(task, rows, seed, ties=ties), any_answers(task, rows, seed + 1, ties=ties)
    other = LabelledPredictions(answers.task, answers.actual, other.predicted, other.scores)
    for name in metrics.metrics_of(answers.task, answers.classes):
        for compared in (False, True):
            try:
                made = difference(name, answers, other) if compared else estimate(name, answers)
                narrow, wide = made.at(0.8), made.at(0.99)
            except UndefinedMetricError:
                continue
            numbers = (wide.low, narrow.low, made.value, narrow.high, wide.high)
            assert np.isfinite(numbers).all()
            assert narrow.low <= made.value <= narrow.high
            assert compared or (wide.low - 1e-9 <= narrow.low and narrow.high <= wide.high + 1e-9)


@pytest.mark.parametrize("task", ["2", "3", "regression"])
def test_a_difference_is_the_difference_and_turns_round(task: str) -> None:
    one, two = any_answers(task, 200, 1), any_answers(task, 200, 2)
    two = LabelledPredictions(one.task, one.actual, two.predicted, two.scores)
    for name in metrics.metrics_of(one.task, one.classes):
        there, back = difference(name, one, two).at(0.9), difference(name, two, one).at(0.9)
        assert there.value == pytest.approx(estimate(name, one).value - estimate(name, two).value)
        assert (there.low, there.high) == pytest.approx((-back.high, -back.low))


def test_the_same_answers_differ_by_exactly_nothing() -> None:
    answers = classified(50, 2, 1)
    made = difference("roc_auc", answers, answers.take(np.arange(50))).at(0.95)
    assert (made.low, made.value, made.high) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("metric", ["roc_auc", "average_precision", "log_loss", "brier", "macro_roc_auc"])
def test_another_decision_threshold_leaves_metrics_of_scores_where_they_are(metric: str) -> None:
    champion = classified(50, 2, 1)
    candidate = LabelledPredictions("classification", champion.actual, 1 - champion.predicted, champion.scores)
    change = difference(metric, candidate, champion)
    assert (change.value, change.bounds(0.95), change.method) == (0.0, (0.0, 0.0), "the same answers on every row")
    assert difference("accuracy", candidate, champion).value != 0.0


def test_two_models_without_fault_on_few_rows_are_not_known_to_be_alike() -> None:
    actual = np.arange(20) % 2
    made = []
    for sharpness in (3.0, 5.0):
        positive = 1 / (1 + np.exp(-sharpness * (2 * actual - 1)))
        made.append(LabelledPredictions("classification", actual, actual, np.stack([1 - positive, positive], axis=1)))
    low, high = difference("roc_auc", made[0], made[1]).bounds(0.95)
    assert low < -0.2
    assert high > 0.2
    assert estimate("roc_auc", made[0]).bounds(0.95)[0] < 0.8


def test_wilson_is_scipys() -> None:
    from scipy.stats import binomtest

    for hits, rows in ((0, 10), (3, 10), (78, 1479), (10, 10)):
        theirs = binomtest(hits, rows).proportion_ci(0.95, method="wilson")
        assert stats.wilson(hits, rows, 0.95) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_newcombe_is_newcombes() -> None:
    """Table II of Newcombe 1998 (method 10): paired tables a, b, c, d and the interval printed there."""
    assert stats.newcombe(36, 12, 2, 0, 0.95) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    assert stats.newcombe(98, 1, 0, 1, 0.95)[0] < 0 < stats.newcombe(98, 1, 0, 1, 0.95)[1]


def test_delong_by_midranks_is_delong_by_pairs() -> None:
    rng = np.random.default_rng(3)
    positive = rng.random(120) < 0.3
    scores = np.round(rng.normal(size=120) + positive, 1)
    pairs = scores[positive][:, None] - scores[~positive][None, :]
    wins = (pairs > 0) + 0.5 * (pairs == 0)
    value, v10, v01 = stats.placements(positive, scores)
    assert value == pytest.approx(wins.mean())
    assert v10 == pytest.approx(wins.mean(axis=1))
    assert v01 == pytest.approx(wins.mean(axis=0))
    error, _ = stats.placement_error(v10, v01)
    slow = wins.mean(axis=1).var(ddof=1) / positive.sum() + wins.mean(axis=0).var(ddof=1) / (~positive).sum()
    assert error == pytest.approx(np.sqrt(slow))


@pytest.mark.parametrize("name", ["average_precision", "macro_f1", "macro_roc_auc", "balanced_accuracy", "r2", "f1"])
def test_half_widths_are_those_of_a_bootstrap(name: str) -> None:
    answers = regressed(400, 5) if name == "r2" else classified(400, 2, 5)
    rng = np.random.default_rng(6)
    drawn = [estimate(name, answers.take(rng.integers(400, size=400))).value for _ in range(400)]
    low, high = estimate(name, answers).bounds(0.95)
    assert (high - low) / 3.92 == pytest.approx(np.std(drawn), rel=0.15)


def test_the_median_error_is_bounded_by_errors() -> None:
    answers = regressed(60, 1)
    errors = np.abs(answers.predicted - answers.actual)
    low, high = estimate("median_absolute_error", answers).bounds(0.95)
    assert low in errors
    assert high in errors
    with pytest.raises(UndefinedMetricError, match="it takes 6 or more"):
        estimate("median_absolute_error", regressed(5, 1)).bounds(0.95)


@pytest.mark.parametrize(
    ("name", "actual", "predicted", "words"),
    [
        ("roc_auc", [0] * 10, [0] * 10, "of 10 rows 0 are positive"),
        ("roc_auc", [0] * 9 + [1], [0] * 10, "of 10 rows 1 are positive"),
        ("average_precision", [1] * 10, [1] * 10, "of 10 rows 10 are positive"),
        ("precision", [0, 1] * 5, [0] * 10, "none of 10 rows is predicted positive"),
        ("recall", [0] * 10, [0, 1] * 5, "none of 10 rows is positive"),
        ("f1", [0] * 10, [0, 1] * 5, "none of 10 rows is positive"),
        ("balanced_accuracy", [1] * 10, [1] * 10, "all 10 rows are of one class"),
        ("macro_roc_auc", [0] * 10, [0] * 10, "needs 2 classes"),
        ("accuracy", [1], [1], "1 rows"),
        ("accuracy", [], [], "0 rows"),
    ],
)
def test_what_rows_cannot_say_is_said(name: str, actual: list[int], predicted: list[int], words: str) -> None:
    scores = np.full((len(actual), 2), 0.5)
    codes = (np.array(actual, dtype=np.int64), np.array(predicted, dtype=np.int64))
    with pytest.raises(UndefinedMetricError, match=words):
        estimate(name, LabelledPredictions("classification", *codes, scores))


def test_a_class_that_does_not_occur_is_told() -> None:
    answers = classified(90, 3, 1)
    kept = answers.take(answers.actual != 2)
    assert "2 of 3 classes occur" in estimate("macro_roc_auc", kept).basis
    assert "2 of 3 classes occur" in estimate("balanced_accuracy", kept).basis


def test_a_constant_outcome_and_an_exact_model_have_no_interval() -> None:
    constant = LabelledPredictions("regression", np.ones(20), np.linspace(0, 1, 20))
    with pytest.raises(UndefinedMetricError, match="all 20 outcomes are the same"):
        estimate("r2", constant)
    exact = LabelledPredictions("regression", np.arange(20.0), np.arange(20.0))
    for name in ("rmse", "mae", "r2"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(UndefinedMetricError, match=r"no spread|is exact"):
                estimate(name, exact).bounds(0.95)


def test_an_unknown_metric_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no metric 'roc_auc'") as caught:
        estimate("roc_auc", classified(30, 3, 1))
    assert "macro_roc_auc" in caught.value.hint


def test_broken_answers_are_told() -> None:
    answers = classified(10, 2, 1)
    assert unusable_reason(answers) == ""
    assert answers.scores is not None
    holed = answers.scores.copy()
    holed[4, 1] = np.nan
    assert unusable_reason(LabelledPredictions("classification", answers.actual, answers.predicted, holed)).endswith(
        "(first: row 4)"
    )
    logits = LabelledPredictions("classification", answers.actual, answers.predicted, answers.scores * 7)
    assert "do not sum to 1 on 10 rows" in unusable_reason(logits)
    endless = LabelledPredictions("regression", np.ones(3), np.array([1.0, np.inf, 2.0]))
    assert "on 1 of 3 rows" in unusable_reason(endless)


def test_latency_is_in_milliseconds_and_needs_requests() -> None:
    samples = np.arange(1, 2001, dtype=np.float64)
    made = latency("latency_p99_ms", samples).at(0.95)
    assert (made.value, made.unit, made.samples) == (1.98, "ms", 2000)
    assert 1.96 < made.low < made.value < made.high < 2.0
    with pytest.raises(UndefinedMetricError, match="it takes 368 or more"):
        latency("latency_p99_ms", samples[:200]).at(0.95)
    with pytest.raises(UndefinedMetricError, match="no latency was measured"):
        latency("latency_p99_ms", np.array([]))


def test_thousands_of_rows_are_quick_and_a_million_is_borne() -> None:
    answers = classified(1_000_000, 2, 1)
    low, high = estimate("average_precision", answers).bounds(0.95)
    assert high - low < 0.005


def test_a_loss_is_clipped_at_single_precision_on_both_sides() -> None:
    scores = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    answers = LabelledPredictions("classification", np.array([0, 1, 1, 0]), scores.argmax(axis=1), scores)
    tiny = float(np.finfo(np.float32).eps)
    expected = (-np.log(tiny) - 3 * np.log(1 - tiny)) / 4
    assert estimate("log_loss", answers).value == pytest.approx(expected, rel=1e-12)
    assert metrics.LOSSES["log_loss"](answers).min() > 0


def test_probabilities_may_miss_their_sum_by_a_hundredth() -> None:
    def sums(total: float) -> str:
        scores = np.array([[0.5, 0.5], [0.5, total - 0.5]])
        return unusable_reason(LabelledPredictions("classification", np.array([0, 1]), np.array([0, 1]), scores))

    assert sums(1.0099) == sums(0.9901) == ""
    assert "do not sum to 1 on 1 rows (first: row 1)" in sums(1.0101)
    assert "do not sum to 1 on 1 rows (first: row 1)" in sums(0.9899)


def test_few_rows_do_not_show_that_two_models_never_differ() -> None:
    values = np.array([1.0, -1.0, 2.0, 0.0, -2.0])
    assert stats.correlation(values, values) == 1 - 2 / 5
    assert stats.correlation(values, -values) == pytest.approx(-1.0)
    assert stats.correlation(values, np.zeros(5)) == 0.0


def test_one_row_has_no_interval_of_a_mean() -> None:
    with pytest.raises(UndefinedMetricError):
        stats.mean_bounds(1.0, np.zeros(1), 0.95)
