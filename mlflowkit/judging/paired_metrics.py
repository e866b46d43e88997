"""The difference of a metric between two models on the same rows, with its paired interval (methods: `metrics`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from mlflowkit.judging import metrics, stats
from mlflowkit.judging.metric_plugins import metric_plugin
from mlflowkit.judging.metrics import LOSSES, BoundsFunction, LabelledPredictions, estimate, require
from mlflowkit.judging.stats import Bounds, Estimate, UndefinedMetricError

if TYPE_CHECKING:
    import numpy as np

Influence = Callable[[LabelledPredictions], "np.ndarray"]
BoundsAndMethod = tuple[BoundsFunction, str]


@dataclass(frozen=True, slots=True)
class Pair:
    """The predictions of candidate and champion on the same rows, and the values of the metric."""

    candidate: LabelledPredictions
    champion: LabelledPredictions
    ours: float
    theirs: float

    def apply(self, function: Influence) -> tuple[np.ndarray, np.ndarray]:
        """A function of the predictions, for the candidate and for the champion."""
        return function(self.candidate), function(self.champion)


def difference(metric: str, candidate: LabelledPredictions, champion: LabelledPredictions) -> Estimate:
    """A metric of the candidate minus the champion's, paired: both predicted the same rows.

    Raises as `metrics.estimate` does. Models that are identical in what the metric reads differ by exactly 0.
    """
    require(metric, candidate)
    require(metric, champion)
    ours, theirs = estimate(metric, candidate), estimate(metric, champion)
    if _is_same(metric, candidate, champion):
        bounds, method = (lambda _: (0.0, 0.0)), "the same answers on every row"
    else:
        bounds_of = _DIFFERENCES.get(metric) or partial(_by_plugin, metric)
        bounds, method = bounds_of(Pair(candidate, champion, ours.value, theirs.value))
    return Estimate(metric, ours.value - theirs.value, ours.samples, bounds, method, ours.unit, ours.basis)


def _is_same(metric: str, candidate: LabelledPredictions, champion: LabelledPredictions) -> bool:
    """Whether two models give the same scores and, unless the metric reads scores only, the same predictions.

    Equal predictions under different scores are two models that agree on these rows: others may tell them apart.
    """
    import numpy as np

    if candidate.scores is not None and champion.scores is not None:
        if not np.array_equal(candidate.scores, champion.scores):
            return False
        if metric in _OF_SCORES:
            return True
    return np.array_equal(candidate.predicted, champion.predicted)


def _by_plugin(metric: str, pair: Pair) -> BoundsAndMethod:
    plugin = metric_plugin(metric)
    assert plugin is not None  # `require` precludes this
    with metrics.translate_plugin_errors(metric):
        change = plugin.difference(pair.candidate, pair.champion)
        if not isinstance(change, Estimate):
            raise TypeError(f"difference returned {change!r}; an Estimate is needed")
    return change.bounds, change.method


def _proportions(pair: Pair) -> BoundsAndMethod:
    import numpy as np

    ours, theirs = pair.apply(lambda predictions: predictions.predicted == predictions.actual)
    neither, second, first, both = (int(count) for count in np.bincount(2 * ours + theirs, minlength=4))
    return partial(stats.newcombe, both, first, second, neither), "Newcombe, paired"


def _recall(pair: Pair) -> BoundsAndMethod:
    positive = pair.candidate.actual == 1
    return _proportions(Pair(pair.candidate.take(positive), pair.champion.take(positive), pair.ours, pair.theirs))


def _by_mover(metric: str, influence: Influence, pair: Pair) -> BoundsAndMethod:
    """From the intervals of both and the correlation of their influence values."""
    first, second = estimate(metric, pair.candidate), estimate(metric, pair.champion)
    correlation = stats.correlation(*pair.apply(influence))

    def bounds(confidence: float) -> Bounds:
        intervals = first.bounds(confidence), second.bounds(confidence)
        return stats.mover_difference(pair.ours, pair.theirs, *intervals, correlation)

    return bounds, "MOVER, paired"


def _by_influence(influence: Influence, pair: Pair) -> BoundsAndMethod:
    """Student's t of the differences of influence, with the degrees of freedom of the rarest class."""
    import numpy as np

    ours, theirs = pair.apply(influence)
    error = math.sqrt(float((ours - theirs).var(ddof=1)) / len(ours))
    rarest = int(np.unique(pair.candidate.actual, return_counts=True)[1].min())
    return _student_bounds(pair, error, rarest - 1, rarest), "influence function, paired"


