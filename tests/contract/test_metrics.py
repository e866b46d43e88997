"""The built-in metrics pass the contract of metrics."""

from __future__ import annotations

from typing import ClassVar

import pytest

from mlflowkit.judging import metrics, paired_metrics
from mlflowkit.judging.metrics import LabelledPredictions
from mlflowkit.judging.stats import Estimate
from mlflowkit.plugins import MeanMetric, Metric
from mlflowkit.testing import MetricContract

NAMES = (*metrics.BINARY, *metrics.CLASSIFICATION, *metrics.REGRESSION)


class TestBuiltInMetrics(MetricContract):
    @pytest.fixture(autouse=True, params=NAMES)
    def choose(self, request: pytest.FixtureRequest) -> None:
        self.name = request.param

    def metric(self) -> Metric:
        metric = Metric()
        metric.task = "regression" if self.name in metrics.REGRESSION else "classification"  # type: ignore[misc]
        metric.floor, metric.ceiling = metrics.limits(self.name)  # type: ignore[misc]
        return metric

    def estimate(self, predictions: LabelledPredictions) -> Estimate:
        return metrics.estimate(self.name, predictions)

    def difference(self, candidate: LabelledPredictions, champion: LabelledPredictions) -> Estimate:
        return paired_metrics.difference(self.name, candidate, champion)


class SquaredError(MeanMetric):
    name = "squared_error"
    task = "regression"
    lower_is_better = True
    floor: ClassVar[float] = 0.0

    def values(self, predictions):
        return metrics.squared_errors(predictions)


class UnpairedSquaredError(SquaredError):
    difference = Metric.difference


class TestMeanMetric(MetricContract):
    coverage_trials = 400

    def metric(self) -> Metric:
        return SquaredError()


class TestDefaultDifference(MetricContract):
    def metric(self) -> Metric:
        return UnpairedSquaredError()
