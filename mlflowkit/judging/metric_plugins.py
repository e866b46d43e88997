"""Metrics of installed plugins: the base classes `Metric` and `MeanMetric`, and their lookup by name."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from mlflowkit.errors import UsageError
from mlflowkit.judging import stats
from mlflowkit.judging.stats import Bounds, Estimate
from mlflowkit.system import entry_points
from mlflowkit.system.entry_points import METRICS

if TYPE_CHECKING:
    import numpy as np

    from mlflowkit.judging.metrics import LabelledPredictions


class Metric:
    """A metric of labelled predictions, with its interval. A plugin implements `estimate`, and `difference` if it can.

    name             the name in recipes, and of the entry point
    task             the task that it is defined for; with ``binary`` for two classes only
    lower_is_better  the direction that gates and the optimizer assume
    floor, ceiling   smallest and largest value; intervals are cut there
    """

    name: ClassVar[str]
    task: ClassVar[Literal["classification", "regression"]]
    binary: ClassVar[bool] = False
    lower_is_better: ClassVar[bool] = False
    floor: ClassVar[float] = -math.inf
    ceiling: ClassVar[float] = math.inf

    def estimate(self, predictions: LabelledPredictions) -> Estimate:
        """The value, and its two-sided interval at any confidence. The order of rows makes no difference.

        Raises UndefinedMetricError when the rows do not determine it; there are two rows at least.
        """
        raise NotImplementedError

    def difference(self, candidate: LabelledPredictions, champion: LabelledPredictions) -> Estimate:
        """Candidate minus champion on the same rows, whose answers differ.

        This default ignores that the rows are the same (MOVER without correlation): its interval is wider than a paired
        one for two models that tend to err on the same rows.
        """
        ours, theirs = self.estimate(candidate), self.estimate(champion)

        def bounds(confidence: float) -> Bounds:
            intervals = ours.bounds(confidence), theirs.bounds(confidence)
            return stats.mover_difference(ours.value, theirs.value, *intervals, 0.0)

        return Estimate(self.name, ours.value - theirs.value, ours.samples, bounds, "MOVER, not paired")


class MeanMetric(Metric):
    """A metric that is the mean of a number for each row. A plugin implements `values` only; differences are paired."""

    unit: ClassVar[str] = ""

    def values(self, predictions: LabelledPredictions) -> np.ndarray:
        """The number of each row, float64 [n]."""
        raise NotImplementedError

    def estimate(self, predictions: LabelledPredictions) -> Estimate:
        return self._mean(self.values(predictions))

    def difference(self, candidate: LabelledPredictions, champion: LabelledPredictions) -> Estimate:
        return self._mean(self.values(candidate) - self.values(champion))

    def _mean(self, values: np.ndarray) -> Estimate:
        mean, basis = float(values.mean()), f"{len(values):,} rows"
        bounds = partial(stats.mean_bounds, mean, values - mean)
        return Estimate(self.name, mean, len(values), bounds, "Student's t, skewness removed", self.unit, basis)


def metric_plugin(name: str) -> Metric | None:
    """The installed metric of this name, or None. Raises UsageError for a plugin that is not fit."""
    plugin = entry_points.find(METRICS, name)
    if plugin is None:
        return None
    metric = entry_points.load(METRICS, name)
    if isinstance(metric, type) and issubclass(metric, Metric):
        metric = metric()
    if not isinstance(metric, Metric):
        problem = f"is not a subclass of Metric: {plugin.reference}"
    elif getattr(metric, "name", None) != name or getattr(metric, "task", None) not in ("classification", "regression"):
        problem = f"has no name = {name!r} and task = 'classification' or 'regression'"
    else:
        return metric
    raise UsageError(f"the {plugin} {problem}", hint=f"pip install --upgrade {plugin.distribution}")
