"""Metrics of a model on labelled rows, each with its interval. The paired difference of two models: `paired_metrics`.

Every function is pure: `LabelledPredictions` in, `Estimate` out. The interval of each metric:

====================== ============================================ ============================================
metric                 one model                                    candidate minus champion, on the same rows
====================== ============================================ ============================================
accuracy, recall       Wilson score                                 Newcombe, paired proportions
precision              Wilson score                                 MOVER with the correlation of influence
f1                     Wilson score of TP / (TP + FP + FN)          MOVER with the correlation of influence
balanced_accuracy      Wilson a class, combined by MOVER            MOVER with the correlation of influence
macro_f1               influence function, Student's t              MOVER with the correlation of influence
roc_auc                DeLong on the log-odds scale                 DeLong, paired
macro_roc_auc          influence function on the log-odds scale     influence function, Student's t
average_precision      influence function on the log-odds scale     influence function, Student's t
log_loss, brier, mae   Student's t, skewness removed (Hall)         the same, of the differences a row
rmse                   the same, of squared errors, then the root   influence function, Student's t (Hall)
r2                     influence function of log(SSE / SST)         influence function, Student's t (Hall)
median_absolute_error  order statistics                             MOVER with the correlation of exceedances
====================== ============================================ ============================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from mlflowkit.errors import MlkitError, UsageError, UserCodeError
from mlflowkit.judging import stats
from mlflowkit.judging.metric_plugins import metric_plugin
from mlflowkit.judging.stats import Bounds, Estimate, UndefinedMetricError
from mlflowkit.system import entry_points
from mlflowkit.system.text import first_line

if TYPE_CHECKING:
    import numpy as np

BINARY = ("roc_auc", "average_precision", "precision", "recall", "f1", "brier")
CLASSIFICATION = ("accuracy", "balanced_accuracy", "log_loss", "macro_f1", "macro_roc_auc")
REGRESSION = ("rmse", "mae", "r2", "median_absolute_error")
LATENCY = ("latency_p50_ms", "latency_p95_ms", "latency_p99_ms")
LATENCY_RATIOS: Mapping[str, float] = {"latency_ratio": 0.5, "latency_p95_ratio": 0.95, "latency_p99_ratio": 0.99}
"""Ratios of a latency quantile of two graphs that were measured in the same rounds, and the quantile of each."""
TIMES = (*LATENCY, *LATENCY_RATIOS)
"""Metrics that are measured on a machine, and not on rows."""
_LOWER_IS_BETTER = ("brier", "log_loss", "rmse", "mae", "median_absolute_error", *TIMES)
_UNIT_INTERVAL = (*BINARY, "accuracy", "balanced_accuracy", "macro_f1", "macro_roc_auc")

BoundsFunction = Callable[[float], Bounds]
"""The interval at a confidence."""


@dataclass(frozen=True, slots=True, eq=False)
class LabelledPredictions:
    """A model's predictions on rows whose outcome is known.

    actual     classification: codes of the classes, int64 [n]; regression: values, float64 [n]
    predicted  the same, as predicted by the model
    scores     classification: probabilities, float64 [n, C], the positive class of a binary task last
    """

    task: Literal["classification", "regression"]
    actual: np.ndarray
    predicted: np.ndarray
    scores: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> LabelledPredictions:
        """The predictions on some rows (indices or a mask)."""
        scores = None if self.scores is None else self.scores[rows]
        return replace(self, actual=self.actual[rows], predicted=self.predicted[rows], scores=scores)

    @property
    def rows(self) -> int:
        return len(self.actual)

    @property
    def classes(self) -> int:
        """Number of classes; 0 for a regression."""
        return 0 if self.scores is None else int(self.scores.shape[1])

    @property
    def class_scores(self) -> np.ndarray:
        """``scores`` of a classification; `metrics_of` offers no metric that needs them to other tasks."""
        assert self.scores is not None
        return self.scores


def metrics_of(task: str, classes: int) -> tuple[str, ...]:
    """The metrics defined for a task.

    >>> metrics_of("classification", 3)
    ('accuracy', 'balanced_accuracy', 'log_loss', 'macro_f1', 'macro_roc_auc')
    """
    if task == "regression":
        return REGRESSION
    return (*BINARY, *CLASSIFICATION) if classes == 2 else CLASSIFICATION


def is_built_in(metric: str) -> bool:
    """Whether mlflowkit itself has a metric, of predictions or of latency."""
    return metric in _ESTIMATES or metric in TIMES


def is_defined(metric: str, task: str, classes: int | None = None) -> bool:
    """Whether a task has a metric, built in or of a plugin; without ``classes``, for any number of them.

    Raises UsageError for a plugin that is not fit.
    """
    if metric in _ESTIMATES:
        return metric in metrics_of(task, 2 if classes is None else classes)
    plugin = metric_plugin(metric)
    return plugin is not None and plugin.task == task and not (plugin.binary and classes not in (2, None))


def lower_is_better(metric: str) -> bool:
    """The direction of a metric; False for one that is not installed."""
    if is_built_in(metric):
        return metric in _LOWER_IS_BETTER
    plugin = metric_plugin(metric)
    return plugin is not None and plugin.lower_is_better


def limits(metric: str) -> Bounds:
    """The smallest and the largest value of a metric.

    >>> limits("roc_auc"), limits("r2"), limits("mae")
    ((0.0, 1.0), (-inf, 1.0), (0.0, inf))
    """
    if metric in _UNIT_INTERVAL:
        return 0.0, 1.0
    if is_built_in(metric):
        return (0.0, math.inf) if metric in _LOWER_IS_BETTER else (-math.inf, 1.0)
    plugin = metric_plugin(metric)
    return (-math.inf, math.inf) if plugin is None else (plugin.floor, plugin.ceiling)


def unusable_reason(predictions: LabelledPredictions) -> str:
    """Why predictions cannot be used (NaN, infinities, values that are no probabilities); "" if they can."""
    import numpy as np

    values = predictions.predicted if predictions.scores is None else predictions.scores
    broken = ~np.isfinite(values).reshape(predictions.rows, -1).all(axis=1)
    if broken.any():
        first = int(np.flatnonzero(broken)[0])
        count = f"{int(broken.sum()):,} of {predictions.rows:,} rows (first: row {first})"
        return f"the model answered NaN or infinity on {count}"
    if predictions.scores is not None and predictions.rows:
        off = (predictions.scores < -1e-4).any(axis=1) | (np.abs(predictions.scores.sum(axis=1) - 1) > 1e-2)
        if off.any():
            first = int(np.flatnonzero(off)[0])
            return f"the model's probabilities do not sum to 1 on {int(off.sum()):,} rows (first: row {first})"
    return ""


def estimate(metric: str, predictions: LabelledPredictions) -> Estimate:
    """One metric of one model.

    Raises UndefinedMetricError when the rows do not determine it (none, one class only, no spread) and UsageError when
    the task has no such metric.

    >>> import numpy as np
    >>> actual = np.arange(100) % 2
    >>> scores = np.stack([1 - actual * 0.5, actual * 0.5], axis=1)
    >>> estimate("accuracy", LabelledPredictions("classification", actual, actual, scores)).value
    1.0
    """
    require(metric, predictions)
    unclamped = _ESTIMATES[metric](predictions) if metric in _ESTIMATES else _plugin_estimate(metric, predictions)
    floor, ceiling = limits(metric)

    def bounds(confidence: float) -> Bounds:
        low, high = unclamped.bounds(confidence)
        return max(low, floor), min(high, ceiling)

    return replace(unclamped, bounds=bounds)


def _plugin_estimate(metric: str, predictions: LabelledPredictions) -> Estimate:
    plugin = metric_plugin(metric)
    assert plugin is not None  # `require` precludes this
    with translate_plugin_errors(metric):
        value = plugin.estimate(predictions)
        if not isinstance(value, Estimate) or not math.isfinite(value.value):
            raise TypeError(f"estimate returned {value!r}; an Estimate with a finite value is needed")
    return replace(value, name=metric, basis=value.basis or _basis(predictions))


@contextmanager
def translate_plugin_errors(metric: str) -> Iterator[None]:
    """Translate exceptions of a metric plugin into a UserCodeError that names it."""
    try:
        yield
    except MlkitError:
        raise
    except Exception as error:
        raise UserCodeError(
            f"the metric {metric} failed: {type(error).__name__}: {first_line(error)}",
            hint=f"its code is {entry_points.find(entry_points.METRICS, metric)}",
        ) from error


def latency(metric: str, samples_us: np.ndarray, block: int = 1) -> Estimate:
    """A quantile of latency in milliseconds from samples in microseconds, in the order of measurement.

    ``metric`` is latency_p50_ms, latency_p95_ms or latency_p99_ms; ``block`` is the number of consecutive samples
    measured in one block. Raises UndefinedMetricError for too few samples.
    """
    import numpy as np

    quantile = int(metric.removeprefix("latency_p").removesuffix("_ms")) / 100
    if len(samples_us) == 0:
        raise UndefinedMetricError("no latency was measured")
    series = np.asarray(samples_us, dtype=np.float64) / 1000
    ordered = np.sort(series)
    value = float(np.quantile(ordered, quantile, method="inverted_cdf"))
    effective = stats.effective_samples((series > value).astype(np.float64), block)
    basis, method = f"{len(series):,} requests", "order statistics"
    if effective < len(series):
        basis += f" (in blocks of {block}: worth {effective:,.0f} independent ones)"
        method += ", design effect of blocks"

    bounds = partial(stats.quantile_bounds, ordered, quantile, effective=effective)
    return Estimate(metric, value, len(series), bounds, method, "ms", basis)


def require(metric: str, predictions: LabelledPredictions) -> None:
    """Raise UsageError for a metric that the task lacks and UndefinedMetricError for fewer than two rows."""
    if not is_defined(metric, predictions.task, predictions.classes):
        names = metrics_of(predictions.task, predictions.classes)
        raise UsageError(f"{predictions.task} has no metric {metric!r}", hint=f"one of {', '.join(names)}")
    if predictions.rows < 2:
        raise UndefinedMetricError(f"{predictions.rows} rows: {metric} needs 2 or more")


def _basis(predictions: LabelledPredictions) -> str:
    text = f"{predictions.rows:,} rows"
    if predictions.classes == 2:
        text += f" ({int((predictions.actual == 1).sum()):,} positive)"
    return text


def _estimate(
    name: str, predictions: LabelledPredictions, value: float, bounds: BoundsFunction, method: str, basis: str = ""
) -> Estimate:
    return Estimate(name, float(value), predictions.rows, bounds, method, basis=basis or _basis(predictions))


# ---- proportions


def _proportion(name: str, predictions: LabelledPredictions, hits: int, trials: int, of: str) -> Estimate:
    if trials == 0:
        raise UndefinedMetricError(f"{name} is undefined: none of {predictions.rows:,} rows is {of}")
    basis = f"{predictions.rows:,} rows ({trials:,} {of})" if trials < predictions.rows else _basis(predictions)
    return _estimate(name, predictions, hits / trials, lambda c: stats.wilson(hits, trials, c), "Wilson", basis)


def _accuracy(predictions: LabelledPredictions) -> Estimate:
    hits = int((predictions.actual == predictions.predicted).sum())
    return _proportion("accuracy", predictions, hits, predictions.rows, "a row")


def _precision(predictions: LabelledPredictions) -> Estimate:
    hits = predictions.actual[predictions.predicted == 1]
    return _proportion("precision", predictions, int(hits.sum()), len(hits), "predicted positive")


def _recall(predictions: LabelledPredictions) -> Estimate:
    hits = predictions.predicted[predictions.actual == 1]
    return _proportion("recall", predictions, int(hits.sum()), len(hits), "positive")


def _f1(predictions: LabelledPredictions) -> Estimate:
    """F1 = 2q / (1 + q) with q = TP / (TP + FP + FN), a proportion: given TP + FP + FN, TP is binomial."""
    positive, claimed = predictions.actual == 1, predictions.predicted == 1
    hits, involved = int((positive & claimed).sum()), int((positive | claimed).sum())
    if not positive.any():
        raise UndefinedMetricError(f"f1 is undefined: none of {predictions.rows:,} rows is positive")

    def bounds(confidence: float) -> Bounds:
        low, high = stats.wilson(hits, involved, confidence)
        return 2 * low / (1 + low), 2 * high / (1 + high)

    return _estimate("f1", predictions, 2 * hits / (involved + hits), bounds, "Wilson of TP/(TP+FP+FN)")


def _balanced_accuracy(predictions: LabelledPredictions) -> Estimate:
    present, counts, hits = _recalls(predictions)
    shares = [int(hit) / int(count) for hit, count in zip(hits, counts, strict=True)]

    def bounds(confidence: float) -> Bounds:
        intervals = [stats.wilson(int(hit), int(count), confidence) for hit, count in zip(hits, counts, strict=True)]
        return stats.mover_mean(shares, intervals)

    basis = _classes_basis(predictions, len(present))
    return _estimate("balanced_accuracy", predictions, math.fsum(shares) / len(shares), bounds, "Wilson, MOVER", basis)


def _recalls(predictions: LabelledPredictions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Classes that occur, their rows, and how many of those were predicted correctly."""
    import numpy as np

    present, codes, counts = np.unique(predictions.actual, return_inverse=True, return_counts=True)
    if len(present) < 2:
        raise UndefinedMetricError(f"all {predictions.rows:,} rows are of one class")
    hits = np.bincount(codes, weights=predictions.actual == predictions.predicted, minlength=len(present))
    return present, counts, hits


