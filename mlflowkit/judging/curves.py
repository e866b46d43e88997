"""What a report draws of a model's answers: confusion, ROC, precision and recall, calibration, residuals. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlflowkit.judging.metrics import Answers
from mlflowkit.judging.stats import wilson
from mlflowkit.values import Json

if TYPE_CHECKING:
    import numpy as np

POINTS = 500
"""Points kept of a curve."""
RESIDUALS = 2000
"""Rows kept of a scatter."""


def confusion(answers: Answers, labels: Sequence[str | int]) -> Json:
    """Counts [actual][predicted] in the order of ``labels``.

    >>> import numpy as np
    >>> codes, scores = np.array([0, 1, 1]), np.eye(2)[[0, 1, 0]]
    >>> confusion(Answers("classification", codes, np.array([0, 1, 0]), scores), ["no", "yes"])["counts"]
    [[1, 0], [1, 1]]
    """
    import numpy as np

    size = len(labels)
    counts = np.bincount(answers.actual * size + answers.predicted, minlength=size * size).reshape(size, size)
    return {"labels": list(labels), "counts": counts.tolist()}


def ranking(answers: Answers) -> tuple[Json, Json]:
    """The ROC curve {fpr, tpr} and the curve of {recall, precision} of a binary task; (None, None) of one class."""
    import numpy as np

    if answers.scores is None or answers.classes != 2:
        return None, None
    hit = (answers.actual == 1).astype(np.int64)
    positives, negatives = int(hit.sum()), int(len(hit) - hit.sum())
    if not positives or not negatives:
        return None, None
    order = np.argsort(-answers.scores[:, 1], kind="stable")
    ends = np.append(np.flatnonzero(np.diff(answers.scores[order, 1])), len(hit) - 1)
    true, false = np.cumsum(hit[order])[ends], np.cumsum(1 - hit[order])[ends]
    ends = _thinned(len(ends))
    true, false = true[ends], false[ends]
    roc = {"fpr": [0.0, *(false / negatives).tolist()], "tpr": [0.0, *(true / positives).tolist()]}
    return roc, {"recall": (true / positives).tolist(), "precision": (true / (true + false)).tolist()}


def calibration(answers: Answers, bins: int = 10) -> Json:
    """Mean predicted probability against the observed share in bins of equal count, with Wilson intervals, and the
    expected calibration error. Of the positive class of a binary task, of the chosen class of another."""
    import numpy as np

    if answers.scores is None or not answers.rows:
        return None
    if answers.classes == 2:
        predicted, hit = answers.scores[:, 1], answers.actual == 1
    else:
        predicted, hit = answers.scores.max(axis=1), answers.scores.argmax(axis=1) == answers.actual
    order = np.argsort(predicted, kind="stable")
    made, error = [], 0.0
    for part in np.array_split(order, min(bins, len(order))):
        mean, share = float(predicted[part].mean()), float(hit[part].mean())
        low, high = wilson(int(hit[part].sum()), len(part), 0.95)
        made.append(
            {
                "predicted": mean,
                "observed": share,
                "observed_low": min(low, share),
                "observed_high": max(high, share),
                "count": len(part),
            }
        )
        error += abs(mean - share) * len(part) / answers.rows
    return {"bins": made, "ece": error}


def residuals(answers: Answers) -> Json:
    """Predicted and actual values of at most 2,000 rows, evenly spaced over the table; None for a classification."""
    if answers.task != "regression":
        return None
    rows = _thinned(answers.rows, RESIDUALS)
    return {"predicted": answers.predicted[rows].tolist(), "actual": answers.actual[rows].tolist()}


def _thinned(count: int, most: int = POINTS) -> np.ndarray:
    import numpy as np

    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64))
