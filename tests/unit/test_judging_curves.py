"""Data of a report's charts against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from mlflowkit.judging import curves
from mlflowkit.judging.metrics import LabelledPredictions
from mlflowkit.judging.stats import wilson


def binary(rows: int, seed: int = 0, digits: int = 2) -> LabelledPredictions:
    rng = np.random.default_rng(seed)
    actual = rng.integers(2, size=rows)
    hit = np.clip(np.round(0.3 * actual + rng.random(rows) * 0.7, digits), 0.0, 1.0)
    scores = np.column_stack([1 - hit, hit])
    return LabelledPredictions("classification", actual, (hit > 0.5).astype(int), scores)


def test_counts_of_a_confusion_matrix_are_by_actual_and_predicted_class() -> None:
    answers = LabelledPredictions("classification", np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 2, 0, 0]), None)
    matrix = curves.confusion(answers, ["a", "b", "c"])
    assert matrix == {"labels": ["a", "b", "c"], "counts": [[1, 1, 0], [0, 1, 0], [2, 0, 1]]}


def test_ranking_curves_are_scikit_learns() -> None:
    from sklearn.metrics import precision_recall_curve, roc_curve

    answers = binary(300)
    roc, tradeoff = curves.ranking(answers)
    assert answers.scores is not None
    fpr, tpr, _ = roc_curve(answers.actual, answers.scores[:, 1], drop_intermediate=False)
    np.testing.assert_allclose(roc["fpr"], fpr)
    np.testing.assert_allclose(roc["tpr"], tpr)
    precision, recall, _ = precision_recall_curve(answers.actual, answers.scores[:, 1])
    np.testing.assert_allclose(tradeoff["precision"], precision[-2::-1])
    np.testing.assert_allclose(tradeoff["recall"], recall[-2::-1])


def test_a_curve_has_at_most_500_points_and_both_ends() -> None:
    roc, tradeoff = curves.ranking(binary(2000, digits=9))
    assert len(roc["fpr"]) == len(roc["tpr"]) == 501
    assert len(tradeoff["recall"]) == 500
    assert (roc["fpr"][0], roc["tpr"][0], roc["fpr"][-1], roc["tpr"][-1]) == (0.0, 0.0, 1.0, 1.0)
    assert tradeoff["recall"][-1] == 1.0
    assert roc["fpr"] == sorted(roc["fpr"])


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_has_no_ranking(label: int) -> None:
    answers = binary(20)
    alone = LabelledPredictions("classification", np.full(20, label), answers.predicted, answers.scores)
    assert curves.ranking(alone) == (None, None)
    three = LabelledPredictions("classification", np.arange(3), np.arange(3), np.eye(3))
    assert curves.ranking(three) == (None, None)
    bare = LabelledPredictions("classification", answers.actual, answers.predicted, None)
    assert curves.ranking(bare) == (None, None)
    assert curves.calibration(bare) is None


def test_calibration_bins_hold_equal_counts_and_their_wilson_intervals() -> None:
    hit = np.array([0.9, 0.1, 0.4, 0.6])
    answers = LabelledPredictions(
        "classification", np.array([1, 0, 1, 0]), np.array([1, 0, 0, 1]), np.column_stack([1 - hit, hit])
    )
    chart = curves.calibration(answers, bins=2)
    low, high = wilson(1, 2, 0.95)
    assert [part["count"] for part in chart["bins"]] == [2, 2]
    assert [part["predicted"] for part in chart["bins"]] == pytest.approx([0.25, 0.75])
    assert [part["observed"] for part in chart["bins"]] == [0.5, 0.5]
    assert [(part["observed_low"], part["observed_high"]) for part in chart["bins"]] == [(low, high)] * 2
    assert chart["ece"] == pytest.approx(0.25)
    assert [part["count"] for part in curves.calibration(answers)["bins"]] == [1] * 4
    assert [part["count"] for part in curves.calibration(binary(40))["bins"]] == [4] * 10


def test_an_interval_of_calibration_includes_the_observed_share() -> None:
    scores = np.tile([0.0, 1.0], (10, 1))
    chart = curves.calibration(LabelledPredictions("classification", np.ones(10, int), np.ones(10, int), scores), 1)
    (part,) = chart["bins"]
    assert (part["observed"], part["observed_high"], chart["ece"]) == (1.0, 1.0, 0.0)
    assert part["observed_low"] == wilson(10, 10, 0.95)[0]


def test_several_classes_are_calibrated_by_the_chosen_one() -> None:
    scores = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])
    chart = curves.calibration(
        LabelledPredictions("classification", np.array([0, 1, 1]), scores.argmax(axis=1), scores), bins=3
    )
    assert [(part["predicted"], part["observed"]) for part in chart["bins"]] == [(0.4, 0.0), (0.7, 1.0), (0.8, 1.0)]
    assert chart["ece"] == pytest.approx((0.4 + 0.3 + 0.2) / 3)


def test_residuals_are_at_most_2000_rows_evenly_spaced() -> None:
    actual = np.arange(4001.0)
    chart = curves.residuals(LabelledPredictions("regression", actual, actual + 1))
    assert len(chart["actual"]) == 2000
    assert (chart["actual"][0], chart["actual"][-1]) == (0.0, 4000.0)
    assert set(np.diff(chart["actual"])) == {2.0, 3.0}
    assert chart["predicted"] == [value + 1 for value in chart["actual"]]
    few = curves.residuals(LabelledPredictions("regression", actual[:3], actual[:3]))
    assert few == {"predicted": [0.0, 1.0, 2.0], "actual": [0.0, 1.0, 2.0]}
    assert curves.residuals(binary(5)) is None