def _classes_basis(predictions: LabelledPredictions, present: int) -> str:
    if present == predictions.classes or predictions.classes == 2:
        return _basis(predictions)
    return f"{predictions.rows:,} rows ({present} of {predictions.classes} classes occur)"


# ---- influence functions: the effect of each row on the metric, float64 [n], mean zero


def precision_influence(predictions: LabelledPredictions) -> np.ndarray:
    import numpy as np

    claimed = predictions.predicted == 1
    share = predictions.actual[claimed].mean()
    return np.asarray(np.where(claimed, predictions.actual - share, 0.0) / claimed.mean())


def f1_influence(predictions: LabelledPredictions, code: int = 1) -> np.ndarray:
    import numpy as np

    positive, claimed = predictions.actual == code, predictions.predicted == code
    load = positive.astype(np.float64) + claimed
    both = 2.0 * (positive & claimed)
    return np.asarray((both - both.mean() / load.mean() * load) / load.mean())


def macro_f1_influence(predictions: LabelledPredictions) -> np.ndarray:
    import numpy as np

    present = np.union1d(predictions.actual, predictions.predicted)
    return np.asarray(sum(f1_influence(predictions, int(code)) for code in present) / len(present))


def balanced_accuracy_influence(predictions: LabelledPredictions) -> np.ndarray:
    import numpy as np

    present, counts, hits = _recalls(predictions)
    codes = np.searchsorted(present, predictions.actual)
    correct = (predictions.actual == predictions.predicted).astype(np.float64)
    return np.asarray((correct - (hits / counts)[codes]) / (counts / predictions.rows)[codes] / len(present))


