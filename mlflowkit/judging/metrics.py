"""Metrics of a model on rows whose outcome is known, each with its interval; and the paired difference of two models.

Every function is pure: `Answers` in, `Estimate` out. Which interval belongs to which metric:

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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from mlflowkit.errors import UsageError
from mlflowkit.judging import stats
from mlflowkit.judging.stats import Bounds, Estimate, UndefinedMetricError

if TYPE_CHECKING:
    import numpy as np

BINARY = ("roc_auc", "average_precision", "precision", "recall", "f1", "brier")
CLASSIFICATION = ("accuracy", "balanced_accuracy", "log_loss", "macro_f1", "macro_roc_auc")
REGRESSION = ("rmse", "mae", "r2", "median_absolute_error")
LOWER_IS_BETTER = ("brier", "log_loss", "rmse", "mae", "median_absolute_error")
_UNIT_INTERVAL = (*BINARY, "accuracy", "balanced_accuracy", "macro_f1", "macro_roc_auc")


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What one model answered on rows whose outcome is known.

    actual     classification: codes of the classes, int64 [n]; regression: values, float64 [n]
    predicted  the same, as the model answered
    scores     classification: probabilities, float64 [n, C], the positive class of a binary task last
    """

    task: Literal["classification", "regression"]
    actual: np.ndarray
    predicted: np.ndarray
    scores: np.ndarray | None = None

    def take(self, rows: np.ndarray) -> Answers:
        """The answers on some rows (indices or a mask)."""
        scores = None if self.scores is None else self.scores[rows]
        return replace(self, actual=self.actual[rows], predicted=self.predicted[rows], scores=scores)

    @property
    def rows(self) -> int:
        return len(self.actual)

    @property
    def classes(self) -> int:
        """How many classes there are; 0 for a regression."""
        return 0 if self.scores is None else int(self.scores.shape[1])


def metrics_of(task: str, classes: int) -> tuple[str, ...]:
    """The metrics that a task has.

    >>> metrics_of("classification", 3)
    ('accuracy', 'balanced_accuracy', 'log_loss', 'macro_f1', 'macro_roc_auc')
    """
    if task == "regression":
        return REGRESSION
    return (*BINARY, *CLASSIFICATION) if classes == 2 else CLASSIFICATION


def fault_of(answers: Answers) -> str:
    """What makes the answers unusable (NaN, infinities, shares that are no probabilities), in words; "" if nothing."""
    import numpy as np

    what = answers.predicted if answers.scores is None else answers.scores
    broken = ~np.isfinite(what).reshape(answers.rows, -1).all(axis=1)
    if broken.any():
        first = int(np.flatnonzero(broken)[0])
        return (
            f"the model answered NaN or infinity on {int(broken.sum()):,} of {answers.rows:,} rows (first: row {first})"
        )
    if answers.scores is not None and answers.rows:
        off = (answers.scores < -1e-4).any(axis=1) | (np.abs(answers.scores.sum(axis=1) - 1) > 1e-2)
        if off.any():
            first = int(np.flatnonzero(off)[0])
            return f"the model's probabilities do not sum to 1 on {int(off.sum()):,} rows (first: row {first})"
    return ""


def estimate(metric: str, answers: Answers) -> Estimate:
    """One metric of one model.

    Raises UndefinedMetricError when the rows cannot say (none, one class only, no spread) and UsageError when the
    task has no such metric.

    >>> import numpy as np
    >>> actual = np.arange(100) % 2
    >>> scores = np.stack([1 - actual * 0.5, actual * 0.5], axis=1)
    >>> estimate("accuracy", Answers("classification", actual, actual, scores)).value
    1.0
    """
    _require(metric, answers)
    made = _ESTIMATES[metric](answers)
    return replace(made, bounds=_clamped(metric, made.bounds))


