"""Data of a report's charts: confusion matrix, ROC, precision and recall, calibration, residuals. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mlflowkit.judging.metrics import LabelledPredictions
from mlflowkit.judging.stats import wilson
from mlflowkit.values import Json

MAX_POINTS = 500
"""Points of a curve."""
MAX_RESIDUALS = 2000
"""Rows of a scatter plot."""


def confusion(predictions: LabelledPredictions, labels: Sequence[str | int]) -> Json:
    """Counts [actual][predicted] in the order of ``labels``.

    >>> codes, scores = np.array([0, 1, 1]), np.eye(2)[[0, 1, 0]]
    >>> confusion(LabelledPredictions("classification", codes, np.array([0, 1, 0]), scores), ["no", "yes"])["counts"]
    [[1, 0], [1, 1]]
    """
    size = len(labels)
    counts = np.bincount(predictions.actual * size + predictions.predicted, minlength=size * size).reshape(size, size)
    return {"labels": list(labels), "counts": counts.tolist()}


def ranking(predictions: LabelledPredictions) -> tuple[Json, Json]:
    """The ROC curve {fpr, tpr} and the curve of {recall, precision} of a binary task; (None, None) of one class."""
    if predictions.scores is None or predictions.classes != 2:
        return None, None
    hit = (predictions.actual == 1).astype(np.int64)
    positives, negatives = int(hit.sum()), int(len(hit) - hit.sum())
    if not positives or not negatives:
        return None, None
    order = np.argsort(-predictions.scores[:, 1], kind="stable")
    ends = np.append(np.flatnonzero(np.diff(predictions.scores[order, 1])), len(hit) - 1)
    true, false = np.cumsum(hit[order])[ends], np.cumsum(1 - hit[order])[ends]
    kept = _evenly_spaced(len(ends))
    true, false = true[kept], false[kept]
    roc = {"fpr": [0.0, *(false / negatives).tolist()], "tpr": [0.0, *(true / positives).tolist()]}
    return roc, {"recall": (true / positives).tolist(), "precision": (true / (true + false)).tolist()}


def calibration(predictions: LabelledPredictions, bins: int = 10) -> Json:
    """Mean predicted probability against the observed share in bins of equal count, with Wilson intervals, and the
    expected calibration error. Of the positive class of a binary task, of the chosen class of another."""
    if predictions.scores is None or not predictions.rows:
        return None
    if predictions.classes == 2:
        predicted, hit = predictions.scores[:, 1], predictions.actual == 1
    else:
        predicted, hit = predictions.scores.max(axis=1), predictions.scores.argmax(axis=1) == predictions.actual
    order = np.argsort(predicted, kind="stable")
    parts, error = [], 0.0
    for rows in np.array_split(order, min(bins, len(order))):
        mean, share = float(predicted[rows].mean()), float(hit[rows].mean())
        low, high = wilson(int(hit[rows].sum()), len(rows), 0.95)
        interval = {"observed_low": min(low, share), "observed_high": max(high, share)}
        parts.append({"predicted": mean, "observed": share, **interval, "count": len(rows)})
        error += abs(mean - share) * len(rows) / predictions.rows
    return {"bins": parts, "ece": error}


def residuals(predictions: LabelledPredictions) -> Json:
    """Predicted and actual values of at most 2,000 rows, evenly spaced over the table; None for a classification."""
    if predictions.task != "regression":
        return None
    rows = _evenly_spaced(predictions.rows, MAX_RESIDUALS)
    return {"predicted": predictions.predicted[rows].tolist(), "actual": predictions.actual[rows].tolist()}


def _evenly_spaced(count: int, limit: int = MAX_POINTS) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(count, limit)).round().astype(np.int64))