def _macro_f1(predictions: LabelledPredictions) -> Estimate:
    import numpy as np

    present = np.union1d(predictions.actual, predictions.predicted)
    values = []
    for code in present:
        positive, claimed = predictions.actual == code, predictions.predicted == code
        values.append(2 * int((positive & claimed).sum()) / int(positive.sum() + claimed.sum()))
    value = math.fsum(values) / len(values)
    influence = macro_f1_influence(predictions)

    def bounds(confidence: float) -> Bounds:
        if not influence.any():
            slack = stats.no_failure_bound(predictions.rows, confidence)
            return (1 - slack, 1.0) if value > 0.5 else (0.0, slack)
        return stats.mean_bounds(value, influence, confidence)

    basis = _classes_basis(predictions, len(present))
    return _estimate("macro_f1", predictions, value, bounds, "influence function, Student's t", basis)


# ---- ranking


def _require_two_of_each(name: str, positive: np.ndarray) -> None:
    hits = int(positive.sum())
    if min(hits, len(positive) - hits) < 2:
        counts = f"of {len(positive):,} rows {hits:,} are positive"
        raise UndefinedMetricError(f"{name} needs 2 rows of each class; {counts}")


def _ranking_bounds(value: float, error: float, freedom: float, rarest: int) -> BoundsFunction:
    """On the log-odds scale; at 0 or 1, where no error can be estimated, by the count of the rarest class."""

    def bounds(confidence: float) -> Bounds:
        if min(value, 1 - value) < 1e-9:
            slack = stats.no_failure_bound(rarest, confidence)
            return (1 - slack, 1.0) if value > 0.5 else (0.0, slack)
        return stats.logit_bounds(value, error, stats.student_quantile(confidence, freedom))

    return bounds