def _student_bounds(pair: Pair, error: float, freedom: float, rarest: int) -> BoundsFunction:
    """Student's t; where no row weighs differently, bounded by the number of rows of the rarest class."""

    def bounds(confidence: float) -> Bounds:
        half = stats.student_quantile(confidence, freedom) * error
        if error < 1e-12:
            half = stats.no_failure_bound(rarest, confidence)
        return pair.ours - pair.theirs - half, pair.ours - pair.theirs + half

    return bounds


def _roc_auc(pair: Pair) -> BoundsAndMethod:
    positive = pair.candidate.actual == 1
    _, v10, v01 = stats.placements(positive, pair.candidate.class_scores[:, 1])
    _, w10, w01 = stats.placements(positive, pair.champion.class_scores[:, 1])
    error, freedom = stats.placement_error(v10 - w10, v01 - w01)
    return _student_bounds(pair, error, freedom, min(len(v10), len(v01))), "DeLong, paired"


def _mean_bounds(pair: Pair, effects: np.ndarray) -> BoundsFunction:
    return partial(stats.mean_bounds, pair.ours - pair.theirs, effects)


def _by_losses(metric: str, pair: Pair) -> BoundsAndMethod:
    ours, theirs = pair.apply(LOSSES[metric])
    return _mean_bounds(pair, ours - theirs), "Student's t of differences, skewness removed"


def _rmse(pair: Pair) -> BoundsAndMethod:
    if pair.ours == 0 or pair.theirs == 0:
        raise UndefinedMetricError("a model is exact on every row: no interval of the difference can be computed")
    ours, theirs = pair.apply(metrics.squared_errors)
    return _mean_bounds(pair, ours / (2 * pair.ours) - theirs / (2 * pair.theirs)), "influence function, paired"


def _r2(pair: Pair) -> BoundsAndMethod:
    spread = metrics.outcome_spread(pair.candidate)
    ours, theirs = pair.apply(metrics.squared_errors)
    effects = (theirs - ours - (pair.ours - pair.theirs) * spread) / spread.mean()
    return _mean_bounds(pair, effects), "influence function, paired"


def _median(pair: Pair) -> BoundsAndMethod:
    import numpy as np

    ours, theirs = pair.apply(metrics.absolute_errors)
    correlation = stats.correlation((ours > pair.ours).astype(np.float64), (theirs > pair.theirs).astype(np.float64))
    ordered = np.sort(ours), np.sort(theirs)

    def bounds(confidence: float) -> Bounds:
        intervals = [stats.quantile_bounds(errors, 0.5, confidence, len(errors)) for errors in ordered]
        return stats.mover_difference(pair.ours, pair.theirs, intervals[0], intervals[1], correlation)

    return bounds, "order statistics, MOVER, paired"


_OF_SCORES = ("roc_auc", "macro_roc_auc", "average_precision", "log_loss", "brier")
"""Metrics that read the probabilities only: a decision threshold does not move them."""
_DIFFERENCES: Mapping[str, Callable[[Pair], BoundsAndMethod]] = {
    "accuracy": _proportions,
    "recall": _recall,
    "precision": partial(_by_mover, "precision", metrics.precision_influence),
    "f1": partial(_by_mover, "f1", metrics.f1_influence),
    "balanced_accuracy": partial(_by_mover, "balanced_accuracy", metrics.balanced_accuracy_influence),
    "macro_f1": partial(_by_mover, "macro_f1", metrics.macro_f1_influence),
    "roc_auc": _roc_auc,
    "macro_roc_auc": partial(_by_influence, lambda predictions: metrics.macro_roc_auc_parts(predictions)[1]),
    "average_precision": partial(_by_influence, lambda predictions: metrics.average_precision_parts(predictions)[1]),
    "log_loss": partial(_by_losses, "log_loss"),
    "brier": partial(_by_losses, "brier"),
    "mae": partial(_by_losses, "mae"),
    "rmse": _rmse,
    "r2": _r2,
    "median_absolute_error": _median,
}
