"""Features that predict the target alone: a shallow decision tree on each, scored on rows it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mlflowkit.bundle import TextRule
from mlflowkit.features.cells import number_of
from mlflowkit.recipe.starter.column_facts import FileFacts
from mlflowkit.stages.validation.single_feature import MIN_ROWS, target_means

ROWS = 4000
"""Rows of the test, drawn with a fixed seed."""
ALONE = 0.98
"""ROC AUC (two classes), accuracy (more) or R2 (a number) from which one feature is a suspect."""


def score_alone(
    feature: pd.Series, numeric: bool, target: np.ndarray, *, classes: int, rule: TextRule
) -> tuple[str, float]:
    """(metric, score) of a depth-4 tree on one feature by 3-fold cross-validation; classes 0 means a regression.

    Args:
        feature: texts [rows]; as numbers by ``rule`` where ``numeric``, else ordered by their mean target in the
            training folds
        target: class codes or values [rows]
    """
    from sklearn.model_selection import KFold, StratifiedKFold

    index = np.random.default_rng(0).permutation(len(target))[:ROWS]
    texts, target = feature.to_numpy()[index], target[index]
    folds = StratifiedKFold(3) if classes and min(np.bincount(target.astype(int))) >= 3 else KFold(3)
    values = np.array([_number(text, rule) for text in texts]) if numeric else None
    scores = []
    for train, test in folds.split(texts.reshape(-1, 1), target if classes else None):
        column = values if values is not None else target_means(texts, target, train)
        scores.append(_fold_score(column.reshape(-1, 1), target, train, test, classes))
    metric = "ROC AUC" if classes == 2 else "accuracy" if classes else "R2"
    return metric, float(np.mean(scores))


def _fold_score(column: np.ndarray, target: np.ndarray, train: np.ndarray, test: np.ndarray, classes: int) -> float:
    from sklearn.metrics import r2_score, roc_auc_score
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    if not classes:
        tree = DecisionTreeRegressor(max_depth=8, random_state=0).fit(column[train], target[train])
        return float(r2_score(target[test], tree.predict(column[test])))
    model = DecisionTreeClassifier(max_depth=4, random_state=0).fit(column[train], target[train])
    if classes > 2 or len(np.unique(target[test])) < 2 or len(model.classes_) < 2:
        return float(model.score(column[test], target[test]))
    return float(roc_auc_score(target[test], model.predict_proba(column[test])[:, 1]))


def _number(text: str, rule: TextRule) -> float:
    try:
        value = number_of(text, rule)
    except ValueError:
        return np.nan
    return np.nan if value is None else float(value)


def scores_alone(
    facts: FileFacts, target: str, features: Sequence[tuple[str, bool]], classification: bool
) -> dict[str, tuple[str, float]]:
    """(metric, score) by feature of (name, whether numeric), on the rows that have a target."""
    texts = facts.table[target]
    rows = texts.str.strip() != ""
    texts = texts[rows]
    if classification:
        names = sorted(set(texts))
        values, classes = pd.Categorical(texts, categories=names).codes.astype(np.int64), len(names)
    else:
        numbers = np.array([_number(text, facts.rule) for text in texts])
        rows[rows] = np.isfinite(numbers)
        values, classes = numbers[np.isfinite(numbers)], 0
    if len(values) < MIN_ROWS:
        return {}
    return {
        name: score_alone(facts.table[name][rows], numeric, values, classes=classes, rule=facts.rule)
        for name, numeric in features
    }