def _roc_auc(predictions: LabelledPredictions) -> Estimate:
    positive = predictions.actual == 1
    _require_two_of_each("roc_auc", positive)
    value, v10, v01 = stats.placements(positive, predictions.class_scores[:, 1])
    error, freedom = stats.placement_error(v10, v01)
    bounds = _ranking_bounds(value, error, freedom, min(len(v10), len(v01)))
    return _estimate("roc_auc", predictions, value, bounds, "DeLong, logit")


def macro_roc_auc_parts(predictions: LabelledPredictions) -> tuple[float, np.ndarray, int, int]:
    """One-vs-rest areas averaged over the classes that occur: value, influence, rarest count, classes that occur."""
    import numpy as np

    present, counts = np.unique(predictions.actual, return_counts=True)
    if len(present) < 2 or counts.min() < 2:
        rarest = f"the rarest of {len(present)} has {int(counts.min())}"
        raise UndefinedMetricError(f"macro_roc_auc needs 2 classes with 2 rows each; {rarest}")
    values, influence = [], np.zeros(predictions.rows)
    for code in present:
        positive = predictions.actual == code
        value, v10, v01 = stats.placements(positive, predictions.class_scores[:, code])
        values.append(value)
        influence[positive] += (v10 - value) / positive.mean() / len(present)
        influence[~positive] += (v01 - value) / (1 - positive.mean()) / len(present)
    return math.fsum(values) / len(values), influence, int(counts.min()), len(present)