def difference(metric: str, candidate: Answers, champion: Answers) -> Estimate:
    """A metric of the candidate minus the champion's, paired: both answered the same rows.

    Raises as `estimate` does. Models that gave the very same answers differ by exactly 0.
    """
    import numpy as np

    _require(metric, candidate)
    _require(metric, champion)
    one, two = estimate(metric, candidate), estimate(metric, champion)
    scores = candidate.scores is not None and champion.scores is not None
    if np.array_equal(candidate.predicted, champion.predicted) and (
        not scores or np.array_equal(candidate.scores, champion.scores)  # type: ignore[arg-type]  # both have scores here
    ):
        return Estimate(
            metric, 0.0, one.samples, lambda _: (0.0, 0.0), "the same answers on every row", one.unit, one.basis
        )
    bounds, method = _DIFFERENCES[metric](candidate, champion, one.value, two.value)
    return Estimate(metric, one.value - two.value, one.samples, bounds, method, one.unit, one.basis)


def latency(metric: str, samples_us: np.ndarray, block: int = 1) -> Estimate:
    """A quantile of latency in milliseconds from samples in microseconds, in the order in which they were taken.

    ``metric`` is latency_p50_ms, latency_p95_ms or latency_p99_ms; ``block`` is how many consecutive samples were
    taken in one go. Raises UndefinedMetricError for too few samples.
    """
    import numpy as np

    quantile = int(metric.removeprefix("latency_p").removesuffix("_ms")) / 100
    if len(samples_us) == 0:
        raise UndefinedMetricError("no latency was measured")
    series = np.asarray(samples_us, dtype=np.float64) / 1000
    ordered = np.sort(series)
    value = float(np.quantile(ordered, quantile, method="inverted_cdf"))
    effective = stats.effective_samples((series > value).astype(np.float64), block)
    basis = f"{len(series):,} requests"
    if effective < len(series):
        basis += f" (in blocks of {block}: worth {effective:,.0f} independent ones)"
    return Estimate(
        metric,
        value,
        len(series),
        lambda confidence: stats.quantile_bounds(ordered, quantile, confidence, effective),
        "order statistics, design effect of blocks" if effective < len(series) else "order statistics",
        "ms",
        basis,
    )


def _require(metric: str, answers: Answers) -> None:
    known = metrics_of(answers.task, answers.classes)
    if metric not in known:
        raise UsageError(f"{answers.task} has no metric {metric!r}", hint=f"one of {', '.join(known)}")
    if answers.rows < 2:
        raise UndefinedMetricError(f"{answers.rows} rows: {metric} needs 2 or more")


def _clamped(metric: str, bounds: Callable[[float], Bounds]) -> Callable[[float], Bounds]:
    floor = 0.0 if metric in _UNIT_INTERVAL or metric in LOWER_IS_BETTER else -math.inf
    ceiling = 1.0 if metric in _UNIT_INTERVAL or metric == "r2" else math.inf

    def clamp(confidence: float) -> Bounds:
        low, high = bounds(confidence)
        return max(low, floor), min(high, ceiling)

    return clamp


def _basis(answers: Answers) -> str:
    text = f"{answers.rows:,} rows"
    if answers.classes == 2:
        text += f" ({int((answers.actual == 1).sum()):,} positive)"
    return text


def _made(
    name: str, answers: Answers, value: float, bounds: Callable[[float], Bounds], method: str, basis: str = ""
) -> Estimate:
    return Estimate(name, float(value), answers.rows, bounds, method, basis=basis or _basis(answers))


def _floats(values: object) -> np.ndarray:
    import numpy as np

    return np.asarray(values, dtype=np.float64)


# ---- proportions


def _proportion(name: str, answers: Answers, hits: int, trials: int, of: str) -> Estimate:
    if trials == 0:
        raise UndefinedMetricError(f"{name} is undefined: none of {answers.rows:,} rows is {of}")
    basis = f"{answers.rows:,} rows ({trials:,} {of})" if trials < answers.rows else _basis(answers)
    return _made(name, answers, hits / trials, lambda c: stats.wilson(hits, trials, c), "Wilson", basis)


