"""Metrics of installed plugins: found by name, defined for their tasks, and named where they are not fit."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from mlflowkit.errors import UsageError, UserCodeError
from mlflowkit.judging import metrics
from mlflowkit.judging.metrics import LabelledPredictions, estimate
from mlflowkit.judging.paired_metrics import difference

MODULE = """
import numpy as np
from mlflowkit.plugins import MeanMetric, Metric


class Wrong(MeanMetric):
    name, task, unit, lower_is_better = "acme_wrong", "classification", "%", True
    floor, ceiling = 0.1, 0.9

    def values(self, predictions):
        return (predictions.actual != predictions.predicted).astype(float)


class Pairs(Wrong):
    name, binary = "acme_pairs", True


class Bias(MeanMetric):
    name, task = "acme_bias", "regression"

    def values(self, predictions):
        return predictions.predicted - predictions.actual


class Broken(Bias):
    name = "acme_broken"

    def values(self, predictions):
        raise KeyError("no column")


class Bare(Bias):
    name = "acme_bare"

    def estimate(self, predictions):
        return 0.5


class HalfBare(Bias):
    name = "acme_half_bare"

    def difference(self, candidate, champion):
        return 0.5


class Endless(Bias):
    name = "acme_endless"

    def values(self, predictions):
        return np.full(predictions.rows, np.inf)


instance = Bias()
instance.name = "acme_instance"
"""
NAMES = {
    "acme_wrong": "Wrong", "acme_pairs": "Pairs", "acme_bias": "Bias", "acme_broken": "Broken", "acme_bare": "Bare",
    "acme_half_bare": "HalfBare", "acme_endless": "Endless", "acme_instance": "instance", "acme_misnamed": "Bias",
    "acme_none": "np",
}  # fmt: skip
PLACE = np.arange(40)
CLASSIFIED = LabelledPredictions("classification", PLACE % 2, (PLACE % 5 > 1).astype(int), np.full((40, 2), 0.5))
OTHER = LabelledPredictions("classification", PLACE % 2, (PLACE % 3 > 1).astype(int), np.full((40, 2), 0.5))
REGRESSED = LabelledPredictions("regression", np.sin(PLACE), np.sin(PLACE) + np.cos(PLACE * 2.0))
SHIFTED = LabelledPredictions("regression", np.sin(PLACE), np.sin(PLACE) + 1 + np.cos(PLACE * 3.0))


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "acme_metrics.py").write_text(MODULE)
    metadata = tmp_path / "acme-2.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Name: acme\nVersion: 2.1\n")
    entries = "".join(f"{name} = acme_metrics:{attribute}\n" for name, attribute in NAMES.items())
    (metadata / "entry_points.txt").write_text(f"[mlflowkit.metrics]\n{entries}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "acme_metrics", raising=False)


def test_a_plugin_is_defined_for_its_task() -> None:
    assert metrics.is_defined("acme_wrong", "classification", 3)
    assert not metrics.is_defined("acme_wrong", "regression")
    assert [metrics.is_defined("acme_pairs", "classification", n) for n in (None, 2, 3)] == [True, True, False]
    assert metrics.is_defined("acme_instance", "regression")
    assert not metrics.is_defined("acme_missing", "regression")


def test_built_in_metrics_are_defined_for_their_classes() -> None:
    assert metrics.is_defined("roc_auc", "classification")
    assert not metrics.is_defined("roc_auc", "classification", 3)
    assert not metrics.is_defined("roc_auc", "regression")
    assert metrics.is_built_in("latency_p99_ms")
    assert not metrics.is_built_in("acme_wrong")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("acme_wrong", True), ("acme_bias", False), ("acme_missing", False), ("log_loss", True), ("accuracy", False),
        ("rmse", True), ("r2", False), ("latency_p50_ms", True),
    ],
)  # fmt: skip
def test_the_direction_of_a_metric(name: str, expected: bool) -> None:
    assert metrics.lower_is_better(name) is expected


def test_the_limits_of_a_metric() -> None:
    assert metrics.limits("acme_wrong") == (0.1, 0.9)
    assert metrics.limits("acme_bias") == metrics.limits("acme_missing") == (-np.inf, np.inf)


def test_an_estimate_has_the_plugins_name_unit_and_basis_and_keeps_to_its_limits() -> None:
    figure = estimate("acme_wrong", CLASSIFIED)
    wrong = float((CLASSIFIED.actual != CLASSIFIED.predicted).mean())
    assert (figure.name, figure.value, figure.samples, figure.unit) == ("acme_wrong", wrong, 40, "%")
    assert (figure.basis, figure.method) == ("40 rows", "Student's t, skewness removed")
    assert figure.bounds(0.9999999) == (0.1, 0.9)
    low, high = figure.bounds(0.8)
    assert 0.1 < low < wrong < high < 0.9


def test_a_difference_is_paired() -> None:
    change = difference("acme_bias", REGRESSED, SHIFTED)
    errors = (REGRESSED.predicted - SHIFTED.predicted).astype(float)
    assert change.value == pytest.approx(errors.mean())
    assert (change.name, change.method) == ("acme_bias", "Student's t, skewness removed")
    low, high = change.bounds(0.95)
    assert low < errors.mean() < high
    assert high - low == pytest.approx(2 * 2.02 * errors.std(ddof=1) / 40**0.5, rel=0.05)


def test_the_same_answers_are_called_so() -> None:
    change = difference("acme_bias", REGRESSED, REGRESSED)
    assert (change.value, change.bounds(0.95), change.method) == (0.0, (0.0, 0.0), "the same answers on every row")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("acme_misnamed", "has no name = 'acme_misnamed' and task = 'classification' or 'regression'"),
        ("acme_none", "is not a subclass of Metric: acme_metrics:np"),
    ],
)
def test_a_plugin_that_is_not_fit_is_named_with_its_distribution(name: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        metrics.is_defined(name, "regression")
    assert caught.value.message == f"the metric {name!r} of acme 2.1 {words}"
    assert caught.value.hint == "pip install --upgrade acme"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("acme_broken", "KeyError: 'no column'"),
        ("acme_bare", "TypeError: estimate returned 0.5; an Estimate with a finite value is needed"),
        ("acme_endless", "TypeError: estimate returned Estimate("),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_plugin_that_fails_is_named(name: str, words: str) -> None:
    with pytest.raises(UserCodeError, match=f"the metric {name} failed") as caught:
        estimate(name, REGRESSED)
    assert words in caught.value.message
    assert f"metric {name!r} of acme 2.1" in caught.value.hint


def test_a_difference_that_is_no_estimate_is_named() -> None:
    with pytest.raises(UserCodeError, match=r"difference returned 0\.5; an Estimate is needed"):
        difference("acme_half_bare", REGRESSED, SHIFTED)


def test_a_metric_that_a_task_lacks_is_a_usage_error() -> None:
    for name in ("acme_wrong", "acme_missing"):
        with pytest.raises(UsageError, match=name):
            estimate(name, REGRESSED)
    with pytest.raises(UsageError, match="acme_bias"):
        difference("acme_bias", CLASSIFIED, OTHER)