def _macro_roc_auc(predictions: LabelledPredictions) -> Estimate:
    value, influence, rarest, present = macro_roc_auc_parts(predictions)
    error = math.sqrt(float(influence.var(ddof=1)) / predictions.rows)
    bounds = _ranking_bounds(value, error, rarest - 1, rarest)
    basis = _classes_basis(predictions, present)
    return _estimate("macro_roc_auc", predictions, value, bounds, "influence function, logit", basis)


def average_precision_parts(predictions: LabelledPredictions) -> tuple[float, np.ndarray]:
    """Average precision, and its influence function, in n log n.

    AP = E[A / (A + B) | positive], with A(s) and B(s) the shares of rows that are positive, negative, and score s
    or more. A row moves the precision at every threshold below it, and, if positive, the average itself.
    """
    import numpy as np

    positive = predictions.actual == 1
    _require_two_of_each("average_precision", positive)
    order = np.argsort(-predictions.class_scores[:, 1], kind="stable")
    ranked = predictions.class_scores[order, 1]
    hit = positive[order].astype(np.float64)
    ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    group = np.repeat(np.arange(len(ends)), np.diff(np.append(-1, ends)))
    rows, share = predictions.rows, positive.mean()
    above, below = np.cumsum(hit)[ends] / rows, np.cumsum(1 - hit)[ends] / rows
    precision = above / (above + below)
    mass = np.diff(np.append(0.0, above))
    value = float((precision * mass).sum() / share)
    slope = mass / (above + below) ** 2
    tail_b = np.cumsum((below * slope)[::-1])[::-1]
    tail_a = np.cumsum((above * slope)[::-1])[::-1]
    influence = np.empty(rows)
    influence[order] = np.where(hit == 1, precision[group] - value + tail_b[group], -tail_a[group]) / share
    return value, influence


def _average_precision_bias(predictions: LabelledPredictions, value: float, groups: int = 20) -> float:
    """Optimistic bias of the sample's average precision: delete-a-group jackknife, groups stratified by class."""
    import numpy as np

    order = np.lexsort((predictions.class_scores[:, 1], predictions.actual))  # whatever the order of the rows was
    shuffle = np.random.default_rng(0).random(predictions.rows)
    order = order[np.lexsort((shuffle, predictions.actual[order]))]
    number = np.empty(predictions.rows, dtype=np.int64)
    number[order] = np.arange(predictions.rows) % groups
    parts = [average_precision_parts(predictions.take(number != group))[0] for group in range(groups)]
    return (groups - 1) * (math.fsum(parts) / groups - value)


def _average_precision(predictions: LabelledPredictions) -> Estimate:
    value, influence = average_precision_parts(predictions)
    hits = int((predictions.actual == 1).sum())
    error = math.sqrt(float(influence.var(ddof=1)) / predictions.rows)
    rarest = min(hits, predictions.rows - hits)

    def bounds(confidence: float) -> Bounds:
        centre = value
        if 10 <= rarest <= 2000:  # below, groups cannot be left out; above, the bias is negligible
            centre = min(max(value - _average_precision_bias(predictions, value), value / 2), (1 + value) / 2)
        return _ranking_bounds(centre, error, hits - 1, rarest)(confidence)

    return _estimate("average_precision", predictions, value, bounds, "influence function, logit")