def _accuracy(answers: Answers) -> Estimate:
    hits = int((answers.actual == answers.predicted).sum())
    return _proportion("accuracy", answers, hits, answers.rows, "a row")


def _precision(answers: Answers) -> Estimate:
    claimed = answers.predicted == 1
    return _proportion(
        "precision", answers, int(answers.actual[claimed].sum()), int(claimed.sum()), "predicted positive"
    )


def _recall(answers: Answers) -> Estimate:
    positive = answers.actual == 1
    return _proportion("recall", answers, int(answers.predicted[positive].sum()), int(positive.sum()), "positive")


def _f1(answers: Answers) -> Estimate:
    """F1 = 2q / (1 + q) with q = TP / (TP + FP + FN), a proportion: given TP + FP + FN, TP is binomial."""
    positive, claimed = answers.actual == 1, answers.predicted == 1
    hits, involved = int((positive & claimed).sum()), int((positive | claimed).sum())
    if not positive.any():
        raise UndefinedMetricError(f"f1 is undefined: none of {answers.rows:,} rows is positive")

    def bounds(confidence: float) -> Bounds:
        low, high = stats.wilson(hits, involved, confidence)
        return 2 * low / (1 + low), 2 * high / (1 + high)

    value = 2 * hits / (involved + hits)
    return _made("f1", answers, value, bounds, "Wilson of TP/(TP+FP+FN)")


def _balanced_accuracy(answers: Answers) -> Estimate:
    present, counts, hits = _recalls(answers)
    shares = [int(hit) / int(count) for hit, count in zip(hits, counts, strict=True)]

    def bounds(confidence: float) -> Bounds:
        intervals = [stats.wilson(int(hit), int(count), confidence) for hit, count in zip(hits, counts, strict=True)]
        return stats.mover_mean(shares, intervals)

    basis = _classes_basis(answers, len(present))
    return _made("balanced_accuracy", answers, math.fsum(shares) / len(shares), bounds, "Wilson, MOVER", basis)


