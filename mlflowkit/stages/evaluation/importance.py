"""Permutation importance: how much a metric falls when the values of one column are shuffled among the test rows.

Source: Breiman, "Random Forests", Machine Learning 45 (2001), section 10; Fisher, Rudin, Dominici, JMLR 20 (2019),
whose model reliance is this difference. It is measured on the graph that will serve. Columns that say the same share
their importance: each may look unimportant, because the other is left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mlflowkit.judging import metrics
from mlflowkit.judging.metrics import LabelledPredictions
from mlflowkit.judging.stats import UndefinedMetricError

if TYPE_CHECKING:
    import pandas as pd

REPEATS = 5
"""Shuffles of a column."""
MAX_ROWS = 1000
"""Test rows that are predicted for each shuffle."""
MAX_CELLS = 2_000_000
"""Predicted rows over all columns and shuffles, by which the rows are reduced for a wide table."""
LARGE_GRAPH = 20 * 2**20
"""Bytes of a graph from which a tenth of the rows is predicted."""
MIN_ROWS = 50
"""Fewer rows show nothing."""
METRICS = {"regression": "r2", "binary": "roc_auc", "classification": "accuracy"}


@dataclass(frozen=True, slots=True)
class ColumnImportance:
    """The fall of the metric without a column: its mean over the shuffles, and the least and largest."""

    column: str
    fall: float
    least: float
    largest: float


@dataclass(frozen=True, slots=True)
class ImportanceTable:
    """Columns, the most important first; ``reason`` says why there are none."""

    metric: str
    value: float | None
    rows: int
    repeats: int
    columns: tuple[ColumnImportance, ...] = ()
    reason: str = ""


def rows_to_predict(rows: int, columns: int, graph_bytes: int) -> int:
    """Rows for each shuffle: at most `MAX_ROWS`, and fewer for wide tables and large graphs.

    >>> rows_to_predict(5000, 20, 100_000), rows_to_predict(5000, 2000, 100_000), rows_to_predict(5000, 20, 10**8)
    (1000, 200, 100)
    """
    limit = min(rows, MAX_ROWS, MAX_CELLS // (max(columns, 1) * REPEATS))
    return limit if graph_bytes < LARGE_GRAPH else limit // 10


def permutation_importance(
    predict: Callable[[pd.DataFrame], LabelledPredictions],
    table: pd.DataFrame,
    columns: Sequence[str],
    task: str,
    *,
    rows: int,
    seed: int,
) -> ImportanceTable:
    """Measure every column on ``rows`` rows of ``table``, drawn and shuffled with ``seed``.

    ``predict`` answers a table with the same columns, in order. Nothing is measured where the metric is undefined.
    """
    rng = np.random.default_rng(seed)
    table = table.iloc[np.sort(rng.choice(len(table), rows, replace=False))] if rows < len(table) else table
    base = predict(table)
    metric = METRICS["binary" if task == "classification" and base.classes == 2 else task]
    if len(table) < MIN_ROWS or not columns:
        return ImportanceTable(metric, None, len(table), REPEATS, reason=f"fewer than {MIN_ROWS} rows can be predicted")
    measured = []
    try:
        value = metrics.estimate(metric, base).value
        for column in columns:
            falls = [value - _shuffled_value(predict, table, column, metric, rng) for _ in range(REPEATS)]
            measured.append(ColumnImportance(column, float(np.mean(falls)), min(falls), max(falls)))
    except UndefinedMetricError as error:
        return ImportanceTable(metric, None, len(table), REPEATS, reason=error.message)
    measured.sort(key=lambda item: (-item.fall, item.column))
    return ImportanceTable(metric, float(value), len(table), REPEATS, tuple(measured))


def _shuffled_value(
    predict: Callable[[pd.DataFrame], LabelledPredictions],
    table: pd.DataFrame,
    column: str,
    metric: str,
    rng: np.random.Generator,
) -> float:
    order = rng.permutation(len(table))
    shuffled = table.assign(**{column: table[column].take(order).set_axis(table.index)})
    return float(metrics.estimate(metric, predict(shuffled)).value)