# ---- means of a loss a row


def _log_losses(predictions: LabelledPredictions) -> np.ndarray:
    """Minus the logarithm of the probability given to the actual class, clipped at single precision."""
    import numpy as np

    scores = predictions.class_scores
    chosen = np.take_along_axis(scores, predictions.actual[:, None], axis=1)[:, 0] / scores.sum(axis=1)
    tiny = float(np.finfo(np.float32).eps)
    return np.asarray(-np.log(np.clip(chosen, tiny, 1 - tiny)))


def absolute_errors(predictions: LabelledPredictions) -> np.ndarray:
    errors: np.ndarray = abs(predictions.predicted - predictions.actual)
    return errors


def squared_errors(predictions: LabelledPredictions) -> np.ndarray:
    squares: np.ndarray = (predictions.predicted - predictions.actual) ** 2
    return squares


LOSSES: Mapping[str, Callable[[LabelledPredictions], np.ndarray]] = {
    "log_loss": _log_losses,
    "brier": lambda predictions: (predictions.class_scores[:, 1] - (predictions.actual == 1)) ** 2,
    "mae": absolute_errors,
    "rmse": squared_errors,
}


def _mean_loss(name: str, predictions: LabelledPredictions) -> Estimate:
    losses = LOSSES[name](predictions)
    value = float(losses.mean())
    bounds = partial(stats.mean_bounds, value, losses - value)
    return _estimate(name, predictions, value, bounds, "Student's t, skewness removed")


def _rmse(predictions: LabelledPredictions) -> Estimate:
    """Squares of errors have long tails: each bound is the wider of those on the scales of squares and logs."""
    squares = squared_errors(predictions)
    mean = float(squares.mean())

    def bounds(confidence: float) -> Bounds:
        low, high = stats.mean_bounds(mean, squares - mean, confidence)
        logs = [mean * math.exp(log) for log in stats.mean_bounds(0.0, squares / mean - 1, confidence)]
        return math.sqrt(max(min(low, logs[0]), 0.0)), math.sqrt(max(high, logs[1]))

    return _estimate("rmse", predictions, math.sqrt(mean), bounds, "Student's t of squares, skewness removed")


def outcome_spread(predictions: LabelledPredictions) -> np.ndarray:
    """Squared distance of each outcome from the mean outcome."""
    squares: np.ndarray = (predictions.actual - predictions.actual.mean()) ** 2
    if not squares.any():
        raise UndefinedMetricError(f"r2 is undefined: all {predictions.rows:,} outcomes are the same")
    return squares


def _r2(predictions: LabelledPredictions) -> Estimate:
    spread, squares = outcome_spread(predictions), squared_errors(predictions)
    if not squares.any():
        raise UndefinedMetricError(f"the model is exact on all {predictions.rows:,} rows: no interval can be computed")
    ratio = float(squares.mean() / spread.mean())
    influence = squares / squares.mean() - spread / spread.mean()

    def bounds(confidence: float) -> Bounds:
        low, high = stats.mean_bounds(math.log(ratio), influence, confidence)
        return 1 - math.exp(high), 1 - math.exp(low)

    return _estimate("r2", predictions, 1 - ratio, bounds, "influence function of log(SSE/SST)")


def _median_absolute_error(predictions: LabelledPredictions) -> Estimate:
    import numpy as np

    errors = np.sort(absolute_errors(predictions))
    bounds = partial(stats.quantile_bounds, errors, 0.5, effective=len(errors))
    return _estimate("median_absolute_error", predictions, float(np.median(errors)), bounds, "order statistics")


_ESTIMATES: Mapping[str, Callable[[LabelledPredictions], Estimate]] = {
    "accuracy": _accuracy,
    "precision": _precision,
    "recall": _recall,
    "f1": _f1,
    "balanced_accuracy": _balanced_accuracy,
    "macro_f1": _macro_f1,
    "roc_auc": _roc_auc,
    "macro_roc_auc": _macro_roc_auc,
    "average_precision": _average_precision,
    "log_loss": partial(_mean_loss, "log_loss"),
    "brier": partial(_mean_loss, "brier"),
    "mae": partial(_mean_loss, "mae"),
    "rmse": _rmse,
    "r2": _r2,
    "median_absolute_error": _median_absolute_error,
}