def _recalls(answers: Answers) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Classes that occur, how often, and how often they were told rightly."""
    import numpy as np

    present, codes, counts = np.unique(answers.actual, return_inverse=True, return_counts=True)
    if len(present) < 2:
        raise UndefinedMetricError(f"all {answers.rows:,} rows are of one class")
    hits = np.bincount(codes, weights=answers.actual == answers.predicted, minlength=len(present))
    return present, counts, hits


def _classes_basis(answers: Answers, present: int) -> str:
    if present == answers.classes or answers.classes == 2:
        return _basis(answers)
    return f"{answers.rows:,} rows ({present} of {answers.classes} classes occur)"


# ---- influence functions: the effect of each row on the metric, float64 [n], mean zero


def _precision_influence(answers: Answers) -> np.ndarray:
    import numpy as np

    claimed = answers.predicted == 1
    share = answers.actual[claimed].mean()
    return np.asarray(np.where(claimed, answers.actual - share, 0.0) / claimed.mean())


def _f1_influence(answers: Answers, code: int = 1) -> np.ndarray:
    import numpy as np

    positive, claimed = answers.actual == code, answers.predicted == code
    load = positive.astype(np.float64) + claimed
    both = 2.0 * (positive & claimed)
    return np.asarray((both - both.mean() / load.mean() * load) / load.mean())


def _macro_f1_influence(answers: Answers) -> np.ndarray:
    import numpy as np

    present = np.union1d(answers.actual, answers.predicted)
    return np.asarray(sum(_f1_influence(answers, int(code)) for code in present) / len(present))


def _balanced_accuracy_influence(answers: Answers) -> np.ndarray:
    import numpy as np

    present, counts, hits = _recalls(answers)
    codes = np.searchsorted(present, answers.actual)
    correct = (answers.actual == answers.predicted).astype(np.float64)
    return np.asarray((correct - (hits / counts)[codes]) / (counts / answers.rows)[codes] / len(present))


def _macro_f1(answers: Answers) -> Estimate:
    import numpy as np

    present = np.union1d(answers.actual, answers.predicted)
    values = []
    for code in present:
        positive, claimed = answers.actual == code, answers.predicted == code
        values.append(2 * int((positive & claimed).sum()) / int(positive.sum() + claimed.sum()))
    value = math.fsum(values) / len(values)
    influence = _macro_f1_influence(answers)

    def bounds(confidence: float) -> Bounds:
        if not influence.any():
            return (1 - stats.unanimous(answers.rows, confidence), 1.0)
        return stats.mean_bounds(value, influence, confidence)

    return _made(
        "macro_f1", answers, value, bounds, "influence function, Student's t", _classes_basis(answers, len(present))
    )


# ---- ranking


def _scores(answers: Answers) -> np.ndarray:
    assert answers.scores is not None  # metrics_of offers no ranking metric without scores
    return answers.scores


def _two_of_each(name: str, positive: np.ndarray) -> None:
    hits = int(positive.sum())
    if min(hits, len(positive) - hits) < 2:
        raise UndefinedMetricError(
            f"{name} needs 2 rows of each class; of {len(positive):,} rows {hits:,} are positive"
        )


def _ranking_bounds(value: float, error: float, freedom: float, rarest: int) -> Callable[[float], Bounds]:
    """On the log-odds scale; at 0 or 1, where no error can be estimated, by the count of the rarest class."""

    def bounds(confidence: float) -> Bounds:
        if min(value, 1 - value) < 1e-9:
            slack = stats.unanimous(rarest, confidence)
            return (1 - slack, 1.0) if value > 0.5 else (0.0, slack)
        return stats.logit_bounds(value, error, stats.student_quantile(confidence, freedom))

    return bounds


def _roc_auc(answers: Answers) -> Estimate:
    positive = answers.actual == 1
    _two_of_each("roc_auc", positive)
    value, v10, v01 = stats.placements(positive, _scores(answers)[:, 1])
    error, freedom = stats.placement_error(v10, v01)
    bounds = _ranking_bounds(value, error, freedom, min(len(v10), len(v01)))
    return _made("roc_auc", answers, value, bounds, "DeLong, logit")


def _macro_roc_auc_parts(answers: Answers) -> tuple[float, np.ndarray, int, int]:
    """One-vs-rest areas averaged over the classes that occur: value, influence, rarest count, classes that occur."""
    import numpy as np

    present, counts = np.unique(answers.actual, return_counts=True)
    if len(present) < 2 or counts.min() < 2:
        raise UndefinedMetricError(
            f"macro_roc_auc needs 2 classes with 2 rows each; the rarest of {len(present)} has {int(counts.min())}"
        )
    values, influence = [], np.zeros(answers.rows)
    for code in present:
        positive = answers.actual == code
        value, v10, v01 = stats.placements(positive, _scores(answers)[:, code])
        values.append(value)
        influence[positive] += (v10 - value) / positive.mean() / len(present)
        influence[~positive] += (v01 - value) / (1 - positive.mean()) / len(present)
    return math.fsum(values) / len(values), influence, int(counts.min()), len(present)


def _macro_roc_auc(answers: Answers) -> Estimate:
    value, influence, rarest, present = _macro_roc_auc_parts(answers)
    error = math.sqrt(float(influence.var(ddof=1)) / answers.rows)
    bounds = _ranking_bounds(value, error, rarest - 1, rarest)
    return _made("macro_roc_auc", answers, value, bounds, "influence function, logit", _classes_basis(answers, present))


def _average_precision_parts(answers: Answers) -> tuple[float, np.ndarray]:
    """Average precision, and its influence function, in n log n.

    AP = E[A / (A + B) | positive], with A(s) and B(s) the shares of rows that are positive, negative, and score s
    or more. A row moves the precision at every threshold below it, and, if positive, the average itself.
    """
    import numpy as np

    positive = answers.actual == 1
    _two_of_each("average_precision", positive)
    order = np.argsort(-_scores(answers)[:, 1], kind="stable")
    ranked = _scores(answers)[order, 1]
    hit = positive[order].astype(np.float64)
    ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    group = np.repeat(np.arange(len(ends)), np.diff(np.append(-1, ends)))
    rows, share = answers.rows, positive.mean()
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


def _average_precision_bias(answers: Answers, value: float, groups: int = 20) -> float:
    """How much the sample's average precision flatters: a delete-a-group jackknife, groups stratified by class."""
    import numpy as np

    order = np.argsort(answers.actual, kind="stable")
    number = np.empty(answers.rows, dtype=np.int64)
    number[order] = np.arange(answers.rows) % groups
    parts = [_average_precision_parts(answers.take(number != group))[0] for group in range(groups)]
    return (groups - 1) * (math.fsum(parts) / groups - value)


