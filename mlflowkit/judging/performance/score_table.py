"""Rows of a binary classifier by cell of the score, predicted and actual class: metrics, and their variances.

A metric is one function of such a table. Its variance under any sampling of rows follows from its influence function
(Hampel, JASA 1974): the metric's derivative towards one more row of each kind, taken numerically. So realised metrics
(whole counts) and estimated ones (expected counts) share their formulas, and a table adds up over panes and days.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlflowkit.judging import stats

Array = NDArray[np.float64]

LIMIT, STEP = 9.0, 0.1
CELLS = round(2 * LIMIT / STEP)
"""Score cells of equal width in log-odds from -9 to 9, as fine at 0.001 as at 0.5; beyond counts in the last ones."""
LOWER_IS_BETTER = ("brier", "log_loss", "absolute_error")
_CLIP = 1e-7
_NUDGE = 1e-6


def score_cell(score: float) -> int:
    """The cell of a score (the positive class's probability); NaN and infinities are refused by ValueError.

    >>> score_cell(0.5), score_cell(0.0), score_cell(1.0)
    (90, 0, 179)
    """
    if not math.isfinite(score):
        raise ValueError(f"{score} is no score")
    score = min(max(score, _CLIP), 1 - _CLIP)
    return min(max(math.floor((math.log(score / (1 - score)) + LIMIT) / STEP + 1e-9), 0), CELLS - 1)


def score_cells(scores: Array) -> NDArray[np.int64]:
    """The cell of each finite score.

    >>> score_cells(np.array([0.5, 0.0, 1.0])).tolist()
    [90, 0, 179]
    """
    clipped = np.clip(scores.astype(np.float64), _CLIP, 1 - _CLIP)
    cells = np.floor((np.log(clipped / (1 - clipped)) + LIMIT) / STEP + 1e-9)
    return np.clip(cells, 0, CELLS - 1).astype(np.int64)


def cell_scores() -> Array:
    """The score in the middle of each cell, float64 [`CELLS`]."""
    middle: Array = 1 / (1 + np.exp(LIMIT - STEP * (np.arange(CELLS) + 0.5)))
    return middle


@dataclass(frozen=True, slots=True, eq=False)
class ScoreTable:
    """``scores`` ascend, float64 [K]; ``counts`` [K, predicted, actual] are rows, or expected rows; >= 0."""

    scores: Array
    counts: Array

    @property
    def rows(self) -> float:
        return float(self.counts.sum())

    def __add__(self, other: ScoreTable) -> ScoreTable:
        return ScoreTable(self.scores, self.counts + other.counts)


def table_of_rows(scores: Array, predicted: NDArray[np.int64], actual: NDArray[np.int64]) -> ScoreTable:
    """The table of single rows, a cell for each distinct score."""
    unique, cells = np.unique(scores, return_inverse=True)
    counts = np.zeros((len(unique), 2, 2))
    np.add.at(counts, (cells, predicted, actual), 1.0)
    return ScoreTable(unique, counts)


def coarsened(table: ScoreTable, cells: int = 200) -> ScoreTable:
    """The table with at most ``cells`` cells of consecutive scores, of about the same number of rows."""
    if len(table.scores) <= cells:
        return table
    sizes = table.counts.sum((1, 2))
    steps = np.floor((np.cumsum(sizes) - sizes / 2) / sizes.sum() * cells)
    groups = np.unique(steps, return_inverse=True)[1]
    counts = np.zeros((int(groups.max()) + 1, 2, 2))
    np.add.at(counts, groups, table.counts)
    weights = np.bincount(groups, weights=sizes)
    return ScoreTable(np.bincount(groups, weights=table.scores * sizes) / np.maximum(weights, 1e-300), counts)


def _roc_auc(scores: Array, counts: Array) -> Array:
    positive, negative = counts[..., 1].sum(-1), counts[..., 0].sum(-1)
    below = np.cumsum(negative, axis=-1) - negative / 2
    value: Array = (positive * below).sum(-1) / (positive.sum(-1) * negative.sum(-1))
    return value


def _average_precision(scores: Array, counts: Array) -> Array:
    positive, rows = counts[..., 1].sum(-1)[..., ::-1], counts.sum((-1, -2))[..., ::-1]
    above, claimed = np.cumsum(positive, axis=-1), np.cumsum(rows, axis=-1)
    precision = np.divide(above, claimed, out=np.zeros_like(above), where=claimed > 0)
    value: Array = (precision * positive).sum(-1) / positive.sum(-1)
    return value


def _accuracy(scores: Array, counts: Array) -> Array:
    value: Array = (counts[..., 0, 0] + counts[..., 1, 1]).sum(-1) / counts.sum((-1, -2, -3))
    return value


def _recall(scores: Array, counts: Array) -> Array:
    value: Array = counts[..., 1, 1].sum(-1) / counts[..., 1].sum((-1, -2))
    return value


def _precision(scores: Array, counts: Array) -> Array:
    value: Array = counts[..., 1, 1].sum(-1) / counts[..., 1, :].sum((-1, -2))
    return value


def _f1(scores: Array, counts: Array) -> Array:
    hits, wrong = counts[..., 1, 1].sum(-1), (counts[..., 0, 1] + counts[..., 1, 0]).sum(-1)
    value: Array = 2 * hits / (2 * hits + wrong)
    return value


def _brier(scores: Array, counts: Array) -> Array:
    actual = counts.sum(-2)
    value: Array = (actual[..., 1] * (1 - scores) ** 2 + actual[..., 0] * scores**2).sum(-1) / actual.sum((-1, -2))
    return value


def _log_loss(scores: Array, counts: Array) -> Array:
    clipped = np.clip(scores, _CLIP, 1 - _CLIP)
    actual = counts.sum(-2)
    loss = actual[..., 1] * -np.log(clipped) + actual[..., 0] * -np.log1p(-clipped)
    value: Array = loss.sum(-1) / actual.sum((-1, -2))
    return value


_METRICS: dict[str, Callable[[Array, Array], Array]] = {
    "roc_auc": _roc_auc,
    "average_precision": _average_precision,
    "accuracy": _accuracy,
    "recall": _recall,
    "precision": _precision,
    "f1": _f1,
    "brier": _brier,
    "log_loss": _log_loss,
}
SCORE_METRICS = tuple(_METRICS)
"""Metrics that a table of scores has."""


def metric_values(metric: str, scores: Array, counts: Array) -> Array:
    """A metric of each table: ``counts`` [..., K, 2, 2] to [...]; NaN where the rows do not determine it."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return _METRICS[metric](scores, counts)


def metric_value(metric: str, table: ScoreTable) -> float:
    """A metric of one table; NaN where the rows do not determine it (no positives, no rows).

    >>> table = table_of_rows(np.array([0.1, 0.4, 0.8]), np.array([0, 0, 1]), np.array([0, 1, 1]))
    >>> metric_value("roc_auc", table), metric_value("recall", table)
    (1.0, 0.5)
    """
    return float(metric_values(metric, table.scores, table.counts))


def influence(metric: str, table: ScoreTable) -> Array:
    """The influence of a row of each kind on the metric, [K, 2, 2]; 0 for kinds that do not occur."""
    shares = table.counts / table.rows
    kinds = np.argwhere(shares > 0)
    result = np.zeros_like(shares)
    base = metric_value(metric, ScoreTable(table.scores, shares))
    for part in np.array_split(kinds, len(kinds) // 256 + 1):
        nudged = np.repeat(shares[None] * (1 - _NUDGE), len(part), axis=0)
        nudged[np.arange(len(part)), part[:, 0], part[:, 1], part[:, 2]] += _NUDGE
        values = metric_values(metric, table.scores, nudged)
        result[part[:, 0], part[:, 1], part[:, 2]] = (values - base) / _NUDGE
    return result


def trials(metric: str, table: ScoreTable) -> tuple[float, float] | None:
    """(successes, rows that can succeed) of a metric that is a share; None for any other."""
    hits = float(table.counts[:, 1, 1].sum())
    if metric == "accuracy":
        return hits + float(table.counts[:, 0, 0].sum()), table.rows
    if metric == "recall":
        return hits, float(table.counts[:, :, 1].sum())
    return (hits, float(table.counts[:, 1].sum())) if metric == "precision" else None


def sampling_variance(metric: str, table: ScoreTable, effective: float) -> float:
    """The variance of the metric of ``effective`` independent rows from the table's distribution.

    Of a share never 0: two successes and two failures are added (Agresti & Coull, The American Statistician 1998).
    """
    share = trials(metric, table)
    if share is not None:
        hits, rows = (number * effective / table.rows for number in share)
        rate = (hits + 2) / (rows + 4)
        return rate * (1 - rate) / max(rows, 1e-9)
    squares = float((table.counts / table.rows * influence(metric, table) ** 2).sum())
    return squares / effective


def interval(metric: str, value: float, error: float, confidence: float) -> tuple[float, float]:
    """The interval of a metric with a standard error; on the log-odds scale for one between 0 and 1."""
    z = stats.normal_quantile(confidence)
    if metric in ("log_loss", "absolute_error"):
        return max(value - z * error, 0.0), value + z * error
    inside = min(max(value, 1e-4), 1 - 1e-4)
    low, high = stats.logit_bounds(inside, error, z)
    return min(low, value), max(high, value)
