"""How much one feature alone says of the target: a shallow tree, scored on rows that it was not fitted on."""

from __future__ import annotations

import numpy as np
import pandas as pd

ROWS = 20_000
"""Rows that are scored, drawn with a fixed seed."""
MIN_ROWS = 50
"""Fewer rows show nothing."""
MIN_OF_CLASS = 10
"""Rows that a class needs: with fewer, a feature without any meaning separates them too often."""


def target_means(texts: np.ndarray, target: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Each text as the mean target of its training rows; NaN for a text that has none."""
    means = pd.Series(target[train].astype(float)).groupby(pd.Series(texts[train]), sort=False).mean()
    numbers: np.ndarray = pd.Series(texts).map(means).to_numpy(dtype=float)
    return numbers


def leaking_score(feature: np.ndarray, target: np.ndarray, classes: int) -> float | None:
    """The largest ROC AUC of one class against the others, or R2 of a number (``classes`` 0), by 3-fold
    cross-validation on up to ROWS rows; None where the rows do not suffice.

    ``feature`` is float [rows], missing values NaN, or texts [rows] as objects; ``target`` codes or numbers.

    >>> target = np.arange(200) % 2
    >>> leaking_score(target + 0.25, target, 2), leaking_score(np.zeros(200), target, 2)
    (1.0, 0.5)
    """
    index = np.random.default_rng(0).permutation(len(target))[:ROWS]
    feature, target = feature[index], target[index]
    if len(target) < MIN_ROWS:
        return None
    if not classes:
        return _score(feature, target.astype(float), None)
    scores = [
        _score(feature, target == code, target == code)
        for code, rows in enumerate(np.bincount(target.astype(np.int64), minlength=classes))
        if MIN_OF_CLASS <= rows <= len(target) - MIN_OF_CLASS and not (classes == 2 and code == 0)
    ]
    return max(scores, default=None)


def _score(feature: np.ndarray, target: np.ndarray, positive: np.ndarray | None) -> float:
    from sklearn.metrics import r2_score, roc_auc_score
    from sklearn.model_selection import KFold, StratifiedKFold
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    folds = KFold(3) if positive is None else StratifiedKFold(3)
    scores = []
    for train, test in folds.split(feature.reshape(-1, 1), positive):
        values = target_means(feature, target, train) if feature.dtype == object else feature
        column = values.reshape(-1, 1)
        if positive is None:
            tree = DecisionTreeRegressor(max_depth=8, random_state=0).fit(column[train], target[train])
            scores.append(r2_score(target[test], tree.predict(column[test])))
        else:
            model = DecisionTreeClassifier(max_depth=4, random_state=0).fit(column[train], target[train])
            scores.append(roc_auc_score(target[test], model.predict_proba(column[test])[:, 1]))
    return float(np.mean(scores))