def _average_precision(answers: Answers) -> Estimate:
    value, influence = _average_precision_parts(answers)
    hits = int((answers.actual == 1).sum())
    error = math.sqrt(float(influence.var(ddof=1)) / answers.rows)
    rarest = min(hits, answers.rows - hits)

    def bounds(confidence: float) -> Bounds:
        centre = value
        if 10 <= rarest <= 2000:  # below there is nothing to leave out, above nothing to mend
            centre = min(max(value - _average_precision_bias(answers, value), value / 2), (1 + value) / 2)
        return _ranking_bounds(centre, error, hits - 1, rarest)(confidence)

    return _made("average_precision", answers, value, bounds, "influence function, logit")


# ---- means of a loss a row


def _log_losses(answers: Answers) -> np.ndarray:
    """Minus the logarithm of the probability given to the actual class, clipped at single precision."""
    import numpy as np

    scores = _scores(answers)
    chosen = np.take_along_axis(scores, answers.actual[:, None], axis=1)[:, 0] / scores.sum(axis=1)
    tiny = float(np.finfo(np.float32).eps)
    return np.asarray(-np.log(np.clip(chosen, tiny, 1 - tiny)))


def _brier_losses(answers: Answers) -> np.ndarray:
    return _floats((_scores(answers)[:, 1] - (answers.actual == 1)) ** 2)


def _absolute_errors(answers: Answers) -> np.ndarray:
    import numpy as np

    return np.asarray(np.abs(answers.predicted - answers.actual))


def _squared_errors(answers: Answers) -> np.ndarray:
    return _floats((answers.predicted - answers.actual) ** 2)


_LOSSES: Mapping[str, Callable[[Answers], np.ndarray]] = {
    "log_loss": _log_losses,
    "brier": _brier_losses,
    "mae": _absolute_errors,
    "rmse": _squared_errors,
}


def _mean_loss(name: str) -> Callable[[Answers], Estimate]:
    def made(answers: Answers) -> Estimate:
        losses = _LOSSES[name](answers)
        value = float(losses.mean())

        def bounds(confidence: float) -> Bounds:
            return stats.mean_bounds(value, losses - value, confidence)

        return _made(name, answers, value, bounds, "Student's t, skewness removed")

    return made


def _rmse(answers: Answers) -> Estimate:
    """Squares of errors have long tails: each bound is the wider of those made on the scales of squares and logs."""
    squares = _squared_errors(answers)
    mean = float(squares.mean())

    def bounds(confidence: float) -> Bounds:
        low, high = stats.mean_bounds(mean, squares - mean, confidence)
        logs = [mean * math.exp(log) for log in stats.mean_bounds(0.0, squares / mean - 1, confidence)]
        return math.sqrt(max(min(low, logs[0]), 0.0)), math.sqrt(max(high, logs[1]))

    return _made("rmse", answers, math.sqrt(mean), bounds, "Student's t of squares, skewness removed")


def _spread(answers: Answers) -> np.ndarray:
    """Squared distance of each outcome from the mean outcome."""
    squares = _floats((answers.actual - answers.actual.mean()) ** 2)
    if not squares.any():
        raise UndefinedMetricError(f"r2 is undefined: all {answers.rows:,} outcomes are the same")
    return squares


