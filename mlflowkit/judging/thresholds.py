"""Choose the probability from which the positive class of a binary task is the answer. Pure.

Without a choice the label is the more probable class: a threshold of 0.5. A threshold is chosen on validation rows; its
value there is optimistic, because it is the best of many. The gates judge the labels on the test rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlflowkit.errors import DataError
from mlflowkit.judging.decision_rule import DecisionSection


@dataclass(frozen=True, slots=True)
class Decision:
    """A chosen threshold. ``value`` is its objective on the ``rows`` it was chosen on (None for a given threshold);
    ``rate``, ``precision`` and ``recall`` of the positive class are of the same rows."""

    threshold: float
    rule: str
    rows: int
    value: float | None
    rate: float
    precision: float | None
    recall: float


def decide(section: DecisionSection, scores: np.ndarray, positive: np.ndarray) -> Decision:
    """Choose a threshold.

    Args:
        scores: probability of the positive class, float [rows]
        positive: whether a row is of the positive class, bool [rows]

    Ties go to the threshold nearest to 0.5. Raises DataError without rows of both classes.

    >>> scores, positive = np.array([0.1, 0.2, 0.3, 0.4]), np.array([False, False, True, True])
    >>> round(decide(DecisionSection(maximize="f1"), scores, positive).threshold, 3)
    0.25
    """
    if positive.all() or not positive.any():
        problem = "a threshold needs validation rows of both classes"
        raise DataError(problem, hint="enlarge data.split.validation, or set decision.threshold")
    thresholds, true, false = _counts(scores.astype(np.float64), positive)
    if section.threshold is not None:
        return _decision(section.threshold, "threshold", None, scores, positive)
    if section.rate is not None:
        distance = np.abs((true + false) / len(scores) - section.rate)
        best = _nearest_to_half(thresholds, distance == distance.min())
        return _decision(best, f"rate {section.rate:g}", None, scores, positive)
    if section.costs is not None:
        cost = section.costs.false_positive * false + section.costs.false_negative * (positive.sum() - true)
        best = _nearest_to_half(thresholds, cost == cost.min())
        rule = f"costs {section.costs.false_positive:g} : {section.costs.false_negative:g}"
        return _decision(best, rule, float(cost.min()) / len(scores), scores, positive)
    metric = section.maximize or "f1"
    values = _objective(metric, true, false, int(positive.sum()), len(scores))
    best = _nearest_to_half(thresholds, np.isclose(values, values.max(), rtol=0, atol=1e-12))
    return _decision(best, f"maximize {metric}", float(values.max()), scores, positive)


def _counts(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thresholds around the distinct scores, and the true and false positives of each. Scores at or above count."""
    order = np.argsort(-scores, kind="stable")
    ordered, hits = scores[order], positive[order]
    ends = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    true, false = np.append(0, np.cumsum(hits)[ends]), np.append(0, np.cumsum(~hits)[ends])
    edges = np.concatenate([[1.0], ordered[ends], [0.0]])
    thresholds = (edges[:-1] + edges[1:]) / 2
    usable = (thresholds > 0) & (thresholds < 1)
    return thresholds[usable], true[usable], false[usable]


def _objective(metric: str, true: np.ndarray, false: np.ndarray, positives: int, rows: int) -> np.ndarray:
    negatives = rows - positives
    if metric == "f1":
        return np.asarray(2 * true / (true + false + positives))
    if metric == "accuracy":
        return np.asarray((true + negatives - false) / rows)
    return np.asarray((true / positives + (negatives - false) / negatives) / 2)


def _nearest_to_half(thresholds: np.ndarray, best: np.ndarray) -> float:
    candidates = thresholds[best]
    return float(candidates[np.argmin(np.abs(candidates - 0.5))])


def _decision(threshold: float, rule: str, value: float | None, scores: np.ndarray, positive: np.ndarray) -> Decision:
    """The threshold as the graph holds it, in float32, with its consequences on the rows."""
    threshold = float(np.float32(threshold))
    answered = scores >= threshold
    hits = int((answered & positive).sum())
    return Decision(
        threshold=threshold,
        rule=rule,
        rows=len(scores),
        value=value,
        rate=float(answered.mean()),
        precision=hits / int(answered.sum()) if answered.any() else None,
        recall=hits / int(positive.sum()),
    )