def _r2(answers: Answers) -> Estimate:
    spread, squares = _spread(answers), _squared_errors(answers)
    if not squares.any():
        raise UndefinedMetricError(f"the model is exact on all {answers.rows:,} rows: no interval can be made")
    ratio = float(squares.mean() / spread.mean())
    influence = squares / squares.mean() - spread / spread.mean()

    def bounds(confidence: float) -> Bounds:
        low, high = stats.mean_bounds(math.log(ratio), influence, confidence)
        return 1 - math.exp(high), 1 - math.exp(low)

    return _made("r2", answers, 1 - ratio, bounds, "influence function of log(SSE/SST)")


def _median_absolute_error(answers: Answers) -> Estimate:
    import numpy as np

    errors = np.sort(_absolute_errors(answers))

    def bounds(confidence: float) -> Bounds:
        return stats.quantile_bounds(errors, 0.5, confidence, len(errors))

    return _made("median_absolute_error", answers, float(np.median(errors)), bounds, "order statistics")


_ESTIMATES: Mapping[str, Callable[[Answers], Estimate]] = {
    "accuracy": _accuracy,
    "precision": _precision,
    "recall": _recall,
    "f1": _f1,
    "balanced_accuracy": _balanced_accuracy,
    "macro_f1": _macro_f1,
    "roc_auc": _roc_auc,
    "macro_roc_auc": _macro_roc_auc,
    "average_precision": _average_precision,
    "log_loss": _mean_loss("log_loss"),
    "brier": _mean_loss("brier"),
    "mae": _mean_loss("mae"),
    "rmse": _rmse,
    "r2": _r2,
    "median_absolute_error": _median_absolute_error,
}

# ---- differences: (candidate, champion, value of one, value of the other) -> bounds, method

Difference = Callable[[Answers, Answers, float, float], tuple[Callable[[float], Bounds], str]]


def _paired_proportions(
    candidate: Answers, champion: Answers, _one: float, _two: float
) -> tuple[Callable[[float], Bounds], str]:
    import numpy as np

    right, left = candidate.predicted == candidate.actual, champion.predicted == champion.actual
    table = np.bincount(2 * right + left, minlength=4)
    neither, second, first, both = (int(count) for count in table)
    return (lambda confidence: stats.newcombe(both, first, second, neither, confidence)), "Newcombe, paired"


def _paired_recall(
    candidate: Answers, champion: Answers, one: float, two: float
) -> tuple[Callable[[float], Bounds], str]:
    positive = candidate.actual == 1
    return _paired_proportions(candidate.take(positive), champion.take(positive), one, two)


def _by_mover(name: str, influence: Callable[[Answers], np.ndarray]) -> Difference:
    """From the intervals of both and the correlation of their influence values."""

    def bounds_of(
        candidate: Answers, champion: Answers, one: float, two: float
    ) -> tuple[Callable[[float], Bounds], str]:
        first, second = estimate(name, candidate), estimate(name, champion)
        correlation = stats.correlation(influence(candidate), influence(champion))

        def bounds(confidence: float) -> Bounds:
            return stats.mover_difference(one, two, first.bounds(confidence), second.bounds(confidence), correlation)

        return bounds, "MOVER, paired"

    return bounds_of


def _by_influence(influence: Callable[[Answers], np.ndarray]) -> Difference:
    """Student's t of the differences of influence, with the freedom of the rarest class."""

    def bounds_of(
        candidate: Answers, champion: Answers, one: float, two: float
    ) -> tuple[Callable[[float], Bounds], str]:
        effects = influence(candidate) - influence(champion)
        error = math.sqrt(float(effects.var(ddof=1)) / len(effects))
        return _paired_bounds(
            one - two, error, _rarest(candidate) - 1, _rarest(candidate)
        ), "influence function, paired"

    return bounds_of


def _paired_bounds(value: float, error: float, freedom: float, rarest: int) -> Callable[[float], Bounds]:
    """Student's t; where no row weighs differently, by how many rows of the rarest class could have."""

    def bounds(confidence: float) -> Bounds:
        half = stats.student_quantile(confidence, freedom) * error
        if error < 1e-12:
            half = stats.unanimous(rarest, confidence)
        return value - half, value + half

    return bounds


def _paired_roc_auc(
    candidate: Answers, champion: Answers, one: float, two: float
) -> tuple[Callable[[float], Bounds], str]:
    positive = candidate.actual == 1
    _, v10, v01 = stats.placements(positive, _scores(candidate)[:, 1])
    _, w10, w01 = stats.placements(positive, _scores(champion)[:, 1])
    error, freedom = stats.placement_error(v10 - w10, v01 - w01)
    return _paired_bounds(one - two, error, freedom, min(len(v10), len(v01))), "DeLong, paired"


def _paired_losses(name: str) -> Difference:
    def bounds_of(
        candidate: Answers, champion: Answers, one: float, two: float
    ) -> tuple[Callable[[float], Bounds], str]:
        effects = _LOSSES[name](candidate) - _LOSSES[name](champion)
        method = "Student's t of differences, skewness removed"
        return (lambda confidence: stats.mean_bounds(one - two, effects, confidence)), method

    return bounds_of


def _paired_rmse(
    candidate: Answers, champion: Answers, one: float, two: float
) -> tuple[Callable[[float], Bounds], str]:
    if one == 0 or two == 0:
        raise UndefinedMetricError("a model is exact on every row: no interval of the difference can be made")
    effects = _squared_errors(candidate) / (2 * one) - _squared_errors(champion) / (2 * two)
    return (lambda confidence: stats.mean_bounds(one - two, effects, confidence)), "influence function, paired"


def _paired_r2(candidate: Answers, champion: Answers, one: float, two: float) -> tuple[Callable[[float], Bounds], str]:
    spread = _spread(candidate)
    gain = _squared_errors(champion) - _squared_errors(candidate)
    effects = (gain - (one - two) * spread) / spread.mean()
    return (lambda confidence: stats.mean_bounds(one - two, effects, confidence)), "influence function, paired"


def _paired_median(
    candidate: Answers, champion: Answers, one: float, two: float
) -> tuple[Callable[[float], Bounds], str]:
    import numpy as np

    first, second = _absolute_errors(candidate), _absolute_errors(champion)
    correlation = stats.correlation((first > one).astype(np.float64), (second > two).astype(np.float64))
    first, second = np.sort(first), np.sort(second)

    def bounds(confidence: float) -> Bounds:
        intervals = [stats.quantile_bounds(errors, 0.5, confidence, len(errors)) for errors in (first, second)]
        return stats.mover_difference(one, two, intervals[0], intervals[1], correlation)

    return bounds, "order statistics, MOVER, paired"


def _rarest(answers: Answers) -> int:
    import numpy as np

    return int(np.unique(answers.actual, return_counts=True)[1].min())


_DIFFERENCES: Mapping[str, Difference] = {
    "accuracy": _paired_proportions,
    "recall": _paired_recall,
    "precision": _by_mover("precision", _precision_influence),
    "f1": _by_mover("f1", _f1_influence),
    "balanced_accuracy": _by_mover("balanced_accuracy", _balanced_accuracy_influence),
    "macro_f1": _by_mover("macro_f1", _macro_f1_influence),
    "roc_auc": _paired_roc_auc,
    "macro_roc_auc": _by_influence(lambda answers: _macro_roc_auc_parts(answers)[1]),
    "average_precision": _by_influence(lambda answers: _average_precision_parts(answers)[1]),
    "log_loss": _paired_losses("log_loss"),
    "brier": _paired_losses("brier"),
    "mae": _paired_losses("mae"),
    "rmse": _paired_rmse,
    "r2": _paired_r2,
    "median_absolute_error": _paired_median,
}
